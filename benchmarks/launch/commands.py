"""What a user types for each launcher: two ranks, where there are two hosts one on each."""

from __future__ import annotations

import sys
from pathlib import Path

PLACES = {
    "local": "2 ranks on a host",
    "slurm": "2 nodes × 1 rank",
    "ssh": "2 hosts × 1 rank",
    "mpi": "2 hosts × 1 rank",
}
"""Launchers, and where their ranks are."""
NODES = ("node1", "node2")


def launch_command(launcher: str, config: Path) -> list[str]:
    """The command that starts a run.

    Args:
        launcher: A key of `PLACES`.
        config: The run; files that the launcher wants are written beside it.
    """
    return [
        *(sys.executable, "-m", "launch.cli", "launch", launcher, str(config)),
        *("--max-restarts", "3", *_places(launcher, config.parent)),
    ]


def _places(launcher: str, folder: Path) -> list[str]:
    if launcher == "local":
        return ["--processes", "2"]
    if launcher == "slurm":
        return ["--nodes", "2", "--processes", "1"]
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{node} slots=1\n" for node in NODES))
    return ["--hostfile", str(hostfile)]
