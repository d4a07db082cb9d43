"""From the facts of one machine to findings; pure, so that every limit can be tried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from launch.clusters.doctor.facts import FolderFacts, NodeFacts
from launch.console import human_bytes
from launch.doctor import Finding

MIB = 2**20
LEAST_DISK_BYTES = 64 * MIB
LITTLE_DISK_BYTES = 2048 * MIB
# Two ranks exchange gradients through 64 MiB of it; data workers come on top.
LEAST_SHARED_MEMORY_BYTES = 64 * MIB
LITTLE_SHARED_MEMORY_BYTES = 256 * MIB
OCCUPIED_GPU_FRACTION = 0.05
FULL_GPU_FRACTION = 0.5
_INSTALL = "pip install -e . -c constraints.txt into the environment that nodes.python names"


def judge_node(facts: NodeFacts, gpus_per_node: int | None = None) -> list[Finding]:
    """Say of one machine alone whether it can take part in a run.

    Args:
        facts: The machine.
        gpus_per_node: GPUs it should have; none does not compare.

    Returns:
        One finding a check, always the same ones in the same order.
    """
    return [
        _python(facts),
        _packages(facts),
        _folder(facts.folder),
        _temporary(facts.temporary),
        _shared_memory(facts.shared_memory_free_bytes),
        Finding("cores, memory", "ok", f"{facts.cores}, {human_bytes(facts.memory_bytes)}"),
        judge_gpus(facts, gpus_per_node),
    ]


def _python(facts: NodeFacts) -> Finding:
    # A version may end in letters, as 3.13.0rc1 does.
    numbers = tuple(int(number) for number in re.findall(r"\d+", facts.python)[:2])
    if (3, 10) <= numbers <= (3, 12):
        return Finding("Python", "ok", facts.python)
    remedy = "name an interpreter of Python 3.10, 3.11 or 3.12 in nodes.python"
    return Finding("Python", "fail", f"{facts.python} at {facts.executable}", remedy)


def _packages(facts: NodeFacts) -> Finding:
    missing = [name for name, version in facts.packages.items() if not version]
    if missing:
        value = f"missing: {', '.join(missing)}"
        return Finding("packages", "fail", f"{value} ({facts.executable})", _INSTALL)
    names = ("torch", "deepspeed")
    value = ", ".join(f"{name} {facts.packages.get(name, '?')}" for name in names)
    return Finding("packages", "ok", value)


def _folder(folder: FolderFacts) -> Finding:
    if folder.problem:
        remedy = (
            f"mount it there as on the other machines, let this user write to it, or choose another"
            f" folder: {folder.path}"
        )
        return Finding("folder", "fail", folder.problem, remedy)
    return _free_disk("folder", folder, "fail")


def _temporary(folder: FolderFacts) -> Finding:
    if folder.problem:
        remedy = f"make {folder.path} writable there, or point TMPDIR elsewhere"
        return Finding("temporary files", "fail", folder.problem, remedy)
    return _free_disk("temporary files", folder, "warn")


def _free_disk(name: str, folder: FolderFacts, at_worst: Literal["warn", "fail"]) -> Finding:
    value = f"{human_bytes(folder.free_bytes)} free"
    remedy = f"make room in {folder.path} there: checkpoints and logs need it"
    if folder.free_bytes < LEAST_DISK_BYTES:
        return Finding(name, at_worst, value, remedy)
    if folder.free_bytes < LITTLE_DISK_BYTES:
        return Finding(name, "warn", value, remedy)
    return Finding(name, "ok", value)


def _shared_memory(free_bytes: int | None) -> Finding:
    if free_bytes is None:
        return Finding("shared memory", "ok", "no /dev/shm on this system")
    value = f"{human_bytes(free_bytes)} free"
    remedy = (
        "remove what lies in /dev/shm there (ranks that crashed leave files behind), or make it"
        " larger: mount -o remount,size=2g /dev/shm, in a container --shm-size=2g"
    )
    if free_bytes < LEAST_SHARED_MEMORY_BYTES:
        return Finding("shared memory", "fail", value, remedy)
    if free_bytes < LITTLE_SHARED_MEMORY_BYTES:
        return Finding("shared memory", "warn", value, remedy)
    return Finding("shared memory", "ok", value)


def judge_gpus(facts: NodeFacts, expected: int | None = None) -> Finding:
    """Count the GPUs and look at their health."""
    if facts.gpu_problem:
        remedy = "the driver or a GPU hangs: run nvidia-smi there; a reboot resets both"
        return Finding("GPUs", "fail", facts.gpu_problem, remedy)
    names = ", ".join(sorted({gpu.name for gpu in facts.gpus}))
    value = f"{len(facts.gpus)} x {names}" if facts.gpus else "none"
    if expected is not None and len(facts.gpus) < expected:
        remedy = (
            f"{expected} are wanted: ask the scheduler for them, look at CUDA_VISIBLE_DEVICES and"
            " nvidia-smi there, or lower --gpus-per-node"
        )
        return Finding("GPUs", "fail", value, remedy)
    problems = sorted(_gpu_problems(facts), key=lambda problem: problem[0] != "fail")
    if not problems:
        return Finding("GPUs", "ok", value)
    state, _, remedy = problems[0]
    return Finding("GPUs", state, "; ".join(text for _, text, _ in problems), remedy)


def _gpu_problems(facts: NodeFacts) -> Iterator[tuple[Literal["warn", "fail"], str, str]]:
    """State, what was found, remedy."""
    for gpu in facts.gpus:
        if gpu.uncorrected_errors:
            text = f"GPU {gpu.index}: {gpu.uncorrected_errors} uncorrected memory errors"
            yield "fail", text, "take the machine out and let the GPU be reset or replaced"
        occupied = gpu.used_mib / max(1, gpu.memory_mib)
        if occupied > OCCUPIED_GPU_FRACTION:
            text = f"GPU {gpu.index}: {occupied:.0%} of its memory occupied"
            remedy = "nvidia-smi there names the processes: end those that a crashed run left"
            yield "fail" if occupied > FULL_GPU_FRACTION else "warn", text, remedy
        if gpu.throttled:
            text = f"GPU {gpu.index}: slowed down by heat or power"
            yield "warn", text, "nvidia-smi -q -d PERFORMANCE there tells why; look at the cooling"
