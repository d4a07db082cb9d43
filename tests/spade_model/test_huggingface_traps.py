"""What goes wrong in silence with `transformers` 5: no warning, other numbers.

More of it is tested where it belongs: padding and caches with generation, the loss under
accumulation with the Trainer, exported folders with the export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from huggingface_models import CAUSAL, TINY, built, some_ids, tiny_config
from transformers import AutoModelForSeq2SeqLM, GenerationMixin

from spade_model.huggingface import (
    SpadeEncoderModel,
    SpadeForCausalLM,
    SpadeForConditionalGeneration,
    SpadeForQuestionAnswering,
    SpadeForSequenceClassification,
    SpadeForTokenClassification,
    SpadePretrainedConfig,
)

ENCODERS = (
    SpadeEncoderModel,
    SpadeForSequenceClassification,
    SpadeForTokenClassification,
    SpadeForQuestionAnswering,
)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"state_space": "s4d_lin", "attention": "chunk", "decoder_position": "alibi"},
    {"state_space": "ema", "position": "rope", "decoder_position": "rope"},
    {"state_space": "s4d_inv", "position": "alibi", "shared_relative_bias": False},
]


def kept_tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from kept_tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from kept_tensors(inner)


class TestWhatIsStored:
    @pytest.mark.parametrize("changes", VARIANTS, ids=lambda x: x.get("state_space", "s4"))
    def test_no_tensor_is_kept_where_loading_would_not_fill_it(
        self, changes: dict[str, Any]
    ) -> None:
        """Models are built without memory before they load: such a tensor would be garbage."""
        for model in (
            built(SpadeForConditionalGeneration, **changes),
            built(
                SpadeForCausalLM,
                **(CAUSAL | {k: changes[k] for k in changes.keys() - {"decoder_position"}}),
            ),
        ):
            model(**{name: some_ids(1, 9) for name in ("input_ids", "labels")})  # May keep some.
            stored = {id(x) for x in model.state_dict(keep_vars=True).values()}
            for name, module in model.named_modules():
                for tensor in kept_tensors(vars(module)):
                    assert id(tensor) in stored, f"{type(module).__name__} {name}"

    @pytest.mark.parametrize("changes", VARIANTS, ids=lambda x: x.get("state_space", "s4"))
    def test_nothing_is_complex(self, changes: dict[str, Any]) -> None:
        """A change to bfloat16 would drop the imaginary parts."""
        model = built(SpadeForConditionalGeneration, **changes)
        assert all(x.is_floating_point() for x in model.state_dict().values())

    @pytest.mark.parametrize("model_class", [*ENCODERS, SpadeForConditionalGeneration])
    def test_every_tensor_that_has_two_names_is_declared(self, model_class: Any) -> None:
        model = built(model_class)
        by_place: dict[int, list[str]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            by_place.setdefault(id(tensor), []).append(name)
        doubled = [names for names in by_place.values() if len(names) > 1]
        expected = {source: target for target, source in model.all_tied_weights_keys.items()}
        assert {tuple(sorted(names)) for names in doubled} == {
            tuple(sorted(pair)) for pair in expected.items()
        }


class TestConfiguration:
    def test_fields_have_to_be_named(self) -> None:
        with pytest.raises(TypeError):
            SpadePretrainedConfig(90)  # type: ignore[call-arg]

    def test_names_of_other_models_mean_ours(self) -> None:
        config = SpadePretrainedConfig(
            vocab_size=90, hidden_size=32, num_attention_heads=2, intermediate_size=48
        )
        assert (config.d_model, config.num_heads, config.d_ff) == (32, 2, 48)
        assert {"hidden_size", "intermediate_size"}.isdisjoint(config.to_dict())

    @pytest.mark.parametrize(
        ("given", "layers"),
        [
            ({}, (3, 3)),
            ({"num_decoder_layers": 1}, (3, 1)),
            ({"num_decoder_layers": 0}, (3, 0)),
            ({"num_encoder_layers": 0}, (0, 3)),
        ],
    )
    def test_a_number_of_layers_is_that_of_both_stacks(
        self, given: dict[str, int], layers: tuple[int, int]
    ) -> None:
        config = SpadePretrainedConfig(num_hidden_layers=3, **given)
        assert (config.num_encoder_layers, config.num_decoder_layers) == layers
        assert config.num_hidden_layers == 3
        again = SpadePretrainedConfig.from_dict(config.to_dict())
        assert (again.num_encoder_layers, again.num_decoder_layers) == layers

    def test_there_is_no_first_token_unless_one_is_given(self) -> None:
        assert tiny_config().bos_token_id is None
        assert tiny_config(bos_token_id=2).bos_token_id == 2


class TestGeneration:
    def test_who_generates(self) -> None:
        for model_class in (SpadeForConditionalGeneration, SpadeForCausalLM):
            assert GenerationMixin in model_class.__bases__
            assert model_class.can_generate()
        assert not any(model_class.can_generate() for model_class in ENCODERS)

    def test_what_generation_is_told_is_stored_apart(self, tmp_path: Path) -> None:
        model = built(SpadeForConditionalGeneration)
        model.generation_config.num_beams = 3
        model.generation_config.max_new_tokens = 7
        model.generation_config.eos_token_id = None
        model.save_pretrained(tmp_path)
        assert "num_beams" not in json.loads((tmp_path / "config.json").read_text())
        again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
        assert again.generate(some_ids(1, 9)).shape == (1, 8)
        start = again.generation_config.decoder_start_token_id
        assert start == TINY.get("decoder_start_token_id", 0)

    def test_the_trainer_does_not_switch_the_cache_off_for_good(self, tmp_path: Path) -> None:
        """It writes ``use_cache: false`` into the configuration of what it trained."""
        pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")
        from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

        ids = some_ids(2, 9)
        rows = [{"input_ids": row, "labels": row[:4]} for row in ids]
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Seq2SeqTrainer(
            model=built(SpadeForConditionalGeneration), args=arguments, train_dataset=rows
        )
        trainer.train()
        trainer.model.config.use_cache = False  # As it does with activation checkpointing.
        trainer.save_model(str(tmp_path / "tuned"))
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "tuned")
        assert not model.config.use_cache
        assert not model.is_activation_checkpointing
        given = {"input_ids": ids, "decoder_input_ids": ids[:, :2]}
        assert model(**given).past_key_values is None
        assert model(**given, use_cache=True).past_key_values.get_seq_length() == 2
        found = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True)
        assert found.past_key_values is not None


class TestPadding:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("causal", [False, True], ids=["encoder", "causal"])
    def test_any_amount_of_it_changes_nothing(self, side: str, causal: bool) -> None:
        """A state space hears padding that only attention is kept from."""
        if causal:
            model: nn.Module = built(SpadeForCausalLM, **CAUSAL)
        else:
            model = built(SpadeEncoderModel)
        ids = some_ids(1, 20)
        alone = model(input_ids=ids)[0]
        for amount in (8, 64, 512):
            width = (amount, 0) if side == "left" else (0, amount)
            mask = nn.functional.pad(torch.ones_like(ids), width)
            # Any token will do as padding, the mask alone says what is.
            padded = model(input_ids=nn.functional.pad(ids, width, value=5), attention_mask=mask)[0]
            torch.testing.assert_close(padded[mask > 0][None], alone, atol=2e-5, rtol=0)


class TestAttentionImplementation:
    def test_what_others_ask_for_by_name(self, tmp_path: Path) -> None:
        built(SpadeForConditionalGeneration).save_pretrained(tmp_path)
        ids = some_ids(1, 9)
        found = [
            AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation=kind)(
                input_ids=ids, labels=ids
            ).logits
            for kind in ("eager", "sdpa")
        ]
        assert torch.equal(*found)
        with pytest.raises((ValueError, ImportError), match=r"(?i)flash"):
            AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


class TestModality:
    def test_only_text_has_an_encoder(self) -> None:
        """Tools ask by modality, and take another answer than the model itself for a yes."""
        model = built(SpadeForConditionalGeneration)
        assert model.get_encoder() is not model
        assert model.get_encoder(modality="image") is model
        language = built(SpadeForCausalLM, **CAUSAL)
        assert language.get_encoder() is language
