"""Every learned parameter is in one group, with the rate and decay that the settings give it."""

from __future__ import annotations

from typing import Any

import pytest

from pretrain.config import OptimizerSettings, RunConfig
from pretrain.errors import ConfigError
from pretrain.optimization.parameter_groups import parameter_groups
from spade_model import SpadeConfig, SpadeForSeq2Seq

SIZES = {"vocab_size": 30, "d_model": 8, "num_heads": 1, "head_dim": 8, "d_ff": 16, "state_dim": 4}


def groups_of(rates: dict[str, float], **changes: Any) -> tuple[dict[str, Any], dict[int, str]]:
    """The groups by name, and the name of each parameter by its identity."""
    model = SpadeForSeq2Seq(SpadeConfig(**SIZES, **changes))
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
