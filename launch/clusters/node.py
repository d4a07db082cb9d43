"""The ranks of one machine: ``python -m launch.clusters.node OPTIONS CONFIG``.

ssh, Slurm (one task a machine) and Kubernetes start this on every machine. It starts the ranks by
torchrun, asks them to save and stop when it is asked itself, leaves none behind, and ends with
their exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launch.clusters.control import obey_standard_input, relayed_output
from launch.clusters.job import run_of_frozen_config
from launch.clusters.network import interface_towards, interfaces
from launch.console import warn
from launch.failures import EXIT_USAGE, CommandError, Stopped
from launch.local import ask_workers, worker_environment
from launch.processes import run_supervised

_REQUESTS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


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
    network_interface: str | None = None
    """What the ranks talk over; none finds the interface that reaches the first machine."""


def node_program(place: Place, config: Path, *, obey: bool = False) -> list[str]:
    """Arguments of the interpreter that run this module for a place: what launchers start."""
    words = [
        *("-m", "launch.clusters.node"),
        *("--nodes", str(place.nodes), "--node-rank", str(place.node_rank)),
        *("--processes", str(place.processes)),
        f"--master-address={place.master_address}",
        *("--master-port", str(place.master_port)),
    ]
    if place.network_interface is not None:
        words.append(f"--network-interface={place.network_interface}")
    return [*words, *(["--obey"] if obey else []), "--", str(config)]


def torchrun_program(place: Place, config: Path) -> list[str]:
    """Arguments of the interpreter that start this machine's ranks."""
    return [
        *("-m", "launch.torchrun"),
        *("--nnodes", str(place.nodes), "--node-rank", str(place.node_rank)),
        *("--nproc-per-node", str(place.processes)),
        f"--master-addr={place.master_address}",
        *("--master-port", str(place.master_port)),
        *("-m", "launch.cli", "pretrain", str(config)),
    ]


def rank_environment(place: Place, run: Path | None = None) -> dict[str, str]:
    """The environment of this machine's ranks: ours, and the network they talk over.

    Args:
        place: Of this machine.
        run: The run's folder, where a rank that fails leaves word.
    """
    interface = place.network_interface
    if interface is None:
        interface = interface_towards(place.master_address) if place.nodes > 1 else "lo"
    environment = worker_environment(place.processes, gloo_interface=interface, run=run)
    if place.network_interface is not None:
        environment.setdefault("NCCL_SOCKET_IFNAME", place.network_interface)
    return environment


def run_node(place: Place, config: Path) -> int:
    """Run this machine's ranks to their end.

    SIGTERM, SIGUSR1, SIGHUP or Ctrl-C reach each rank as one SIGTERM; a second Ctrl-C kills.

    Returns:
        The exit code of its ranks: 0 done, 75 stopped on request, anything else failed.

    Raises:
        CommandError: If the machine lacks the named interface.
    """
    if place.network_interface not in (None, *interfaces()):
        raise CommandError(
            f"network_interface: this machine has no {place.network_interface!r} but "
            f"{', '.join(interfaces())}"
        )
    asked: set[int] = set()
    result = run_supervised(
        [sys.executable, *torchrun_program(place, config)],
        environment=rank_environment(place, run_of_frozen_config(config)),
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


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Make every request to stop end this process orderly before there are ranks to ask.

    Afterwards there is nothing to stop any more, and the exit code is that of the ranks.

    Raises:
        Stopped: In the main thread, with the exit code of a stop before the start.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}", 128 + signal.SIGTERM)

    for number in _REQUESTS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in _REQUESTS:
            signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str]) -> int:
    """Run one machine's part.

    Returns:
        The exit code of its ranks; 143 where it was stopped before it had any.
    """
    parser = argparse.ArgumentParser(prog="launch.clusters.node", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--node-rank", type=int)
    parser.add_argument("--node-rank-variable", help="variable that holds it, e.g. SLURM_NODEID")
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--master-address", required=True)
    parser.add_argument("--master-port", type=int, required=True)
    parser.add_argument("--network-interface", help="what the ranks talk over (default: found)")
    parser.add_argument("--obey", action="store_true", help="commands come on standard input")
    parser.add_argument("config", type=Path)
    options = parser.parse_args(arguments)
    with relayed_output() if options.obey else contextlib.nullcontext():
        try:
            with _stoppable():
                if options.obey:
                    obey_standard_input()
                return run_node(_place(options), options.config)
        except CommandError as error:
            warn(f"error: {error}")
            return EXIT_USAGE
        except Stopped as stop:
            return stop.exit_code


def _place(options: argparse.Namespace) -> Place:
    rank = options.node_rank
    if rank is None:
        rank = node_rank_of(options.node_rank_variable or "")
    if rank >= options.nodes:
        raise CommandError(f"--node-rank {rank} is not below --nodes {options.nodes}")
    return Place(
        nodes=options.nodes,
        node_rank=rank,
        processes=options.processes,
        master_address=options.master_address,
        master_port=options.master_port,
        network_interface=options.network_interface,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
