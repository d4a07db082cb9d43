r"""The sbatch script of a run: text, made of a job and a description of the cluster.

sbatch reads its lines by rules of its own (tried with Slurm 22.05): a value in double quotes is
taken as it stands, blanks, ``#``, ``$`` and single quotes included, with a backslash before ``"``
and ``\\``; a line ends it whatever the quotes. The shell never reads these lines. In names of files
``%`` begins a symbol and a backslash turns symbols off.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.clusters.job import Job
from launch.clusters.shell import SAFE_PATH_LINE, setup_lines
from launch.clusters.slurm.settings import SlurmCluster, image_folder_problem
from launch.clusters.slurm.steps import StepSettings
from launch.failures import CommandError

_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_\[\]-]+")
_HEAD = """\
#!/bin/bash
# Made by `spade launch slurm`. The program at the end runs on the job's first node: it starts the
# ranks by srun, starts them again after failures, and submits this file again before the limit.
"""


@dataclass(frozen=True)
class SlurmJob:
    """All that a script is made of."""

    job: Job
    cluster: SlurmCluster
    run: Path
    """The run's folder, absolute."""
    working_folder: Path
    """Absolute; where relative paths begin."""
    excluded: tuple[str, ...] = ()
    """Nodes that have failed a check."""

    @property
    def name(self) -> str:
        """The job's name in Slurm; no other run has it, so that a name says which jobs are its."""
        digest = hashlib.sha256(str(self.run).encode("utf-8", "surrogateescape")).hexdigest()
        return f"spade-{re.sub('[^A-Za-z0-9._-]', '-', self.run.name)[:40]}-{digest[:8]}"

    @property
    def cpus_per_task(self) -> int | None:
        """Cores of a task: at least one for each rank that it starts."""
        ranks = self.job.processes_per_node if self.cluster.tasks == "per_node" else 1
        return self.cluster.cpus_per_task or (ranks if ranks > 1 else None)

    @property
    def script_path(self) -> Path:
        """Where the script lies."""
        return self.run / "launch" / "slurm.sh"

    @property
    def config_path(self) -> Path:
        """The frozen configuration."""
        return self.run / "launch" / "config.yaml"


def script_text(job: SlurmJob) -> str:
    """Make the script.

    Raises:
        CommandError: A value cannot be expressed in it; one line names it.
    """
    if job.cluster.container is not None:
        for folder in (job.run, job.working_folder):
            if problem := image_folder_problem(folder):
                raise CommandError(f"{problem}; use another folder")
    lines = [f"#SBATCH {option}" for option in _options(job)]
    setup = setup_lines(job.cluster.nodes, job.working_folder)
    return "\n".join(
        [
            _HEAD.rstrip("\n"),
            *lines,
            "",
            "set -e",
            *setup,
            SAFE_PATH_LINE,
            "",
            "# Becomes the program, so that Slurm's signals reach it and not a waiting shell.",
            f"exec {shlex.join(batch_program(job))}",
            "",
        ]
    )


def batch_program(job: SlurmJob) -> list[str]:
    """What the script becomes."""
    cluster = job.cluster
    step = StepSettings(
        python=_python(cluster) if cluster.container is None else cluster.container.python,
        processes=job.job.processes_per_node,
        tasks=cluster.tasks,
        gpus_per_node=job.job.gpus_per_node,
        gres=cluster.gres,
        cpus_per_task=job.cpus_per_task,
        network_interface=cluster.nodes.network_interface,
        container=cluster.container,
    )
    return [
        *(_python(cluster), "-m", "launch.clusters.slurm.batch"),
        *("--min-nodes", str(job.job.min_nodes), "--max-restarts", str(job.job.max_restarts)),
        *(step.to_words() + [f"--exclude={name}" for name in cluster.exclude]),
        *("--", str(job.run)),
    ]


def quoted_value(option: str, value: str) -> str:
    """A value as sbatch reads it in a script.

    Raises:
        CommandError: It holds a control character: a line of a script cannot.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise CommandError(
            f"{value!r} holds a control character, which an sbatch script cannot express; "
            f"change what becomes --{option}"
        )
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _options(job: SlurmJob) -> list[str]:
    """The options for sbatch, one a line."""
    cluster, wanted = job.cluster, job.job
    elastic = wanted.min_nodes != wanted.nodes
    tasks = wanted.processes_per_node if cluster.tasks == "per_gpu" else 1
    cpus = job.cpus_per_task
    excluded = dict.fromkeys([*cluster.exclude, *job.excluded])
    gpus = wanted.gpus_per_node if cluster.gres is None else 0
    values: dict[str, str | None] = {
        "job-name": job.name,
        # Never two jobs of one run at once: the second one waits for the first.
        "dependency": "singleton",
        "nodes": f"{wanted.min_nodes}-{wanted.nodes}" if elastic else str(wanted.nodes),
        # With a number of tasks Slurm would take the fewest nodes although more are free.
        "mincpus": str(tasks * (cpus or 1)) if elastic else None,
        "ntasks-per-node": None if elastic else str(tasks),
        "cpus-per-task": None if cpus is None else str(cpus),
        "gpus-per-node": str(gpus) if gpus else None,
        "gres": cluster.gres,
        "mem": cluster.memory,
        "time": cluster.time_limit,
        "signal": f"B:USR1@{cluster.signal_seconds}",
        "output": _output(job.run),
        "open-mode": "append",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "nodelist": ",".join(cluster.nodelist) or None,
        "exclude": ",".join(excluded) or None,
    }
    lines = [
        f"--{name}={quoted_value(name, value)}"
        for name, value in values.items()
        if value is not None
    ]
    lines += ["--requeue", *(["--exclusive"] if cluster.exclusive else [])]
    for name, value in cluster.options.items():
        lines.append(f"--{name}" if value is None else f"--{name}={quoted_value(name, value)}")
    return lines


def _output(run: Path) -> str:
    """Where the job's output goes."""
    folder = str(run / "launch")
    if "\\" in folder or any(ord(character) < 32 for character in folder):
        raise CommandError(
            f"run_dir: {str(run)!r} holds a backslash or a control character, which Slurm cannot "
            "have in the names of files; choose another run_dir"
        )
    return folder.replace("%", "%%") + "/slurm-%j.out"


def _python(cluster: SlurmCluster) -> str:
    return str(cluster.nodes.python or Path(sys.executable))


def exclusion_option(hosts: Sequence[str]) -> list[str]:
    """An option of sbatch's command line, which replaces the script's."""
    return [f"--exclude={','.join(hosts)}"] if hosts else []
