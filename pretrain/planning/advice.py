"""What to change where the memory does not suffice, with numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.planning.plan import can_shard, changed_run
from pretrain.planning.run_shape import run_memory

_GIB = 2**30
_SMALL_BUCKET_ELEMENTS = 50_000_000


def out_of_memory_advice(
    config: RunConfig, world_size: int, available_bytes: int, *, device_type: str
) -> list[str]:
    """Say what the run needs by the cost model, and what single changes would make of that.

    Args:
        config: The run that did not fit.
        world_size: Number of ranks.
        available_bytes: Memory of one rank's device.
        device_type: ``cuda`` or ``cpu``.

    Returns:
        One line for the need, then one for each setting that lowers it, those that cost least speed
        first.
    """
    now = run_memory(config, world_size, device_type)
    largest = sorted(now.device.items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in largest)
    need = f"{_gib(now.device_bytes)} of the {_gib(available_bytes)} of this rank's device"
    lines = [f"estimated need: {need}; most of it: {parts}"]
    for text, changed in _changes(config):
        try:
            needed = run_memory(changed, world_size, device_type).device_bytes
        except ConfigError:
            continue
        if needed < now.device_bytes:
            lines.append(f"{text}: {_gib(needed)}")
    return lines + _longer_groups(config, world_size, available_bytes, device_type=device_type)


def _longer_groups(
    config: RunConfig, world_size: int, available_bytes: int, *, device_type: str
) -> list[str]:
    """Say how many ranks would have to share inputs: as few as suffice, or as many as can.

    It is the one change that shortens what a rank has of an input, and costs micro-batches.
    """
    parallel, ranks = config.parallel, config.parallel.context
    line, least = "", run_memory(config, world_size, device_type).device_bytes
    whole = config.data.input_length_tokens
    stages = config.train.curriculum
    shortest = min([whole, *(stage.input_length_tokens or whole for stage in stages)])
    for context in range(2 * ranks, world_size + 1, ranks):
        longer = parallel.model_copy(update={"context": context})
        changed = config.model_copy(update={"parallel": longer})
        try:
            longer.check(config.model, shortest, compiled=config.train.compile)
            changed.most_accumulation_steps(world_size)
        except ValueError:
            continue
        needed = run_memory(changed, world_size, device_type).device_bytes
        if needed < least:
            line, least = f"parallel.context={context}: {_gib(needed)}", needed
        if needed <= available_bytes:
            break
    return [line] if line else []


def _changes(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """Single changes and the runs they make, in the order of what they cost."""
    train, settings = config.train, config.deepspeed
    zero: dict[str, Any] = settings.raw.get("zero_optimization", {})
    if settings.zero_stage > 0 and "reduce_bucket_size" not in zero:
        smaller = {"reduce_bucket_size": _SMALL_BUCKET_ELEMENTS}
        raw = settings.raw | {"zero_optimization": zero | smaller}
        yield (
            f"deepspeed.raw.zero_optimization.reduce_bucket_size={_SMALL_BUCKET_ELEMENTS}",
            changed_run(config, "deepspeed", raw=raw),
        )
    for stage in range(settings.zero_stage + 1, 4):
        if can_shard(config, stage):
            yield (
                f"deepspeed.zero_stage={stage}",
                changed_run(config, "deepspeed", zero_stage=stage),
            )
    if train.micro_batch_size > 1 and train.micro_batch_size % 2 == 0:
        size = train.micro_batch_size // 2
        yield (
            f"train.micro_batch_size={size}",
            changed_run(config, "train", micro_batch_size=size),
        )
    for kind in ("selective", "full"):
        chosen = {"activation_checkpointing": kind, "activation_checkpointing_every_layers": 1}
        yield f"train.activation_checkpointing={kind}", changed_run(config, "train", **chosen)
    if settings.zero_stage > 0 and settings.offload_optimizer == "none":
        yield (
            "deepspeed.offload_optimizer=cpu",
            changed_run(config, "deepspeed", offload_optimizer="cpu"),
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"
