"""What is looked at before a run is started or submitted: what would fail then, fails now.

Nothing is written, and torch is not loaded, so that a login node answers in seconds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launch.clusters.data_check import data_problems
from launch.clusters.job import Job
from launch.clusters.jobs import last_start, launcher_at_work, read_row
from launch.clusters.settings import NodeSettings
from launch.console import human_bytes, warn
from launch.failures import CommandError, describe
from pretrain.config import RunConfig
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder

if TYPE_CHECKING:
    from pretrain.planning.devices import Device
    from pretrain.planning.plan import LayoutPlan, Machines

_DISK_BYTES_PER_SECOND = 2e9  # decides about times, which nobody asks for here
_NAMED_NUMBERS = 8


def check_before_launch(job: Job, nodes: NodeSettings, *, data_here: bool = True) -> RunConfig:
    """Check that a run can start: configuration, data, checkpoint, batch, memory, folder.

    What needs no remedy is told on standard error: that the run is done already, that somebody
    seems to be training it, that a damaged checkpoint will be passed over.

    Args:
        job: What is to run, and on how many ranks.
        nodes: The machines; its device must hold a rank's share of the run.
        data_here: Whether this machine sees the data and the run folder as the ranks will. If not,
            only the configuration and the numbers are checked.

    Returns:
        The configuration.

    Raises:
        CommandError: One line a problem.
    """
    try:
        if data_here:
            config = job.load()
        else:
            config = RunConfig.load(job.config, job.overrides, data_here=False)
    except (ValueError, OSError) as error:
        raise CommandError("\n".join(describe(error))) from None
    problems = [*_batch_problems(config, job.world_sizes)]
    if not problems:
        problems += _memory_problems(config, job, nodes)
    if data_here:
        problems += _place_problems(config, nodes)
        try:
            problems += [*_folder_problems(config.run_path), *_others_problems(config.run_path)]
            problems += _checkpoint_problems(config)
            problems += _tolerated(config, data_problems(config))
        except (ValueError, OSError) as error:
            problems += describe(error)
    if problems:
        raise CommandError("\n".join(problems))
    return config


def _batch_problems(config: RunConfig, world_sizes: list[int]) -> Iterator[str]:
    """Whether every batch of the run can be cut over every number of ranks it may have."""
    wrong, first = [], ""
    for ranks in world_sizes:
        try:
            config.most_accumulation_steps(ranks)
        except ValueError as error:
            wrong.append(ranks)
            first = first or str(error).partition(";")[0]
    if not wrong:
        return
    train = config.train
    batches = {stage.global_batch_size or train.global_batch_size for stage in train.curriculum}
    micro_batches = math.gcd(train.global_batch_size, *batches) // train.micro_batch_size
    context = config.parallel.context
    would_do = [context * n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    others = f", nor over {_numbers(wrong[1:])}" if wrong[1:] else ""
    remedy = f"use {_numbers(would_do)} processes"
    if all(ranks % context == 0 for ranks in world_sizes):
        groups = [ranks // context for ranks in world_sizes]
        samples = train.micro_batch_size * math.lcm(*groups)
        remedy += f", or batches that are multiples of {samples}"
    yield f"{first}{others}; {remedy}"


def _numbers(numbers: list[int]) -> str:
    """Some numbers for a sentence, the largest ones where there are many."""
    shown = numbers[-_NAMED_NUMBERS:]
    *most, last = (str(number) for number in shown)
    listed = f"{', '.join(most)} or {last}" if most else last
    return listed if len(shown) == len(numbers) else f"… {listed}"


def _memory_problems(config: RunConfig, job: Job, nodes: NodeSettings) -> Iterator[str]:
    """Whether a device holds a rank's share, with the most ranks and with the fewest."""
    if nodes.device is None:
        return
    from pretrain.planning.plan import Machines, plan_run

    try:
        device = _device(nodes.device)
        for node_count in sorted({job.min_nodes, job.nodes}):
            machines = Machines(device, node_count, job.processes_per_node, _DISK_BYTES_PER_SECOND)
            planned = plan_run(config, machines)
            if not planned.configured.fits:
                yield _too_large(config, machines, planned.layouts, planned.configured)
                return
    except ValueError as error:
        yield from describe(error)


def _device(name: str) -> Device:
    """As ``spade plan --device`` names it; only the measured one needs torch."""
    from pretrain.planning.devices import DEVICES

    if name in DEVICES:
        return DEVICES[name]
    from pretrain.planning.this_machine import find_device

    return find_device(name)


