"""Memory of one rank, by component and ZeRO stage.

Parameters are float32 whatever the precision, and with P of them on W ranks DeepSpeed 0.19 holds
(read in its source, and compared with measured memory by the tests):

| stage | weights | master copy | optimizer | gradients |
|---|---|---|---|---|
| 0 | 4 P | | 8 P | 4 P |
| 1 | 4 P | 4 P / W | 8 P / W | 4 P, and 4 P / W of them reduced |
| 2 | 4 P | 4 P / W | 8 P / W | 4 P / W, twice while it accumulates |
| 3 | 4 P / W, and what is gathered | 4 P / W | 8 P / W | 4 P / W |

8 stands for AdamW. The master copy is as large as in mixed precision although the weights are
float32 already: stages 1 and 2 clone them, and stage 3 would share them but compares a
``torch.device`` with a string and clones them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FLOAT32_BYTES = 4
_WHOLE_REDUCTION_ELEMENTS = 500_000_000
"""Gradients that DeepSpeed flattens at a time at stage 0."""

OffloadPlace = Literal["none", "cpu", "nvme"]
Moment = Literal["backward", "reduction", "update"]


@dataclass(frozen=True)
class ModelMemory:
    """What of a model and a micro-batch decides about memory."""

    parameters: int
    """Numbers that are trained."""
    embedding_parameters: int
    """Of the embedding, which is also the output head."""
    optimizer_bytes: int
    """Of the optimizer's states, if they were all on one rank."""
    activations_bytes: int
    """What the forward pass keeps for the backward pass, without the logits."""
    logits_bytes: int
    """Logits and what the loss makes of them."""
    cast_weights_bytes: int
    """Copies of the matrices that autocast makes for the forward pass."""
    kept_casts: bool
    """Whether these copies stay until the backward pass: not where layers are computed again."""


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed spreads it."""

    zero_stage: int
    world_size: int
    accumulates: bool
    """Whether a step has several micro-batches on a rank."""
    overlaps: bool
    """Whether gradients are reduced while the backward pass goes on: a second bucket."""
    bucket_elements: int
    """Gradients that are reduced at a time."""
    live_elements: int
    """Parameters that stage 3 keeps gathered at most."""
    offload_optimizer: OffloadPlace = "none"
    offload_parameters: OffloadPlace = "none"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank at the moment of the highest need."""

    device: Mapping[str, int]
    """By component, on the accelerator."""
    moment: Moment
    """When that is: as the backward pass begins, as it ends and gradients are reduced, or in the
    optimizer's update."""
    host: Mapping[str, int]
    """By component, in the node's memory."""
    disk: Mapping[str, int]
    """By component, on a local disk."""

    @property
    def device_bytes(self) -> int:
        """The sum on the accelerator."""
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        """The sum in the node's memory."""
        return sum(self.host.values())


def plan_memory(model: ModelMemory, sharding: Sharding) -> MemoryPlan:
    """Add up what one rank holds at each moment of a step; the highest sum counts.

    Args:
        model: Sizes.
        sharding: Stage, ranks, buckets and places.
    """
    resting, host, disk = _resting(model, sharding)
    moments: dict[Moment, dict[str, int]] = {
        "backward": {**resting, **_in_backward(model, sharding)},
        "update": {**resting, **_in_update(model, sharding)},
    }
    if sharding.zero_stage < 2:  # the others reduce while they go backward
        moments["reduction"] = {**resting, **_in_reduction(model, sharding)}
    highest = max(moments, key=lambda moment: sum(moments[moment].values()))
    return MemoryPlan(moments[highest], highest, host, disk)


