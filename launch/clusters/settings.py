"""What the description of a cluster, a YAML file, says whatever the kind of cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from pretrain.errors import ConfigError
from pretrain.section import Section, problem_lines
from pretrain.yaml_text import read_yaml

EnvironmentName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


def _one_line(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError(f"{text!r} holds a control character; leave it out")
    return text


Word = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
"""Text of a user that ends up on a command line: anything but control characters."""

ModuleName = Annotated[str, Field(pattern=r"^[^-\s]\S*$"), AfterValidator(_one_line)]


class NodeSettings(Section):
    """What holds on every machine of the cluster."""

    python: Path | None = None
    """Interpreter of the environment the package is installed in, on the machines; none is the one
    that runs this command, which then must lie on a folder that all machines share."""
    working_folder: Path | None = None
    """Where the run's relative paths begin; none is the current folder."""
    environment: dict[EnvironmentName, str] = Field(default_factory=dict)
    """Variables of the ranks. They are set, never evaluated: `$HOME` stays four letters."""
    modules: tuple[ModuleName, ...] = ()
    """Names for `module load`, in this order."""
    source: tuple[Path, ...] = ()
    """Files that the shell on the machines reads first (`source FILE`)."""
    network_interface: Word | None = None
    """Interface that the ranks talk over, as `ip link` names it; none finds the one that reaches
    the first machine."""
    device: Word | None = None
    """What one rank computes on, as `spade plan --device` names it: the plan's memory must fit it.
    None does not compare."""


class ClusterSettings(Section):
    """A cluster; each kind adds what it needs."""

    nodes: NodeSettings = NodeSettings()
    """The machines."""


Kind = TypeVar("Kind", bound=ClusterSettings)


def load_cluster(path: Path | None, kind: type[Kind]) -> Kind:
    """Read the description of a cluster.

    Args:
        path: The YAML file; without one everything has its default.
        kind: What it describes.

    Raises:
        ConfigError: One line a problem: field, value, remedy.
    """
    origin = "the cluster's description" if path is None else str(path)
    values = {} if path is None else read_yaml(path)
    try:
        return kind.model_validate_json(json.dumps(values), strict=True)
    except TypeError as error:
        raise ConfigError(f"{origin}: {error}; use plain numbers, words and lists") from None
    except ValidationError as error:
        raise ConfigError("\n".join(problem_lines(kind, origin, error))) from None
