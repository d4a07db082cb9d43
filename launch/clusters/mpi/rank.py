"""One rank that mpiexec starts: finds its place and runs ``spade pretrain`` as a child.

mpiexec takes any exit code but 0 for a crash and ends the other ranks, who may still be saving; so
a rank that has stopped on request leaves with 0, and the run's folder tells. A rank that is killed
cannot leave word of it: this process does, which is small and not what a lack of memory ends first.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from launch.clusters.node import Place, rank_environment
from launch.console import warn
from launch.failures import EXIT_FAILED, EXIT_RESUMABLE
from launch.processes import end_with_parent
from launch.torchrun import signal_name
from pretrain.errors import RunError
from pretrain.ranks import Ranks, agree_on_rendezvous, find_ranks
from pretrain.resilience.failures import log_folder_of_launcher, record_failure

_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def rank_program(
    nodes: int, processes: int, network_interface: str | None, config: Path
) -> list[str]:
    """Arguments of the interpreter that run this module."""
    words = ["-m", "launch.clusters.mpi.rank", "--nodes", str(nodes), "--processes", str(processes)]
    if network_interface is not None:
        words.append(f"--network-interface={network_interface}")
    return [*words, "--", str(config)]


def main(arguments: Sequence[str]) -> int:
    """Run one rank."""
    end_with_parent()  # mpiexec or its daemon; those of Open MPI leave ranks behind when killed
    parser = argparse.ArgumentParser(prog="launch.clusters.mpi.rank", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--network-interface")
    parser.add_argument("config", type=Path)
    options = parser.parse_args(arguments)
    ranks = Ranks(0, 1, 0, "none")
    try:
        ranks = find_ranks(os.environ)
        agree_on_rendezvous(ranks, os.environ)
    except RunError as error:
        return _fail(ranks, str(error), EXIT_FAILED)
    place = Place(
        nodes=options.nodes,
        node_rank=0,  # nobody asks: the ranks are numbered by MPI
        processes=options.processes,
        master_address=os.environ["MASTER_ADDR"],
        master_port=int(os.environ["MASTER_PORT"]),
        network_interface=options.network_interface,
    )
    environment = rank_environment(place)
    if ranks.launcher == "MPI":  # no variables tell the child
        environment["RANK"] = str(ranks.rank)
        environment["WORLD_SIZE"] = str(ranks.world_size)
        environment["LOCAL_RANK"] = str(ranks.local_rank)
    program = [sys.executable, "-u", "-m", "launch.cli", "pretrain", str(options.config)]
    return _exit_code(ranks, run_child(program, environment))


def run_child(program: Sequence[str], environment: dict[str, str]) -> int:
    """Run a program that never outlives this process, and pass requests to stop on to it.

    Returns:
        Its exit code, negative for a signal.
    """
    asked = False
    process: subprocess.Popen[bytes] | None = None

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if process is not None:
            process.terminate()

    for number in _REQUESTS:
        signal.signal(number, ask)
    # Open MPI gives each rank a terminal, although it writes what comes from there anywhere.
    relayed = os.isatty(1)
    process = subprocess.Popen(
        program,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if relayed else None,
        # This process is ended by SIGKILL alone, and then mpiexec takes the rank for gone.
        preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGKILL),
    )
    if asked:  # before there was a child
        process.terminate()
    if process.stdout is not None:
        while part := os.read(process.stdout.fileno(), 1 << 16):
            os.write(1, part)
    return process.wait()


def _exit_code(ranks: Ranks, code: int) -> int:
    """What mpiexec is told."""
    if code in (0, EXIT_RESUMABLE):
        return 0
    if code > 0:
        return _fail(ranks, f"ended with exit code {code}", code)
    hint = ": out of memory?" if code == -signal.SIGKILL else ""
    return _fail(ranks, f"was ended by {signal_name(-code)}{hint}", code)


def _fail(ranks: Ranks, message: str, code: int) -> int:
    """Leave word, unless the rank has done so itself; where that cannot be, say it."""
    folder = log_folder_of_launcher(os.environ)
    if folder is None or not record_failure(folder, ranks.rank, message, code):
        warn(f"error: rank {ranks.rank} {message}")
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
