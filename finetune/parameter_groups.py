"""Which parameters decay, and which learn slowly: the groups of pretraining, for any model class.

A state space is a nonlinear function of a few parameters with large effects, so that these learn at
a rate of their own and never decay.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from finetune.settings import TrainingSettings

STATE_SPACE = ".state_space."
"""Part of the name of every state-space parameter."""


def group_of(name: str, parameter: nn.Parameter) -> str:
    """The group of one parameter: ``state_space``, ``no_decay`` (vectors and biases), ``decay``."""
    if STATE_SPACE in name:
        return "state_space"
    return "no_decay" if parameter.ndim < 2 or "bias" in name else "decay"


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Return non-empty groups of trained parameters for AdamW, with name, rate and decay."""
    rates_and_decays = {
        "decay": (settings.learning_rate, settings.weight_decay),
        "no_decay": (settings.learning_rate, 0.0),
        "state_space": (settings.state_space_rate, 0.0),
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates_and_decays}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[group_of(name, parameter)].append(parameter)
    return [
        {"name": name, "params": members[name], "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in rates_and_decays.items()
        if members[name]
    ]
