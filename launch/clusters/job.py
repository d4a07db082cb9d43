"""What is to run, whatever the cluster: the same words and the same meaning for every launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.failures import CommandError

if TYPE_CHECKING:
    from pretrain.config import RunConfig


@dataclass(frozen=True)
class Job:
    """One run on so many machines."""

    config: Path
    """The configuration as the user named it."""
    overrides: tuple[str, ...] = ()
    """`a.b=c` words."""
    nodes: int = 1
    """Machines wanted."""
    min_nodes: int = 1
    """Machines with which it also goes on, when others have failed."""
    processes_per_node: int = 1
    """Ranks of each machine."""
    gpus_per_node: int = 0
    """GPUs of each machine, one a rank; 0 asks for none."""
    max_restarts: int = 3
    """Restarts after failures in a row without a newer checkpoint."""

    @classmethod
    def of(
        cls,
        config: Path,
        overrides: list[str] | None,
        *,
        nodes: int = 1,
        min_nodes: int | None = None,
        processes: int | None = None,
        gpus_per_node: int = 0,
        max_restarts: int = 3,
    ) -> Job:
        """Fill in what was left out on a command line.

        Args:
            config: The configuration.
            overrides: `a.b=c` words.
            nodes: Machines.
            min_nodes: Machines with which it also goes on; none means all of them.
            processes: Ranks of each machine; none means one a GPU, or one.
            gpus_per_node: GPUs of each machine.
            max_restarts: Restarts in a row without a newer checkpoint.

        Raises:
            CommandError: If the numbers contradict one another.
        """
        ranks = processes or max(1, gpus_per_node)
        least = nodes if min_nodes is None else min_nodes
        if gpus_per_node and ranks != gpus_per_node:
            raise CommandError(
                f"--processes {ranks} and --gpus-per-node {gpus_per_node}: a rank has one GPU; "
                "leave --processes out"
            )
        if least > nodes:
            raise CommandError(f"--min-nodes {least} exceeds --nodes {nodes}; lower it")
        for word in overrides or ():
            if "=" not in word or word.startswith("="):
                raise CommandError(f"{word!r} is not of the form section.key=value")
        return cls(
            config=config,
            overrides=tuple(overrides or ()),
            nodes=nodes,
            min_nodes=least,
            processes_per_node=ranks,
            gpus_per_node=gpus_per_node,
            max_restarts=max_restarts,
        )

    @property
    def world_sizes(self) -> list[int]:
        """Numbers of ranks the run may have, the wanted one last."""
        return [nodes * self.processes_per_node for nodes in range(self.min_nodes, self.nodes + 1)]

    def load(self) -> RunConfig:
        """Read the configuration.

        Raises:
            ValueError: It has a mistake, or its data do not fit it.
        """
        from pretrain.config import RunConfig

        return RunConfig.load(self.config, self.overrides)


def freeze_config(config: RunConfig) -> Path:
    """Write the configuration that was checked into the run's folder: that one will run.

    A job may wait in a queue for days, and the user's file may change meanwhile.

    Returns:
        The file's absolute path. Paths inside stay relative to where the job was launched.

    Raises:
        OSError: If it cannot be written.
    """
    from pretrain.run_folder import write_atomically

    path = frozen_config_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, config.to_yaml())
    return path


def frozen_config_path(config: RunConfig) -> Path:
    """Where `freeze_config` writes: an absolute path."""
    from pretrain.run_folder import RunFolder

    return (RunFolder(config.run_path).launch / "config.yaml").resolve()


def run_of_frozen_config(path: Path) -> Path | None:
    """The run's folder, seen from the file that `freeze_config` wrote; none for any other file."""
    return path.parent.parent if path.parts[-2:] == ("launch", "config.yaml") else None
