"""Which parameters decay, and which have a learning rate of their own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from pretrain.config import OptimizerSettings
from spade_model.config_checks import STATE_SPACE_QUANTITIES

STATE_SPACE = ".state_space."
"""Part of the name of every state-space parameter."""


def group_of(name: str, parameter: nn.Parameter, own_rates: Collection[str] = ()) -> str:
    """The group of one parameter.

    ``state_space``, or ``state_space.log_dt`` and so on for a quantity with a rate of its own;
    ``no_decay`` or ``decay``. Vectors (norm weights) and everything called a bias, the
    relative-position tables of attention included, are not decayed.

    Args:
        name: Of the parameter in the model.
        parameter: The parameter.
        own_rates: Names of state-space quantities.
    """
    if STATE_SPACE in name:
        tensor = name.rpartition(".")[2]
        quantity = STATE_SPACE_QUANTITIES.get(tensor, tensor)
        return f"state_space.{quantity}" if quantity in own_rates else "state_space"
    if parameter.ndim < 2 or "bias" in name:
        return "no_decay"
    return "decay"


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Build AdamW's parameter groups.

    Each group carries ``name`` and ``base_learning_rate`` beside torch's own keys. The schedule
    multiplies ``base_learning_rate`` at every step, so a group's own rate survives it.

    Args:
        model: The module to train; frozen parameters are left out.
        settings: Rates and decay.

    Returns:
        Non-empty groups in the order ``decay``, ``no_decay``, ``state_space``, and those of single
        quantities.
    """
    state_space_rate = settings.state_space_learning_rate or settings.learning_rate
    own_rates = settings.state_space_learning_rates
    plan = {
        "decay": (settings.learning_rate, settings.weight_decay),
        "no_decay": (settings.learning_rate, 0.0),
        "state_space": (state_space_rate, 0.0),
        **{f"state_space.{name}": (rate, 0.0) for name, rate in own_rates.items()},
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in plan}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[group_of(name, parameter, own_rates)].append(parameter)
    return [
        {
            "name": name,
            "params": members[name],
            "lr": rate,
            "base_learning_rate": rate,
            "weight_decay": decay,
        }
        for name, (rate, decay) in plan.items()
        if members[name]
    ]
