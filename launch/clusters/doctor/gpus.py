"""What the NVIDIA GPUs of this machine say of themselves, through ``nvidia-smi``."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

# A GPU that has fallen off its bus lets nvidia-smi hang instead of failing.
_QUERY_SECONDS = 20
_BASIC = ("index", "uuid", "name", "memory.total", "memory.used")
# Older and newer drivers both take these names; a driver that lacks one refuses the whole query.
_HEALTH = (
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    index: int
    uuid: str
    name: str
    memory_mib: int
    used_mib: int
    """Memory that somebody occupies now."""
    uncorrected_errors: int | None = None
    """Memory errors that ECC could not mend since the driver was loaded; none where not counted."""
    throttled: bool = False
    """Heat or power keeps its clock down."""


@dataclass(frozen=True)
class GpuSurvey:
    """All GPUs that this process may use."""

    gpus: tuple[Gpu, ...] = ()
    problem: str = ""
    """Why nvidia-smi does not tell; "" where it does, or where there is none."""


def survey_gpus() -> GpuSurvey:
    """Ask nvidia-smi; a machine without it has no NVIDIA GPU to use."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return GpuSurvey()
    basic, problem = _query(program, _BASIC)
    if problem:
        # A driver without a GPU answers in words and with an error.
        return GpuSurvey() if "no devices" in problem.lower() else GpuSurvey(problem=problem)
    health, _ = _query(program, _HEALTH)
    try:
        return GpuSurvey(visible(gpus_of(basic, health), os.environ.get("CUDA_VISIBLE_DEVICES")))
    except ValueError as error:
        return GpuSurvey(problem=f"nvidia-smi answers what cannot be read: {error}")


def gpus_of(basic: Sequence[Sequence[str]], health: Sequence[Sequence[str]]) -> tuple[Gpu, ...]:
    """Read the rows of both queries.

    Args:
        basic: Index, UUID, name, memory and used memory in MiB of each GPU.
        health: Uncorrected errors and two reasons of throttling of each; empty where not told.

    Raises:
        ValueError: If a row has other fields or no numbers.
    """
    states = health if len(health) == len(basic) else [("", "", "")] * len(basic)
    gpus = []
    for (index, uuid, name, memory, used), (errors, *throttled) in zip(basic, states, strict=True):
        gpus.append(
            Gpu(
                int(index),
                uuid,
                name,
                int(memory),
                int(used),
                int(errors) if errors.isdecimal() else None,
                "Active" in throttled,
            )
        )
    return tuple(gpus)


def visible(gpus: Sequence[Gpu], chosen: str | None) -> tuple[Gpu, ...]:
    """Leave out what a scheduler has given to others; nvidia-smi itself shows all of the machine.

    Args:
        gpus: All.
        chosen: The variable CUDA_VISIBLE_DEVICES: numbers or beginnings of UUIDs.
    """
    if chosen is None or "MIG-" in chosen:  # parts of GPUs have no row of their own
        return tuple(gpus)
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    return tuple(
        gpu
        for gpu in gpus
        if any(
            word == str(gpu.index) or (word.startswith("GPU-") and gpu.uuid.startswith(word))
            for word in words
        )
    )


def _query(program: str, fields: Sequence[str]) -> tuple[list[list[str]], str]:
    """Rows of an answer, or why there is none."""
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_QUERY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi gave no answer in {_QUERY_SECONDS} s"
    except OSError as error:
        return [], f"nvidia-smi cannot be started: {error.strerror}"
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).strip().splitlines()
        return [], said[-1] if said else f"nvidia-smi ends with {answer.returncode}"
    rows = csv.reader(answer.stdout.splitlines(), skipinitialspace=True)
    return [[cell.strip() for cell in row] for row in rows if row], ""
