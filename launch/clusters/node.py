"""The ranks of one machine: ``python -m launch.clusters.node OPTIONS CONFIG``.

ssh, Slurm (one task a machine) and Kubernetes start this on every machine. It starts the ranks by
torchrun, asks them to save and stop when it is asked itself, leaves none behind, and ends with
their exit code.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.clusters.control import obey_standard_input
from launch.clusters.network import interface_towards
from launch.failures import CommandError
from launch.local import ask_workers, worker_environment
from launch.processes import run_supervised


@dataclass(frozen=True)
class Place:
    """Where this machine stands among all."""

    nodes: int
    node_rank: int
    processes: int
    """Ranks of each machine."""
    master_address: str
    """The first machine."""
    master_port: int


def node_command(place: Place, config: Path) -> list[str]:
    """Arguments of the interpreter that start this machine's ranks."""
    return [
        *("-m", "launch.torchrun"),
        *("--nnodes", str(place.nodes), "--node-rank", str(place.node_rank)),
        *("--nproc-per-node", str(place.processes)),
        *("--master-addr", place.master_address, "--master-port", str(place.master_port)),
        *("-m", "launch.cli", "pretrain", str(config)),
    ]


def run_node(place: Place, config: Path) -> int:
    """Run this machine's ranks to their end.

    Returns:
        The exit code of its ranks: 0 done, 75 stopped on request, anything else failed.
    """
    interface = interface_towards(place.master_address) if place.nodes > 1 else "lo"
    asked: set[int] = set()
    result = run_supervised(
        [sys.executable, *node_command(place, config)],
        environment=worker_environment(place.processes, gloo_interface=interface),
        ask_to_stop=lambda launcher: ask_workers(launcher, asked),
        grace_seconds=None,
    )
    return result.exit_code if result.exit_code >= 0 else 128 - result.exit_code


def node_rank_of(variable: str) -> int:
    """Read this machine's place from a variable that a scheduler sets.

    Raises:
        CommandError: If it is not set or no number.
    """
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise CommandError(
            f"{variable}={text!r} is no place of a machine; start this by a launcher"
        )
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Run one machine's part."""
    parser = argparse.ArgumentParser(prog="launch.clusters.node", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--node-rank", type=int)
    parser.add_argument("--node-rank-variable", help="variable that holds it, e.g. SLURM_NODEID")
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--master-address", required=True)
    parser.add_argument("--master-port", type=int, required=True)
    parser.add_argument("--obey", action="store_true", help="commands come on standard input")
    parser.add_argument("config", type=Path)
    options = parser.parse_args(arguments)
    rank = options.node_rank
    if rank is None:
        rank = node_rank_of(options.node_rank_variable or "")
    if options.obey:
        obey_standard_input()
    place = Place(
        options.nodes, rank, options.processes, options.master_address, options.master_port
    )
    return run_node(place, options.config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
