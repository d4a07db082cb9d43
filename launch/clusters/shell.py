"""Shell text for the machines of a cluster, in which nothing of the user's can be more than a word.

Every value is quoted by :func:`shlex.quote`; no text of a configuration is a command.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.clusters.settings import NodeSettings

SAFE_PATH_LINE = "export PYTHONSAFEPATH=1"
"""A folder named launch, where the run's paths begin, is not our package (Python 3.11+). Not by
``env``, to which a program with ``=`` in its path would be one more variable."""
_MODULES = 'source "${MODULESHOME:-/usr/share/modules}/init/bash"'


def setup_lines(nodes: NodeSettings, working_folder: Path) -> list[str]:
    """Lines of bash that make a machine ready: files read, modules loaded, variables set.

    Args:
        nodes: What the user says of the machines.
        working_folder: Absolute; where the run's relative paths begin.
    """
    lines = [f"cd -- {shlex.quote(str(nodes.working_folder or working_folder))}"]
    lines += [f"source {shlex.quote(str(path))}" for path in nodes.source]
    if nodes.modules:
        lines.append(f"type module >/dev/null 2>&1 || {_MODULES}")
    lines += [f"module load {shlex.quote(name)}" for name in nodes.modules]
    return lines + export_lines(nodes.environment)


def export_lines(variables: Mapping[str, str]) -> list[str]:
    """Lines of bash that set variables to exactly these values."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def bash_command(nodes: NodeSettings, working_folder: Path, program: Sequence[str]) -> list[str]:
    """Arguments that make a machine ready and then become ``program``, in the same process."""
    lines = ["set -eu", *setup_lines(nodes, working_folder), SAFE_PATH_LINE]
    return ["bash", "-c", "\n".join([*lines, f"exec {shlex.join(program)}"])]
