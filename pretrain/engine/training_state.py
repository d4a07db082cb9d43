"""The numbers of a run, taken out of DeepSpeed's engine and put back, by parameter name.

What a rank holds of a parameter is a *fragment*: a run of its flattened elements. Saved by name and
place, fragments fit together again on any number of ranks and under any ZeRO stage, and nothing but
numbers is ever read.

- Stage 0: every rank holds all; each saves a share, so that none writes more than another.
- Stages 1 and 2: one flat float32 vector a group and rank, with the moments beside it.
- Stage 3: of each parameter every rank holds an equal part, in flat float32 vectors too.

Optimizers whose state is no vector beside the weights (Adafactor) work at stage 0 alone; what they
hold is saved whole by rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pretrain.checkpoints.snapshot import WEIGHT, Snapshot

ReadSlice = Callable[[str, str, int, int], torch.Tensor]


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one flattened parameter, as one rank holds them."""

    name: str
    start: int
    """First element, counted in the flattened parameter."""
    values: dict[str, torch.Tensor]
    """``weight`` and the optimizer's states: float32 vectors of one length, views into it."""

    @property
    def length(self) -> int:
        """Number of elements."""
        return self.values[WEIGHT].numel()


def zero_stage(engine: Any) -> int:
    """The ZeRO stage of a DeepSpeed engine."""
    return int(engine.zero_optimization_stage())


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside of whatever DeepSpeed put around it."""
    optimizer = engine.optimizer if zero_stage(engine) == 0 else engine.optimizer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer), "DeepSpeed wraps torch optimizers"
    return optimizer


def fragments(engine: Any, *, shared_out: bool = False) -> Iterator[Fragment]:
    """What this rank holds of every trained parameter.

    Args:
        engine: The DeepSpeed engine.
        shared_out: At stage 0, where every rank holds all, only this rank's share.
    """
    stage = zero_stage(engine)
    if stage == 0:
        yield from _whole_fragments(engine, shared_out=shared_out)
    elif stage == 3:
        yield from _partitioned_fragments(engine)
    else:
        yield from _flat_fragments(engine)


def _names(engine: Any) -> dict[int, str]:
    return {id(parameter): name for name, parameter in engine.module.named_parameters()}


def _whole_fragments(engine: Any, *, shared_out: bool) -> Iterator[Fragment]:
    optimizer = inner_optimizer(engine)
    names = _names(engine)
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if shared_out else (0, 1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            size = parameter.numel()
            start, stop = size * rank // world_size, size * (rank + 1) // world_size
            values = {WEIGHT: parameter.detach().view(-1)[start:stop]}
            for kind, state in _vector_states(optimizer, parameter).items():
                values[kind] = state.view(-1)[start:stop]
            yield Fragment(names[id(parameter)], start, values)


def _flat_fragments(engine: Any) -> Iterator[Fragment]:
    optimizer = engine.optimizer
    names = _names(engine)
    flats = optimizer.single_partition_of_fp32_groups
    for group, flat in zip(optimizer.bit16_groups, flats, strict=True):
        states = _vector_states(optimizer.optimizer, flat)
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue  # wholly on other ranks
            place, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
            values = {WEIGHT: flat.detach().narrow(0, place, length)}
            for kind, state in states.items():
                values[kind] = state.narrow(0, place, length)
            yield Fragment(names[id(parameter)], mapping.lp_fragment_address.start, values)


def _partitioned_fragments(engine: Any) -> Iterator[Fragment]:
    optimizer = engine.optimizer
    names = _names(engine)
    for number, group in enumerate(optimizer.fp16_groups):
        swapped = optimizer._swappable_optimizer_subgroup(number)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_in(number)
        flat = optimizer.fp32_partitioned_groups_flat[number]
        states = _vector_states(optimizer.optimizer, flat)
        for parameter in group:
            start, length = _own_part(parameter)
            if length <= 0:
                continue  # more ranks than elements
            _, place, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            values = {WEIGHT: flat.detach().narrow(0, place, length)}
            for kind, state in states.items():
                values[kind] = state.narrow(0, place, length)
            yield Fragment(names[id(parameter)], start, values)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_out(number)


def _own_part(parameter: Any) -> tuple[int, int]:
    """First element and number of elements of this rank's part, without its padding."""
    size = int(parameter.ds_tensor.ds_numel)
    start = size * dist.get_rank()
    return start, min(size, int(parameter.ds_numel) - start)


