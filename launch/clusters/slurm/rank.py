"""One task a rank: becomes ``spade pretrain`` with this rank's environment, in the same process."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.clusters.node import Place, node_rank_of, rank_environment


def main(arguments: Sequence[str]) -> None:
    """Run one rank; srun has said which."""
    parser = argparse.ArgumentParser(prog="launch.clusters.slurm.rank", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--master-address", required=True)
    parser.add_argument("--master-port", type=int, required=True)
    parser.add_argument("--network-interface")
    parser.add_argument("config", type=Path)
    options = parser.parse_args(arguments)
    place = Place(
        nodes=options.nodes,
        node_rank=node_rank_of("SLURM_NODEID"),
        processes=options.processes,
        master_address=options.master_address,
        master_port=options.master_port,
        network_interface=options.network_interface,
    )
    environment = rank_environment(place) | {
        "MASTER_ADDR": place.master_address,
        "MASTER_PORT": str(place.master_port),
    }
    program = [sys.executable, "-m", "launch.cli", "pretrain", str(options.config)]
    os.execve(program[0], program, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
