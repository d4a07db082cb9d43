"""Which parameters decay, and which have a learning rate of their own."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from pretrain.errors import ConfigError
from pretrain.optimization.settings import OptimizerSettings
from spade_model.config_checks import STATE_SPACE_QUANTITIES

STATE_SPACE = ".state_space."
"""Part of the name of every state-space parameter."""
LAYERS = ".layers."
"""Part of the name of every parameter that is no embedding, position or closing norm."""
MATRIX = "matrix"
"""Name of the group whose steps Muon makes orthogonal."""


def group_of(
    name: str, parameter: nn.Parameter, own_rates: Collection[str] = (), *, muon: bool = False
) -> str:
    """The group of one parameter.

    ``state_space``, or ``state_space.log_dt`` and so on for a quantity with a rate of its own;
    ``no_decay`` or ``decay``. Vectors (norm weights) and everything called a bias, the
    relative-position tables of attention included, are not decayed.

    Args:
        name: Of the parameter in the model.
        parameter: The parameter.
        own_rates: Names of state-space quantities.
        muon: Whether the matrices of the layers are a group ``matrix`` of their own.
    """
    if STATE_SPACE in name:
        tensor = name.rpartition(".")[2]
        quantity = STATE_SPACE_QUANTITIES.get(tensor, tensor)
        return f"state_space.{quantity}" if quantity in own_rates else "state_space"
    if parameter.ndim < 2 or "bias" in name:
        return "no_decay"
    return MATRIX if muon and parameter.ndim == 2 and LAYERS in name else "decay"


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Build the optimizer's parameter groups.

    Each group carries ``name`` and ``base_learning_rate`` beside torch's own keys. The schedule
    multiplies ``base_learning_rate`` at every step, so a group's own rate survives it.

    Args:
        model: The module to train; frozen parameters are left out.
        settings: Rates and decay.

    Returns:
        Non-empty groups in the order ``decay``, ``no_decay``, ``state_space``, those of single
        quantities, ``matrix``; behind each the same with a multiplier, such as ``decay_x0.5``.

    Raises:
        ConfigError: If a pattern matches no trained parameter, or two that match the same one
            disagree.
    """
    plan = _rates_and_decays(settings)
    factors = _factors(model, settings.learning_rate_multipliers)
    members: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = group_of(
                name,
                parameter,
                settings.state_space_learning_rates,
                muon=settings.kind == "muon",
            )
            members.setdefault((group, factors[name]), []).append(parameter)
    order = list(plan)
    groups = []
    for group, factor in sorted(members, key=lambda key: (order.index(key[0]), key[1] != 1, key)):
        rate, decay = plan[group]
        groups.append(
            {
                "name": group if factor == 1 else f"{group}_x{factor!r}",
                "params": members[group, factor],
                "lr": rate * factor,
                "base_learning_rate": rate * factor,
                "weight_decay": decay,
            }
        )
    return groups


def learning_rate_factors(
    names: Iterable[tuple[str, ...]], multipliers: Mapping[str, float]
) -> dict[str, float]:
    """Each parameter's factor, from shell-style patterns on names.

    Args:
        names: All names of each trained parameter: a tied one has several, and any may match.
        multipliers: Factor by pattern; ``*`` matches dots as well.

    Returns:
        Factor by first name; 1 where no pattern matches.

    Raises:
        ConfigError: If a pattern matches nothing, or two that match the same parameter disagree.
    """
    all_names = list(names)
    factors = {}
    unmatched = dict.fromkeys(multipliers)
    for aliases in all_names:
        hits = [
            pattern
            for pattern in multipliers
            if any(fnmatchcase(name, pattern) for name in aliases)
        ]
        for pattern in hits:
            unmatched.pop(pattern, None)
            if multipliers[pattern] != multipliers[hits[0]]:
                raise ConfigError(
                    f"optimizer.learning_rate_multipliers {hits[0]!r} and {pattern!r} both match "
                    f"{aliases[0]} but give it {multipliers[hits[0]]!r} and "
                    f"{multipliers[pattern]!r}; narrow one of them"
                )
        factors[aliases[0]] = multipliers[hits[0]] if hits else 1.0
    for pattern in unmatched:
        known = [name for aliases in all_names for name in aliases]
        near = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
        raise ConfigError(
            f"optimizer.learning_rate_multipliers {pattern!r} matches no trained parameter; the "
            f"nearest name is {near[0]!r}, and * stands for any part of a name"
        )
    return factors


def _rates_and_decays(settings: OptimizerSettings) -> dict[str, tuple[float, float]]:
    """Peak rate and weight decay by group."""
    state_space_rate = settings.state_space_learning_rate or settings.learning_rate
    own_rates = settings.state_space_learning_rates
    return {
        "decay": (settings.learning_rate, settings.weight_decay),
        "no_decay": (settings.learning_rate, 0.0),
        "state_space": (state_space_rate, 0.0),
        **{f"state_space.{name}": (rate, 0.0) for name, rate in own_rates.items()},
        MATRIX: (settings.learning_rate, settings.weight_decay),
    }


def _factors(model: nn.Module, multipliers: Mapping[str, float]) -> dict[str, float]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
    return learning_rate_factors(map(tuple, names.values()), multipliers)