def _vector_states(
    optimizer: torch.optim.Optimizer, parameter: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The optimizer's states that have one element for each of a parameter, by kind."""
    return {
        kind: state
        for kind, state in optimizer.state[parameter].items()
        if torch.is_tensor(state) and state.ndim > 0 and state.shape == parameter.shape
    }


def clear_optimizer_states(engine: Any) -> None:
    """Set all that the optimizer remembers to zero, as if it had never made a step."""
    with torch.no_grad():
        for fragment in fragments(engine):
            for kind, values in fragment.values.items():
                if kind != WEIGHT:
                    values.zero_()
        for states in inner_optimizer(engine).state.values():
            for state in states.values():
                if torch.is_tensor(state):
                    state.zero_()


def whole_tensors(engine: Any) -> dict[str, torch.Tensor]:
    """What is no fragment, by name: persistent buffers and frozen parameters.

    States of the optimizer that are no vectors are there as ``optimizer/KIND/NAME``. Every rank
    must call this: at stage 3 frozen parameters are gathered.
    """
    module: nn.Module = engine.module
    found = {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if not (isinstance(value, nn.Parameter) and value.requires_grad)
    }
    if zero_stage(engine) == 3:
        found = {name: _gathered(value) for name, value in found.items()}
    if zero_stage(engine) == 0:
        optimizer, names = inner_optimizer(engine), _names(engine)
        for parameter, states in optimizer.state.items():
            for kind in states.keys() - _vector_states(optimizer, parameter).keys() - {"step"}:
                if torch.is_tensor(states[kind]):
                    found[f"optimizer/{kind}/{names[id(parameter)]}"] = states[kind]
    return found


def _gathered(value: torch.Tensor) -> torch.Tensor:
    """A whole copy of a parameter that ZeRO stage 3 has cut over the ranks."""
    if not hasattr(value, "ds_id"):
        return value
    import deepspeed

    with deepspeed.zero.GatheredParameters([value]):
        return value.detach().clone()


def fill_snapshot(engine: Any, snapshot: Snapshot, *, first_rank: bool) -> None:
    """Copy this rank's numbers to host memory, into the same memory at every call.

    Every rank must call this.
    """
    with torch.no_grad():
        for fragment in fragments(engine, shared_out=True):
            snapshot.places[fragment.name] = (fragment.start, fragment.length)
            for kind, values in fragment.values.items():
                _copy_to_host(snapshot.tensors, f"{kind}/{fragment.name}", values)
        for name, value in whole_tensors(engine).items():
            if first_rank:
                _copy_to_host(snapshot.whole, name, value.detach())
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _copy_to_host(kept: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    if name not in kept or kept[name].shape != value.shape:
        on_device = value.device.type == "cuda"
        kept[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=on_device)
    kept[name].copy_(value, non_blocking=True)


def restore(
    engine: Any,
    read_full: Callable[[str], torch.Tensor],
    read_slice: ReadSlice,
    read_state: Callable[[str, str], torch.Tensor],
    steps: int,
) -> None:
    """Put saved numbers into an engine, whatever ranks and ZeRO stage they come from.

    Args:
        engine: The engine to fill; its optimizer must have made its states.
        read_full: Name of a parameter or buffer to its whole tensor.
        read_slice: (kind, name, start, length) to a float32 vector; kind is ``weight`` or a state
            of the optimizer.
        read_state: (kind, name) to a state of the optimizer that is no vector.
        steps: Updates made so far.
    """
    module: nn.Module = engine.module
    with torch.no_grad():
        seen: set[int] = set()
        for name, target in module.state_dict(keep_vars=True).items():
            if id(target) in seen:
                continue  # the tied head is the embedding
            seen.add(id(target))
            if hasattr(target, "ds_id"):
                _fill_part(name, target, read_full, read_slice)
            else:
                target.copy_(read_full(name))
        for fragment in fragments(engine):
            for kind, values in fragment.values.items():
                values.copy_(read_slice(kind, fragment.name, fragment.start, fragment.length))
        if zero_stage(engine) == 0:
            for name, value in whole_tensors(engine).items():
                if name.startswith("optimizer/"):
                    _, kind, parameter = name.split("/", 2)
                    value.copy_(read_state(kind, parameter))
    for states in inner_optimizer(engine).state.values():
        if "step" in states:
            states["step"].fill_(float(steps))
    engine.global_steps = steps


def _fill_part(
    name: str, parameter: Any, read_full: Callable[[str], torch.Tensor], read_slice: ReadSlice
) -> None:
    """A parameter under ZeRO stage 3: this rank's part, and the whole where it is kept at hand."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    start, length = _own_part(parameter)
    if parameter.requires_grad and length > 0:
        parameter.ds_tensor.narrow(0, 0, length).copy_(read_slice(WEIGHT, name, start, length))
    elif length > 0:
        whole = read_full(name).view(-1)
        parameter.ds_tensor.narrow(0, 0, length).copy_(whole[start : start + length])
    if parameter.ds_status == ZeroParamStatus.AVAILABLE:
        parameter.data.copy_(read_full(name))