def _too_large(
    config: RunConfig, machines: Machines, layouts: tuple[LayoutPlan, ...], own: LayoutPlan
) -> str:
    from pretrain.planning.plan import USABLE_MEMORY

    if own.largest_micro_batch_size:
        remedy = f"use train.micro_batch_size={own.largest_micro_batch_size}"
    else:
        fitting = [layout for layout in layouts if layout.fits]
        remedy = "use more devices, a smaller model or train.activation_checkpointing=full"
        if fitting:
            remedy = f"use deepspeed.zero_stage={fitting[0].zero_stage}"
            if fitting[0].offload_optimizer != "none":
                remedy += f" deepspeed.offload_optimizer={fitting[0].offload_optimizer}"
            if fitting[0].offload_parameters != "none":
                remedy += f" deepspeed.offload_parameters={fitting[0].offload_parameters}"
    usable = USABLE_MEMORY * machines.device.memory_bytes
    return (
        f"train.micro_batch_size {config.train.micro_batch_size}: one of {machines.world_size} "
        f"ranks needs about {human_bytes(own.memory.device_bytes)}, {machines.device.name} has "
        f"{human_bytes(usable)} to use; {remedy}, or see spade plan"
    )


def _place_problems(config: RunConfig, nodes: NodeSettings) -> Iterator[str]:
    """Relative paths must mean the same here, where they are checked, and on the machines."""
    folder = nodes.working_folder
    if folder is None or (folder.is_dir() and folder.samefile(Path.cwd())):
        return
    data = config.data
    named: list[tuple[str, Path | str]] = [("run_dir", config.run_dir)]
    named += [("data.train", place) for place in data.locations().values()]
    named += [("data.heldout", place) for place in data.heldout_locations().values()]
    named.append(("data.tokenizer", data.tokenizer))
    if config.initial_weights is not None:
        named.append(("initial_weights", config.initial_weights))
    relative = [field for field, place in named if isinstance(place, Path) and not place.root]
    if relative:
        yield (
            f"nodes.working_folder {folder} is not the current folder, where {relative[0]} was "
            f"looked for; start from there (cd {folder}), or make the run's paths absolute"
        )


def _folder_problems(run: Path) -> Iterator[str]:
    """Whether the run's folder can be made and written, without doing it."""
    place = run.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield f"run_dir: {place} is no folder; choose another run_dir"
    elif not os.access(place, os.W_OK | os.X_OK):
        yield f"run_dir: {place} cannot be written; choose another run_dir"


def _others_problems(run: Path) -> Iterator[str]:
    """Whether somebody else is training the run; two at a time destroy it.

    Only of a launcher on this host that is known for sure; what else looks like it is told.
    """
    start = last_start(run)
    process = None if start is None else start.get("process")
    if start is not None and process != os.getpid() and launcher_at_work(start):
        yield f"{run}: process {process} of this host is training it; wait for it, or stop it first"
        return
    row = read_row(run)
    if row.state == "running" and row.silent_seconds is not None:
        warn(
            f"{run}: was at step {row.step} {row.silent_seconds:.0f} s ago; if somebody else is "
            "training it, stop this one: two at a time destroy a run"
        )


def _checkpoint_problems(config: RunConfig) -> Iterator[str]:
    """Whether the run can go on from its newest checkpoint; sizes are compared, bytes not read."""
    from pretrain.checkpoints.checkpoint_format import (
        list_checkpoints,
        load_run_config,
        read_manifest,
    )
    from pretrain.checkpoints.resume import differences, fingerprints

    found = list_checkpoints(config.run_path)
    complete = [info for info in found if info.complete]
    if not complete:
        if found:
            yield (
                f"{found[-1].problem}; no checkpoint of the run is whole, so that it would begin "
                f"anew: restore one, or remove {RunFolder(config.run_path).checkpoints}"
            )
        return
    newest = complete[-1]
    for info in found:
        if info.step > newest.step:
            warn(f"passed over: {info.problem}")
    try:
        manifest = read_manifest(newest.path)
        different = differences(
            load_run_config(newest.path),
            manifest["fingerprints"],
            config,
            fingerprints(config),
            manifest["sample_index"],
            manifest["tokens_seen"],
        )
    except CheckpointError as error:
        yield str(error)
        return
    if different:
        yield (
            f"{newest.path} belongs to another run: {'; '.join(different)}; restore these or "
            "choose another name="
        )
    elif manifest["updates"] >= config.train.max_steps:
        warn(
            f"{config.run_path}: all {config.train.max_steps} steps are done already; the run "
            "will end at once"
        )


def _tolerated(config: RunConfig, problems: list[str]) -> list[str]:
    """What is wrong with the data, but for what the run goes around by itself, which is told."""
    if config.data.on_damage == "fail":
        return problems
    for problem in problems:
        warn(f"data.on_damage {config.data.on_damage}: {problem}")
    return []
