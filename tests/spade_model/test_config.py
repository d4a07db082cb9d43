"""The configuration accepts what can be built and explains what cannot."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pydantic
import pytest

import spade_model
from spade_model.config import SpadeConfig
from spade_model.presets import PRESETS, preset
from spade_model.published import published_config

IMPOSSIBLE = [
    ({"vocab_size": 0}, "vocab_size"),
    ({"d_model": 2.5}, "d_model"),
    ({"d_model": True}, "d_model"),
    ({"num_heads": 0}, "num_heads"),
    ({"state_dim": 7}, "state_dim"),
    ({"state_space_layers": 9}, "the 6 layers"),
    ({"state_space_layers": 0}, "within 1"),
    ({"state_space_layers": "each 3"}, "every 3"),
    ({"state_space_layers": "every 0"}, "every 3"),
    ({"state_space_layers": (0, 6)}, "layers 0 to 5"),
    ({"state_space_layers": (1, 1)}, "twice"),
    ({"state_space_layers": ()}, "list"),
    ({"state_space_layers": True}, "list"),
    ({"state_space": "s5"}, "s4 or s4d_lin"),
    ({"state_space_discretization": "zero_order_hold"}, "s4d_"),
    ({"state_space_channels": 2, "combine": "add"}, "concat"),
    ({"combine_weight": 1.5}, "[0, 1]"),
    ({"trainable_state_space": ("P",), "state_space": "s4d_lin"}, "leave P out"),
    ({"shared_relative_bias": True, "position": "rope"}, "relative_bias"),
    ({"head_dim": 63, "position": "rope"}, "pairs"),
    ({"num_encoder_layers": 0, "num_decoder_layers": 0}, "leaves no layers"),
    ({"num_decoder_layers": -1}, "below 0"),
    ({"trained_length_tokens": 0}, "below 1"),
    ({"dt_min": "small"}, "not a number"),
    ({"state_space_copies": 7}, "d_model=512"),
    ({"state_space_copies": 0}, "state_space_copies"),
    ({"dt_min": 0.2}, "dt_max"),
    ({"dt_max": float("inf")}, "finite"),
    ({"trainable_state_space": ("log_td",)}, "did you mean 'log_dt'"),
    ({"trainable_state_space": ("C", "C")}, "repeats"),
    ({"trainable_state_space": "C"}, "list"),
    ({"local_radius_tokens": 0}, "local_radius_tokens"),
    ({"relative_attention_num_buckets": 30}, "multiple of 4"),
    ({"relative_attention_max_distance_tokens": 8}, "more than 8"),
    ({"normalization": "sandwich"}, "pre or post"),
    ({"normalization": "post"}, "final_norm"),
    ({"feed_forward": "swiglu"}, "relu or gated_gelu"),
    ({"feed_forward_bias": 1}, "true or false"),
    ({"initialization": "zero"}, "scaled or published"),
    ({"dropout": 1.0}, "dropout"),
    ({"dropout": "0.1"}, "dropout"),
    ({"norm_epsilon": 0.0}, "norm_epsilon"),
    ({"max_target_length_tokens": 0}, "max_target_length_tokens"),
    ({"eos_token_id": 100}, "vocab_size=100"),
    ({"pad_token_id": -1}, "pad_token_id"),
]


@pytest.mark.parametrize(("change", "told"), IMPOSSIBLE, ids=[str(c) for c, _ in IMPOSSIBLE])
def test_impossible_values_name_field_and_remedy(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as error:
        SpadeConfig(**{"vocab_size": 100, **change})
    message = str(error.value)
    assert told in message
    assert next(iter(change)) in message
    assert "\n" not in message


def test_dictionary_round_trip_survives_json() -> None:
    config = SpadeConfig(vocab_size=100, trainable_state_space=(), state_space_copies=4)
    assert SpadeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(SpadeConfig)}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, (0,)), (3, (0, 1, 2)), ("every 4", (0, 4)), ("every 9", (0,)), ((5, 2), (2, 5))],
)
def test_placement_of_the_state_space(
    layers: int | str | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    config = SpadeConfig(vocab_size=9, state_space_layers=layers)
    assert config.state_space_layer_indices == expected
    without = SpadeConfig(vocab_size=9, state_space_layers=layers, state_space="none")
    assert without.state_space_layer_indices == ()


def test_smallest_time_step_follows_the_trained_length() -> None:
    assert SpadeConfig(vocab_size=9).smallest_time_step == 1e-3
    long = SpadeConfig(vocab_size=9, trained_length_tokens=16384)
    assert long.smallest_time_step == 2 / 16384
    assert SpadeConfig(vocab_size=9, dt_min=0.01, trained_length_tokens=16384).dt_min == 0.01


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name: str) -> None:
    config = preset(name, vocab_size=100, dropout=0.25)
    assert (config.vocab_size, config.dropout) == (100, 0.25)
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        preset(name[:-1] + "x", vocab_size=100)


def test_published_preset_is_the_published_default() -> None:
    sizes = {"d_model": 768, "num_heads": 12, "d_ff": 3072, "num_layers": 12}
    theirs = published_config({"vocab_size": 9, **sizes})
    ours = preset(
        "spade_base_msr",
        vocab_size=9,
        state_space_layers=theirs.state_space_layers,
        dt_min=theirs.dt_min,
        max_target_length_tokens=theirs.max_target_length_tokens,
    )
    assert ours == theirs
    assert theirs.state_space_layer_indices == (0,)
    assert theirs.smallest_time_step == 1e-3


def test_unknown_and_missing_keys() -> None:
    with pytest.raises(ValueError, match=r"'dmodel'.*did you mean 'd_model'"):
        SpadeConfig.from_dict({"vocab_size": 5, "dmodel": 8})
    with pytest.raises(ValueError, match="vocab_size is missing"):
        SpadeConfig.from_dict({})


def test_pydantic_validates_it_as_a_field() -> None:
    adapter = pydantic.TypeAdapter(SpadeConfig)
    config = adapter.validate_python({"vocab_size": 9, "trainable_state_space": ["C"]})
    assert config.trainable_state_space == ("C",)
    for wrong in ({"vocab_size": 9, "d_modle": 3}, {"vocab_size": 9, "state_dim": 3}, {}):
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python(wrong)


def test_configuration_and_cost_are_read_without_torch() -> None:
    code = (
        "import sys; from spade_model.config import SpadeConfig; import spade_model.cost; "
        "spade_model.cost.count_parameters(SpadeConfig(vocab_size=9)); "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_loads() -> None:
    for name in spade_model.__all__:
        assert getattr(spade_model, name).__name__ == name
    with pytest.raises(AttributeError, match="SpadeForNothing"):
        _ = spade_model.SpadeForNothing
