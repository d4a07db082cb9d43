"""The numbers of a run, taken out of DeepSpeed's engine and put back, by parameter name.

ZeRO keeps, for each group, one flat float32 vector a rank, with the two moments beside it. What a
rank holds of a parameter is a *fragment*: a run of its flattened elements. Saved by name and place,
fragments fit together again on any number of ranks, and nothing but numbers is ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one flattened parameter, as one rank holds them."""

    name: str
    start: int
    """First element, counted in the flattened parameter."""
    values: dict[str, torch.Tensor]
    """``weight``, ``exp_avg`` and ``exp_avg_sq``: float32 vectors of one length, views into the
    optimizer."""

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.values[WEIGHT].numel()


def fragments(engine: Any) -> Iterator[Fragment]:
    """What this rank's optimizer (ZeRO stage 1 or 2) holds of every parameter."""
    optimizer = engine.optimizer
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for group, flat in zip(
        optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True
    ):
        moments = _moments(optimizer.optimizer, flat)
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue  # wholly on other ranks
            place, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
            values = {WEIGHT: flat.detach().narrow(0, place, length)}
            for key, moment in moments.items():
                values[key] = moment.narrow(0, place, length)
            yield Fragment(names[id(parameter)], mapping.lp_fragment_address.start, values)


def whole_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What no optimizer holds: persistent buffers and frozen parameters, by name."""
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    known = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    trained_storage = {id(known[name]) for name in trained}
    return {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if id(value) not in trained_storage
    }


def optimizer_steps(engine: Any) -> int:
    """How many updates AdamW has made: its bias correction depends on it."""
    states = engine.optimizer.optimizer.state.values()
    steps = {int(state["step"]) for state in states if "step" in state}
    assert len(steps) <= 1, f"groups have made different numbers of updates: {sorted(steps)}"
    return steps.pop() if steps else 0


def restore(
    engine: Any,
    read_full: Callable[[str], torch.Tensor],
    read_slice: Callable[[str, str, int, int], torch.Tensor],
    steps: int,
) -> None:
    """Put saved numbers into a fresh engine, whatever the number of ranks that saved them.

    Args:
        engine: The engine to fill.
        read_full: Name of a parameter or buffer to its whole tensor.
        read_slice: (kind, name, start, length) to a float32 vector; kind is ``weight`` or a moment.
        steps: Updates made so far.
    """
    module: nn.Module = engine.module
    with torch.no_grad():
        seen: set[int] = set()
        for name, target in module.state_dict(keep_vars=True).items():
            if id(target) in seen:
                continue  # the tied head is the embedding
            seen.add(id(target))
            target.copy_(read_full(name))
        for fragment in fragments(engine):
            for kind, values in fragment.values.items():
                values.copy_(read_slice(kind, fragment.name, fragment.start, fragment.length))
    for state in engine.optimizer.optimizer.state.values():
        state["step"].fill_(float(steps))
    engine.global_steps = steps


def _moments(optimizer: torch.optim.Optimizer, flat: torch.Tensor) -> dict[str, torch.Tensor]:
    """AdamW's moments of one flat vector, made here if no step was taken yet."""
    state = optimizer.state[flat]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        for key in MOMENTS:
            state[key] = torch.zeros_like(flat)
    return {key: state[key] for key in MOMENTS}
