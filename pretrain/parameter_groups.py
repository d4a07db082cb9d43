"""Which parameters decay, and which have a learning rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn

from pretrain.config import OptimizerSettings

STATE_SPACE = ".state_space."
"""Part of the name of every state-space parameter."""


def group_of(name: str, parameter: nn.Parameter) -> str:
    """The group of one parameter: ``state_space``, ``no_decay`` or ``decay``.

    Vectors (norm weights) and everything called a bias, the relative-position tables of attention
    included, are not decayed.
    """
    if STATE_SPACE in name:
        return "state_space"
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
        Non-empty groups in the order ``decay``, ``no_decay``, ``state_space``.
    """
    state_space_rate = settings.state_space_learning_rate or settings.learning_rate
    plan = {
        "decay": (settings.learning_rate, settings.weight_decay),
        "no_decay": (settings.learning_rate, 0.0),
        "state_space": (state_space_rate, 0.0),
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in plan}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[group_of(name, parameter)].append(parameter)
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
