"""What a run needs on given machines: memory, communication, time and money, by arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.planning.communication import Communication, plan_communication
from pretrain.planning.devices import Device
from pretrain.planning.memory import FLOAT32_BYTES, MemoryPlan, OffloadPlace
from pretrain.planning.run_shape import (
    context_bytes,
    optimizer_bytes,
    rank_lengths,
    run_memory,
    sharding,
)
from spade_model.cost import (
    count_parameters,
    forward_flops_per_sample,
    kernel_flops_per_forward,
    training_flops_per_sample,
)

USABLE_MEMORY = 0.9
"""Share of a device's memory that tensors may fill: the rest is the driver's, the collectives' and
the allocator's gaps."""
HOST_COPY_BYTES_PER_SECOND = 20e9
"""From a device to its host's memory, on PCIe 4 or better."""

_SECONDS_PER_DAY = 86_400.0
_LAYOUTS: tuple[tuple[int, OffloadPlace, OffloadPlace], ...] = (
    (0, "none", "none"),
    (1, "none", "none"),
    (2, "none", "none"),
    (3, "none", "none"),
    (2, "cpu", "none"),
    (3, "cpu", "none"),
    (3, "cpu", "cpu"),
)


@dataclass(frozen=True)
class Machines:
    """What the run would be given."""

    device: Device
    nodes: int
    devices_per_node: int
    disk_bytes_per_second: float
    """Of the file system that holds the run folder, for all ranks together."""

    @property
    def world_size(self) -> int:
        """Number of ranks, one a device."""
        return self.nodes * self.devices_per_node

    @property
    def device_type(self) -> str:
        """As torch calls it."""
        return "cpu" if self.device.name == "cpu" else "cuda"


@dataclass(frozen=True)
class LayoutPlan:
    """One way of spreading the states over ranks and memories."""

    zero_stage: int
    offload_optimizer: OffloadPlace
    offload_parameters: OffloadPlace
    configured: bool
    """Whether the configuration says this."""
    memory: MemoryPlan
    fits: bool
    """Whether `USABLE_MEMORY` of the device's memory holds it."""
    largest_micro_batch_size: int
    """That fits and divides the global batch; 0 where none does."""
    host_bytes_per_node: int
    """With the snapshot of a checkpoint that is written in the background."""
    communication: Communication
    communication_seconds: float
    """Of one step, for gradients and weights, and between ranks that share inputs."""
    tokens_per_second: tuple[float, float]
    """Over all ranks: careful and hopeful. Transfers of offloaded states are not counted."""


@dataclass(frozen=True)
class RunPlan:
    """Everything, for the layouts that the optimizer allows."""

    machines: Machines
    parameters: int
    micro_batches_per_step: int
    tokens_per_step: int
    tokens_in_run: int
    flops_per_step: int
    """Of the model; what is computed again is not the model's work."""
    checkpoint_bytes: int
    checkpoint_write_seconds: float
    """In the background, at the disk's rate."""
    checkpoint_stall_seconds: float
    """For which training waits: the copy to the host's memory, or the writing itself."""
    layouts: tuple[LayoutPlan, ...]

    @property
    def configured(self) -> LayoutPlan:
        """The layout that the configuration says."""
        return next(layout for layout in self.layouts if layout.configured)

    def days(self, tokens: int) -> tuple[float, float]:
        """Days to so many tokens with the configured layout: hopeful and careful."""
        slow, fast = self.configured.tokens_per_second
        return tokens / fast / _SECONDS_PER_DAY, tokens / slow / _SECONDS_PER_DAY

    def device_hours(self, tokens: int) -> tuple[float, float]:
        """The same as hours of all devices together, which is what is paid for."""
        few, many = self.days(tokens)
        return 24 * self.machines.world_size * few, 24 * self.machines.world_size * many


def plan_run(config: RunConfig, machines: Machines) -> RunPlan:
    """Work everything out.

    Args:
        config: The run. A curriculum is left out: batch and length are those of its end.
        machines: What it would be given.

    Raises:
        ConfigError: If the batch cannot be cut evenly over the ranks, or the device lacks the
            precision.
    """
    parameters = count_parameters(config.model).total
    batch = config.train.global_batch_size
    objective = config.data.make_objective()
    lengths = (objective.input_length_tokens, objective.target_length_tokens)
    tokens_per_step = batch * objective.window_tokens
    checkpoint_bytes = FLOAT32_BYTES * parameters + optimizer_bytes(config)
    write_seconds = checkpoint_bytes / machines.disk_bytes_per_second
    copy_seconds = checkpoint_bytes / machines.world_size / HOST_COPY_BYTES_PER_SECOND
    settings = config.deepspeed
    own = (settings.zero_stage, settings.offload_optimizer, settings.offload_parameters)
    layouts = []
    for layout in dict.fromkeys((own, *_LAYOUTS)):
        if layout == own or can_shard(config, layout[0]):
            names = ("zero_stage", "offload_optimizer", "offload_parameters")
            changes = dict(zip(names, layout, strict=True))
            changed = changed_run(config, "deepspeed", **changes)
            layouts.append(_plan_layout(changed, machines, configured=layout == own))
    layouts.sort(key=lambda plan: (plan.offload_optimizer != "none", plan.zero_stage))
    return RunPlan(
        machines=machines,
        parameters=parameters,
        micro_batches_per_step=config.accumulation_steps(machines.world_size),
        tokens_per_step=tokens_per_step,
        tokens_in_run=tokens_per_step * config.train.max_steps,
        flops_per_step=batch * training_flops_per_sample(config.model, *lengths),
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_write_seconds=write_seconds,
        checkpoint_stall_seconds=copy_seconds if config.checkpoint.in_background else write_seconds,
        layouts=tuple(layouts),
    )


