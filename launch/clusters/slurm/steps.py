"""The ``srun`` commands inside a job, as argument vectors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.clusters.slurm.settings import ContainerSettings

# Ranks that lost another end by themselves within a minute; this is for those that cannot.
_WAIT_SECONDS = 120


@dataclass(frozen=True)
class StepSettings:
    """How tasks are started on the nodes; travels in the script as words."""

    python: str
    """Interpreter of the tasks."""
    processes: int
    """Ranks of each node."""
    tasks: Literal["per_node", "per_gpu"] = "per_node"
    """What one task is."""
    gpus_per_node: int = 0
    """GPUs of each node."""
    gres: str | None = None
    """Asks for them in the cluster's own words."""
    cpus_per_task: int | None = None
    """Cores of each task."""
    network_interface: str | None = None
    """What the ranks talk over."""
    container: ContainerSettings | None = None
    """Where the tasks run."""

    def to_words(self) -> list[str]:
        """Arguments that :meth:`of_words` reads."""
        words = [
            f"--python={self.python}",
            f"--processes={self.processes}",
            f"--tasks={self.tasks}",
        ]
        optional = {
            "gpus-per-node": self.gpus_per_node or None,
            "gres": self.gres,
            "cpus-per-task": self.cpus_per_task,
            "network-interface": self.network_interface,
        }
        words += [f"--{name}={value}" for name, value in optional.items() if value is not None]
        if self.container is not None:
            words += [f"--container={self.container.kind}", f"--image={self.container.image}"]
            words += [f"--mount={mount}" for mount in self.container.mounts]
        return words

    @staticmethod
    def add_words(parser: argparse.ArgumentParser) -> None:
        """Make a parser understand the arguments."""
        parser.add_argument("--python", required=True)
        parser.add_argument("--processes", type=int, required=True)
        parser.add_argument("--tasks", choices=("per_node", "per_gpu"), required=True)
        parser.add_argument("--gpus-per-node", type=int, default=0)
        parser.add_argument("--gres")
        parser.add_argument("--cpus-per-task", type=int)
        parser.add_argument("--network-interface")
        parser.add_argument("--container", choices=("apptainer", "pyxis"))
        parser.add_argument("--image")
        parser.add_argument("--mount", action="append", default=[])

    @classmethod
    def of_words(cls, options: argparse.Namespace) -> StepSettings:
        """What a parser has read."""
        container = None
        if options.container is not None:
            container = ContainerSettings(
                kind=options.container, image=options.image, mounts=tuple(options.mount)
            )
        return cls(
            python=options.python,
            processes=options.processes,
            tasks=options.tasks,
            gpus_per_node=options.gpus_per_node,
            gres=options.gres,
            cpus_per_task=options.cpus_per_task,
            network_interface=options.network_interface,
            container=container,
        )


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks meet."""

    hosts: tuple[str, ...]
    """The nodes, in Slurm's order; the ranks meet on the first."""
    port: int


def meeting_port(job: int, attempt: int) -> int:
    """A port for a start of the ranks, below those that systems hand out by themselves.

    Jobs that share a node get different ones, and so do the starts of one job: the port of ranks
    that have just died may still be taken.
    """
    return 10000 + (16 * job + attempt) % 20000


def rank_step(step: StepSettings, meeting: Rendezvous, config: Path) -> list[str]:
    """Starts all ranks and waits for them.

    Args:
        step: How tasks are started.
        meeting: On which nodes.
        config: The frozen configuration, absolute, in the run's ``launch`` folder.
    """
    several = step.tasks == "per_gpu"
    options = [
        *_step_options(step, meeting.hosts, step.processes if several else 1, config.parent.parent),
        # The exit code is then the ranks' own and not that of a signal srun has sent them.
        *("--kill-on-bad-exit=0", f"--wait={_WAIT_SECONDS}"),
    ]
    module = "launch.clusters.slurm.rank" if several else "launch.clusters.node"
    program = ["-m", module, "--nodes", str(len(meeting.hosts))]
    if not several:
        program += ["--node-rank-variable", "SLURM_NODEID"]
    program += ["--processes", str(step.processes), f"--master-address={meeting.hosts[0]}"]
    program += ["--master-port", str(meeting.port)]
    if step.network_interface is not None:
        program.append(f"--network-interface={step.network_interface}")
    return ["srun", *options, *_program(step, [*program, "--", str(config)], config.parent.parent)]


def health_step(step: StepSettings, hosts: Sequence[str], run: Path) -> list[str]:
    """Examines every node; each line of its output begins with the node's place and a colon."""
    options = _step_options(step, hosts, 1, run)
    program = ["-m", "launch.clusters.doctor.node_check"]
    if step.gpus_per_node:
        program.append(f"--gpus-per-node={step.gpus_per_node}")
    program += ["--", str(run)]
    # Overlapping, or the step of the ranks would wait seconds for its resources.
    options += ["--overlap", "--label", "--kill-on-bad-exit=0"]
    return ["srun", *options, *_program(step, program, run)]


def _step_options(
    step: StepSettings, hosts: Sequence[str], tasks_per_node: int, run: Path
) -> list[str]:
    options = [
        *(f"--nodes={len(hosts)}", f"--ntasks={len(hosts) * tasks_per_node}"),
        *(f"--ntasks-per-node={tasks_per_node}", f"--nodelist={','.join(hosts)}"),
        *("--input=none", "--mpi=none", "--export=ALL"),
    ]
    if step.cpus_per_task is not None:
        # srun does not take it from the job since Slurm 22.05.
        options.append(f"--cpus-per-task={step.cpus_per_task}")
    if step.gres is not None:
        options.append(f"--gres={step.gres}")
    elif step.gpus_per_node:
        options.append(f"--gpus-per-node={step.gpus_per_node}")
    if step.container is not None and step.container.kind == "pyxis":
        mounts = ",".join(_mounts(step.container, run))
        options += [f"--container-image={step.container.image}", f"--container-mounts={mounts}"]
        options.append(f"--container-workdir={Path.cwd()}")
    return options


def _program(step: StepSettings, arguments: Sequence[str], run: Path) -> list[str]:
    """What a task runs."""
    own = [step.python, *arguments]
    if step.container is None or step.container.kind == "pyxis":
        return own
    binds = [f"--bind={mount}" for mount in _mounts(step.container, run)]
    gpus = ["--nv"] if step.gpus_per_node else []
    return ["apptainer", "exec", *gpus, *binds, f"--pwd={Path.cwd()}", step.container.image, *own]


def _mounts(container: ContainerSettings, run: Path) -> list[str]:
    """Folders inside: where the job was launched, the run's, and the user's."""
    named = [mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts]
    return [f"{Path.cwd()}:{Path.cwd()}", f"{run}:{run}", *named]
