"""Every learned parameter is in one group, with the rate and decay that the settings give it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.optimization.parameter_groups import learning_rate_factors, parameter_groups
from pretrain.optimization.settings import OptimizerSettings
from spade_model import SpadeConfig, SpadeForSeq2Seq

SIZES = {"vocab_size": 30, "d_model": 8, "num_heads": 1, "head_dim": 8, "d_ff": 16, "state_dim": 4}


def model_of(**changes: Any) -> SpadeForSeq2Seq:
    return SpadeForSeq2Seq(SpadeConfig(**SIZES, **changes))


def groups_of(rates: dict[str, float], **changes: Any) -> tuple[dict[str, Any], dict[int, str]]:
    """The groups by name, and the name of each parameter by its identity."""
    model = model_of(**changes)
    settings = OptimizerSettings(
        learning_rate=1.0, state_space_learning_rate=0.5, state_space_learning_rates=rates
    )
    names = {id(x): name for name, x in model.named_parameters()}
    return {group["name"]: group for group in parameter_groups(model, settings)}, names


@pytest.mark.parametrize("state_space", ["s4", "s4d_lin", "ema", "none"])
def test_every_parameter_is_in_one_group(state_space: str) -> None:
    groups, names = groups_of({}, state_space=state_space)
    members = [id(x) for group in groups.values() for x in group["params"]]
    assert sorted(members) == sorted(names)
    assert groups["decay"]["weight_decay"] > 0
    for name, group in groups.items():
        assert group["lr"] == group["base_learning_rate"]
        if name != "decay":
            assert group["weight_decay"] == 0
        for parameter in group["params"]:
            assert (".state_space." in names[id(parameter)]) == name.startswith("state_space")


def test_quantities_of_the_state_space_have_rates_of_their_own() -> None:
    learned = ("C", "D", "log_dt", "A", "B", "P")
    groups, names = groups_of({"log_dt": 0.1, "A": 0.2}, trainable_state_space=learned)

    def tensors(group: str) -> set[str]:
        return {names[id(x)].rpartition(".")[2] for x in groups[group]["params"]}

    assert tensors("state_space") == {"C", "D", "B", "P"}
    assert groups["state_space"]["lr"] == 0.5
    assert tensors("state_space.log_dt") == {"log_dt"}
    assert groups["state_space.log_dt"]["lr"] == 0.1
    assert tensors("state_space.A") == {"log_decay", "frequency"}
    assert groups["state_space.A"]["lr"] == 0.2


def test_multipliers_reach_just_what_they_name_and_leave_decay_alone() -> None:
    model = model_of()
    multipliers = {"*.decoder.*": 0.5, "lm_head.weight": 0.25, "*.encoder.first_norm.*": 0.5}
    plain = OptimizerSettings(learning_rate=1.0, state_space_learning_rate=0.5)
    groups = parameter_groups(model, plain)
    before = {id(x): group for group in groups for x in group["params"]}
    settings = plain.model_copy(update={"learning_rate_multipliers": multipliers})
    after = {id(x): group for group in parameter_groups(model, settings) for x in group["params"]}
    assert before.keys() == after.keys()
    changed = set()
    for name, parameter in model.named_parameters():
        old, new = before[id(parameter)], after[id(parameter)]
        assert old["weight_decay"] == new["weight_decay"]
        expected = 0.5 if fnmatchcase(name, "*.decoder.*") or ".first_norm." in name else 1.0
        if name == "model.shared.weight":
            expected = 0.25  # lm_head.weight is its second name
        assert new["base_learning_rate"] == new["lr"] == old["lr"] * expected
        if expected != 1:
            assert new["name"] == f"{old['name']}_x{expected}"
            changed.add(expected)
    assert changed == {0.25, 0.5}
    assert len({group["name"] for group in parameter_groups(model, settings)}) == 6


def test_what_is_frozen_is_in_no_group_and_no_pattern_finds_it() -> None:
    model = model_of()
    model.model.shared.weight.requires_grad_(False)
    settings = OptimizerSettings(learning_rate=1.0)
    members = {id(x) for group in parameter_groups(model, settings) for x in group["params"]}
    assert id(model.model.shared.weight) not in members
    wrong = settings.model_copy(update={"learning_rate_multipliers": {"*.shared.*": 2.0}})
    with pytest.raises(ConfigError, match="matches no trained parameter"):
        parameter_groups(model, wrong)


@pytest.mark.parametrize(
    ("multipliers", "told"),
    [
        ({"*.decodr.*": 0.5}, "'\\*.decodr.\\*' matches no trained parameter; the nearest name is"),
        ({"model.shared.weigth": 0.5}, "nearest name is 'model.shared.weight'"),
        ({"*.decoder.*": 0.5, "*norm*": 0.1}, "both match model.decoder.*narrow"),
    ],
)
def test_wrong_patterns_are_refused_in_one_line(multipliers: dict[str, float], told: str) -> None:
    settings = OptimizerSettings(learning_rate=1.0, learning_rate_multipliers=multipliers)
    with pytest.raises(ConfigError, match=told) as caught:
        parameter_groups(model_of(), settings)
    assert "\n" not in str(caught.value)


names = st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


@given(names=names, patterns=st.dictionaries(st.text("ab.*?[", max_size=4), st.just(0.5)))
def test_a_factor_is_given_where_a_pattern_matches_and_nowhere_else(
    names: list[str], patterns: dict[str, float]
) -> None:
    matched = {name: any(fnmatchcase(name, pattern) for pattern in patterns) for name in names}
    useless = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if useless:
        with pytest.raises(ConfigError, match="matches no trained parameter"):
            learning_rate_factors([(name,) for name in names], patterns)
    else:
        factors = learning_rate_factors([(name,) for name in names], patterns)
        assert factors == {name: 0.5 if hit else 1.0 for name, hit in matched.items()}


@pytest.mark.parametrize(
    ("model", "name", "told"),
    [
        ({}, "log_td", "did you mean 'log_dt'"),
        ({}, "A", "not learned"),
        ({"state_space": "ema"}, "log_dt", "eta"),
        ({"state_space": "none"}, "C", "no names"),
    ],
)
def test_a_rate_that_matches_nothing_is_an_error(
    run_settings: dict[str, Any], model: dict[str, Any], name: str, told: str
) -> None:
    run_settings["model"] |= {"vocab_size": 512, **model}
    run_settings["optimizer"]["state_space_learning_rates"] = {name: 1e-3}
    with pytest.raises(ConfigError, match=told):
        RunConfig.from_dict(run_settings, "run.yaml")