def changed_run(config: RunConfig, section: str, **changes: Any) -> RunConfig:
    """The run with other values in one section; they are not checked."""
    part = getattr(config, section).model_copy(update=changes)
    return config.model_copy(update={section: part})


def can_shard(config: RunConfig, zero_stage: int) -> bool:
    """Whether the run's optimizer works at a ZeRO stage."""
    try:
        config.optimizer.check_sharding(zero_stage)
    except ConfigError:
        return False
    return True


def _plan_layout(config: RunConfig, machines: Machines, *, configured: bool) -> LayoutPlan:
    ranks = machines.world_size
    shards = sharding(config, ranks, machines.device_type)
    memory = run_memory(config, ranks, machines.device_type)
    parameters = count_parameters(config.model)
    communication = plan_communication(
        parameters.total,
        parameters.embedding,
        shards,
        config.accumulation_steps(ranks),
        context_ranks=config.parallel.context,
        context_bytes=context_bytes(config),
    )
    links = (machines.device, machines.nodes, machines.devices_per_node)
    on_wire, between_layers = communication.seconds(*links), communication.context_seconds(*links)
    snapshot = 0
    if config.checkpoint.in_background:
        snapshot = -(-(FLOAT32_BYTES * parameters.total + optimizer_bytes(config)) // ranks)
    slow, fast = (_compute_seconds(config, machines, used) for used in machines.device.utilisation)
    # Layers wait for what other parts tell them; only gradients can travel meanwhile.
    slow, fast = slow + between_layers, fast + between_layers
    hidden = max(fast, on_wire) if shards.overlaps else fast + on_wire
    tokens = config.train.global_batch_size * config.data.make_objective().window_tokens
    return LayoutPlan(
        zero_stage=shards.zero_stage,
        offload_optimizer=shards.offload_optimizer,
        offload_parameters=shards.offload_parameters,
        configured=configured,
        memory=memory,
        fits=memory.device_bytes <= USABLE_MEMORY * machines.device.memory_bytes,
        largest_micro_batch_size=_largest_micro_batch_size(config, machines),
        host_bytes_per_node=machines.devices_per_node * (memory.host_bytes + snapshot),
        communication=communication,
        communication_seconds=on_wire + between_layers,
        tokens_per_second=(tokens / (slow + on_wire), tokens / hidden),
    )


def _largest_micro_batch_size(config: RunConfig, machines: Machines) -> int:
    train, ranks = config.train, machines.world_size
    stages = [stage.global_batch_size or train.global_batch_size for stage in train.curriculum]
    share = math.gcd(train.global_batch_size, *stages) * config.parallel.context // ranks
    best = 0
    for size in range(1, share + 1):
        if share % size:
            continue
        tried = changed_run(config, "train", micro_batch_size=size)
        needed = run_memory(tried, ranks, machines.device_type).device_bytes
        if needed > USABLE_MEMORY * machines.device.memory_bytes:
            break
        best = size
    return best


def _compute_seconds(config: RunConfig, machines: Machines, utilisation: float) -> float:
    """Time of one step's arithmetic on each rank, with what is computed again.

    Ranks that share inputs have a part of the encoder's work and of that on its output, and all
    else of the decoder's. What they compute twice at the ends of parts is not counted.
    """
    train, device = config.train, machines.device
    lengths = rank_lengths(config)
    samples = train.global_batch_size * config.parallel.context / machines.world_size
    sample = float(training_flops_per_sample(config.model, *lengths))
    if train.activation_checkpointing == "full":
        forward = forward_flops_per_sample(config.model, *lengths)
        sample += (forward.total - forward.head) / train.activation_checkpointing_every_layers
    single = "fp32" if train.matrix_product_precision == "ieee" else "tf32"
    if device.name == "cpu" or "tf32" not in device.peak_flops_per_second:
        single = "fp32"
    # State-space kernels are float32, made for each micro-batch, with a gradient twice as dear.
    kernels = 3 * kernel_flops_per_forward(config.model, lengths[0])
    kernels *= config.accumulation_steps(machines.world_size)
    precision = single if train.precision == "fp32" else train.precision
    seconds = samples * sample / device.peak(precision) + kernels / device.peak(single)
    return seconds / utilisation
