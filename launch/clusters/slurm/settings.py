"""What a description of a Slurm cluster says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from launch.clusters.settings import ClusterSettings, Word
from pretrain.section import Positive, Section

_CLOCK = re.compile(r"(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)")
_TAKEN = {
    **dict.fromkeys(("partition", "account", "qos", "constraint", "reservation"), "the setting"),
    **dict.fromkeys(("gres", "exclusive", "exclude", "nodelist"), "the setting"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cpus_per_task"),
    **dict.fromkeys(("time", "time-min"), "time_limit"),
    "signal": "signal_seconds",
    "nodes": "--nodes and --min-nodes",
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), "--gpus-per-node"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-gpu"), "tasks and --processes"),
    "mincpus": "cpus_per_task",
    "chdir": "nodes.working_folder",
    **dict.fromkeys(("container", "container-image", "container-mounts"), "container"),
}
_OURS = {
    *("job-name", "output", "error", "input", "open-mode", "requeue", "no-requeue", "dependency"),
    *("array", "wrap", "parsable", "wait", "test-only", "no-kill", "hold", "help", "usage"),
}


def seconds_of(time_limit: str) -> int:
    """How long a limit of time is.

    Args:
        time_limit: `HH:MM:SS`, `D-HH:MM:SS`, or whole minutes.

    Raises:
        ValueError: If it is none of these, or no time at all.
    """
    clock = _CLOCK.fullmatch(time_limit)
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    else:
        total = 60 * int(time_limit) if re.fullmatch(r"[0-9]{1,7}", time_limit) else 0
    if not total:
        raise ValueError(
            f'time_limit: {time_limit!r} is no time; write "HH:MM:SS", "D-HH:MM:SS" or minutes as '
            '"90"'
        )
    return total


def _quoted_time(value: Any) -> Any:
    # YAML reads an unquoted 12:00:00 as the number 43200, which would pass as 30 days of minutes.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(
            f"time_limit: {value} is a number to YAML, also where hours were written; put it in "
            'quotes: "12:00:00", or "90" for minutes'
        )
    return value


def _time(text: str) -> str:
    seconds_of(text)
    return text


def _one_path(text: str) -> str:
    if "," in text:
        raise ValueError(f"container.mounts: {text!r} holds a comma, which separates mounts")
    return text


TimeLimit = Annotated[str, BeforeValidator(_quoted_time), AfterValidator(_time)]
OptionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]+$")]
Memory = Annotated[str, Field(pattern=r"^[0-9]+[KMGT]?$")]


class ContainerSettings(Section):
    """The image that the ranks run in; the working folder and the run's are mounted anyway."""

    kind: Literal["apptainer", "pyxis"]
    """`apptainer exec` before every task, or srun's options of the Pyxis plugin."""
    image: Word
    """A .sif file, or what the program takes as an image."""
    mounts: tuple[Annotated[Word, AfterValidator(_one_path)], ...] = ()
    """Further folders, each FOLDER or FOLDER:PLACE_INSIDE."""
    python: Word = "python3"
    """The interpreter inside."""


class SlurmCluster(ClusterSettings):
    """A Slurm cluster and how jobs ask for its nodes; what is left out is the cluster's default."""

    partition: Word | None = None
    """Partition, or several with commas."""
    account: Word | None = None
    """Whom to charge."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Features that the nodes must have."""
    reservation: Word | None = None
    """Reserved nodes to use."""
    gres: Word | None = None
    """Asks for GPUs in the cluster's own words, e.g. `gpu:a100:4`, instead of
    `--gpus-per-node`."""
    exclusive: bool = False
    """Share nodes with no other job."""
    memory: Memory | None = None
    """Of each node: megabytes, or with K, M, G or T behind; "0" is all of it."""
    cpus_per_task: Positive | None = None
    """Cores of each task (see `tasks`); none is one a rank."""
    time_limit: TimeLimit | None = None
    """Of each job, in quotes: "HH:MM:SS", "D-HH:MM:SS" or "90" for minutes. A run that takes longer
    becomes a chain of jobs."""
    signal_seconds: Annotated[int, Field(ge=10, le=65535)] = 120
    """How long before the limit the ranks are told to save and leave; Slurm may tell up to 60 s
    sooner or later than that, so leave room for it and for a checkpoint."""
    tasks: Literal["per_node", "per_gpu"] = "per_node"
    """One task a node, which starts the node's ranks by torchrun, or one task a rank."""
    nodelist: tuple[Word, ...] = ()
    """Nodes to use, as `node[1-4]` or one by one."""
    exclude: tuple[Word, ...] = ()
    """Nodes never to use."""
    container: ContainerSettings | None = None
    """Run the ranks in a container."""
    options: dict[OptionName, Word | None] = Field(default_factory=dict)
    """Further options of sbatch by their long names without dashes; null for one without value."""

    @model_validator(mode="after")
    def _check(self) -> SlurmCluster:
        if self.time_limit is not None and self.signal_seconds >= seconds_of(self.time_limit):
            raise ValueError(
                f"signal_seconds {self.signal_seconds} is not less than time_limit "
                f"{self.time_limit}; lower it or ask for more time"
            )
        for name in self.options:
            if name in _OURS:
                raise ValueError(f"options.{name} is set by the launcher; leave it out")
            if name in _TAKEN:
                place = name if _TAKEN[name] == "the setting" else _TAKEN[name]
                raise ValueError(f"options.{name} has a place of its own; use {place}")
        return self


def image_folder_problem(path: Path) -> str:
    """Why a folder cannot be mounted, "" where it can."""
    found = next((character for character in ",:" if character in str(path)), "")
    return f"{str(path)!r} holds {found!r}, which a container's mounts cannot express" * bool(found)