def _resting(
    model: ModelMemory, sharding: Sharding
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """What stays from step to step: on the device, in the host's memory, on disk."""
    whole, share, ranks = _whole(model), _share(model, sharding), sharding.world_size
    if sharding.zero_stage == 0:
        return {"weights": whole, "optimizer": model.optimizer_bytes}, {}, {}
    device: dict[str, int] = {}
    host: dict[str, int] = {}
    disk: dict[str, int] = {}
    places = {"none": device, "cpu": host, "nvme": disk}
    if sharding.zero_stage == 3:
        places[sharding.offload_parameters]["weights"] = share
    else:
        device["weights"] = whole
    optimizer = places[sharding.offload_optimizer]
    optimizer["master weights"] = share
    optimizer["optimizer"] = -(-model.optimizer_bytes // ranks)
    if sharding.offload_optimizer != "none":
        # What comes down is kept beside what the optimizer reads, and stages 1 and 2 send the
        # weights up through a buffer of their own.
        host["gradients"] = (2 if sharding.accumulates or sharding.zero_stage == 3 else 1) * share
        if sharding.zero_stage < 3:
            host["weights on their way"] = share
    return device, host, disk


def _in_backward(model: ModelMemory, sharding: Sharding) -> dict[str, int]:
    """Beside the resting parts: all activations are there, and the first gradients come."""
    stage, whole, share = sharding.zero_stage, _whole(model), _share(model, sharding)
    before = {0: whole, 1: whole, 2: share, 3: 0}[stage] if sharding.accumulates else 0
    # Reduced gradients have a place of their own, at stage 3 the only one.
    reduced = share if stage >= 2 or (stage == 1 and sharding.overlaps) else 0
    held = before + reduced
    if stage >= 2 and sharding.offload_optimizer != "none":
        held = 0
    # The tied embedding gets gradients from three places before they are one. By then the logits
    # are gone.
    embedding = max(0, 3 * FLOAT32_BYTES * model.embedding_parameters - model.logits_bytes)
    parts = {
        "gradients": held + embedding,
        "communication buckets": _bucket(sharding),
        "activations": model.activations_bytes,
        "logits": model.logits_bytes,
    }
    if stage >= 2 or sharding.overlaps:
        parts["communication buckets"] += _flattened(model, sharding)
    if stage == 3 and sharding.world_size > 1:
        live = min(model.parameters, sharding.live_elements)
        parts["gathered weights"] = FLOAT32_BYTES * live
    if model.kept_casts:
        parts["low-precision weights"] = model.cast_weights_bytes
    elif model.cast_weights_bytes > model.activations_bytes:
        parts["activations"] = model.cast_weights_bytes  # the forward pass needs more
    return parts


def _in_reduction(model: ModelMemory, sharding: Sharding) -> dict[str, int]:
    """Beside the resting parts at stages 0 and 1: all gradients are there, no activations."""
    if sharding.zero_stage == 0:
        elements = min(model.parameters, _WHOLE_REDUCTION_ELEMENTS)
        buckets = FLOAT32_BYTES * elements
        return {"gradients": _whole(model), "communication buckets": buckets}
    return {
        "gradients": _whole(model) + _share(model, sharding),
        "communication buckets": _bucket(sharding) + _flattened(model, sharding),
    }


def _in_update(model: ModelMemory, sharding: Sharding) -> dict[str, int]:
    """Beside the resting parts."""
    if sharding.zero_stage == 0:
        return {"gradients": _whole(model)}
    parts = {}
    if sharding.offload_optimizer == "none":
        # As they were reduced, and laid end to end.
        parts["gradients"] = 2 * _share(model, sharding)
    if sharding.zero_stage == 3:  # whose bucket is never given back
        parts["communication buckets"] = _bucket(sharding)
    return parts


def _whole(model: ModelMemory) -> int:
    """Bytes of all weights, or of all gradients."""
    return FLOAT32_BYTES * model.parameters


def _share(model: ModelMemory, sharding: Sharding) -> int:
    """One rank's part of them."""
    return -(-_whole(model) // sharding.world_size)


def _bucket(sharding: Sharding) -> int:
    """Where gradients wait for their reduction; overlap fills one while another is reduced."""
    if sharding.zero_stage == 0:
        return 0
    buckets = 2 if sharding.overlaps and sharding.zero_stage < 3 else 1
    return buckets * FLOAT32_BYTES * sharding.bucket_elements


def _flattened(model: ModelMemory, sharding: Sharding) -> int:
    """The copy that each reduction makes of what is in the bucket."""
    return FLOAT32_BYTES * min(model.parameters, sharding.bucket_elements)
