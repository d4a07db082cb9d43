"""What is asked of Slurm's controller, by argument vectors: sbatch, scontrol, scancel."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.failures import CommandError

_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class JobFacts:
    """What the controller says of a job."""

    state: str
    """RUNNING, COMPLETING …"""
    restarts: int
    """How often it was requeued."""
    being_preempted: bool
    """It will be requeued within its grace time."""
    end: float | None
    """When it will be ended, in seconds of the epoch; none where nobody knows."""


def submit(script: Path, options: Sequence[str] = ()) -> str:
    """Submit a script.

    Args:
        script: Its absolute path.
        options: For sbatch, instead of the script's own.

    Returns:
        The job's number.

    Raises:
        CommandError: There is no sbatch, or it refuses; one line says why.
    """
    answer = _ask(["sbatch", "--parsable", *options, str(script)], clean_environment(os.environ))
    numbers = re.findall(r"^([0-9]+)(?:;.*)?$", answer, re.MULTILINE)
    if not numbers:
        raise CommandError(f"sbatch gave no job number but {answer!r}; look at squeue")
    return str(numbers[-1])


def cancel(job: str) -> None:
    """Cancel a job; one that has ended meanwhile is no error."""
    with contextlib.suppress(CommandError):
        _ask(["scancel", job])


def requeue(job: str) -> None:
    """Put a running job back into the queue, which ends this process if it is the job's.

    Raises:
        CommandError: If Slurm refuses.
    """
    _ask(["scontrol", "requeue", job])


def expand_hosts(nodes: str) -> tuple[str, ...]:
    """The names in Slurm's short form, e.g. ``node[1-2]``, in its order.

    Raises:
        CommandError: If Slurm cannot be asked.
    """
    return tuple(_ask(["scontrol", "show", "hostnames", nodes]).split())


def job_facts(job: str) -> JobFacts:
    """What the controller says of a job now.

    Raises:
        CommandError: If it does not answer or does not know the job.
    """
    words = _ask(["scontrol", "show", "job", "--oneliner", job]).split()
    facts = dict(reversed([word.partition("=")[::2] for word in words]))  # the first of a name
    return JobFacts(
        state=facts.get("JobState", ""),
        restarts=int(facts.get("Restarts", "0")),
        being_preempted=facts.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
        end=_moment(facts.get("EndTime", "")),
    )


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what Slurm has set for this job, which sbatch would hand down."""
    prefixes = ("SLURM_", "SLURMD_", "SRUN_")
    return {
        name: value
        for name, value in environment.items()
        if name == "SLURM_CONF" or not name.startswith(prefixes)
    }


def _moment(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _ask(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run one of Slurm's programs and give what it says."""
    program = command[0]
    try:
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise CommandError(
            f"{program} is not on PATH; run this where the cluster's jobs are submitted, or look "
            "at the script with --dry-run"
        ) from None
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"{program} gave no answer within {_PATIENCE_SECONDS} s; try again when Slurm's "
            "controller is there (scontrol ping)"
        ) from None
    if result.returncode:
        lines = [line.removeprefix(f"{program}: error: ") for line in result.stderr.splitlines()]
        reason = "; ".join(line.strip() for line in lines if line.strip())
        raise CommandError(f"{program} refuses: {reason or f'exit code {result.returncode}'}")
    return result.stdout
