"""The doctor's program on every machine: ``python -m launch.clusters.doctor.agent --node K``.

Hears one JSON object a line on standard input (the same lines on all machines, since srun can do no
more) and answers on standard output. It ends at the end of its input, or when nobody has spoken for
a while, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launch.clusters.doctor.facts import gather
from launch.clusters.doctor.meeting import Peer, listen, meet
from launch.clusters.doctor.messages import send_lines
from launch.clusters.doctor.sharing import leave_note, unseen_notes
from launch.clusters.node import Place, node_rank_of, rank_environment

SILENCE_SECONDS = 150
REDUCE_SECONDS = 90.0


class Agent:
    """What one machine does in an examination."""

    def __init__(self, node: int) -> None:
        self.node = node
        self._folder = Path()
        self._word = ""
        self._note: Path | None = None

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Do what the doctor says, and answer."""
        answers = {"begin": self._begin, "meet": self._meet, "reduce": self._reduce}
        return answers[order["do"]](order)

    def leave(self) -> None:
        """Remove what this machine wrote."""
        if self._note is not None:
            with contextlib.suppress(OSError):
                self._note.unlink()

    def _begin(self, order: dict[str, Any]) -> dict[str, Any]:
        self._folder, self._word = Path(order["folder"]), order["word"]
        facts = gather(self._folder)
        if not facts.folder.problem:
            with contextlib.suppress(OSError):
                self._note = leave_note(self._folder, self._word, str(self.node))
        token = order["token"].encode()
        ports = [listen(first, last, token) for first, last in order["port_ranges"]]
        return {
            "facts": facts.to_dict(),
            "name": os.environ.get("SLURMD_NODENAME", ""),
            "ports": ports,
            "meeting_port": _free_port(),
        }

    def _meet(self, order: dict[str, Any]) -> dict[str, Any]:
        nodes = [Peer(node, name, tuple(ports)) for node, name, ports in order["nodes"]]
        others = [peer for peer in nodes if peer.node != self.node]
        writers = {str(peer.node): peer.name for peer in others} | order["writers"]
        with ThreadPoolExecutor(max_workers=1) as pool:
            looking = pool.submit(unseen_notes, self._folder, self._word, writers)
            contacts = meet(others, order["token"].encode())
            unseen = looking.result()
        return {
            "contacts": [dataclasses.asdict(contact) for contact in contacts],
            "unseen": unseen,
        }

    def _reduce(self, order: dict[str, Any]) -> dict[str, Any]:
        nodes: list[int] = order["nodes"]
        if self.node not in nodes:
            return {"problem": "left out"}
        place = Place(
            nodes=len(nodes),
            node_rank=nodes.index(self.node),
            processes=order["ranks_per_node"],
            master_address=order["address"],
            master_port=order["port"],
            network_interface=order["interface"],
        )
        return _run_ranks(place, order["device"])


def _run_ranks(place: Place, device: str) -> dict[str, Any]:
    """Start the ranks of this machine; what the first of all printed, or why one of them failed."""
    shared = rank_environment(place) | {
        "MASTER_ADDR": place.master_address,
        "MASTER_PORT": str(place.master_port),
        "WORLD_SIZE": str(place.nodes * place.processes),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.clusters.doctor.all_reduce", device],
            env=shared
            | {"RANK": str(place.node_rank * place.processes + local), "LOCAL_RANK": str(local)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for local in range(place.processes)
    ]
    late = threading.Event()

    def end() -> None:
        late.set()
        for rank in ranks:
            rank.kill()

    stop = threading.Timer(REDUCE_SECONDS, end)
    stop.daemon = True
    stop.start()
    with ThreadPoolExecutor(max_workers=len(ranks)) as pool:
        try:
            said = list(pool.map(lambda rank: rank.communicate(), ranks))
            stop.cancel()
        finally:
            # Also where a signal ends this process.
            for rank in ranks:
                rank.kill()
    if late.is_set():
        return {"problem": f"not done in {REDUCE_SECONDS:.0f} s"}
    for rank, (_, errors) in zip(ranks, said, strict=True):
        if rank.returncode != 0:
            lines = errors.strip().splitlines() or [f"exit code {rank.returncode}"]
            # gloo and NCCL may add warnings below the error.
            return {"problem": next((x for x in reversed(lines) if "Error" in x), lines[-1])}
    printed = said[0][0].strip().splitlines()
    return {"measured": json.loads(printed[-1])} if place.node_rank == 0 else {}


def _free_port() -> int:
    """A port on which rank 0 can wait for the others a little later."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def main(arguments: Sequence[str]) -> int:
    """Take orders until there are no more."""
    parser = argparse.ArgumentParser(prog="launch.clusters.doctor.agent", description=__doc__)
    parser.add_argument("--node", type=int)
    parser.add_argument("--node-variable", default="", help="variable that holds it")
    options = parser.parse_args(arguments)
    agent = Agent(node_rank_of(options.node_variable) if options.node is None else options.node)
    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        # Nothing may wait for a doctor who has gone and whose connection does not tell.
        signal.alarm(SILENCE_SECONDS)
        for line in sys.stdin:
            signal.alarm(SILENCE_SECONDS)
            order = json.loads(line)
            if order["do"] == "end":
                break
            send_lines(sys.stdout, agent.node, {"to": order["do"], **agent.obey(order)})
    finally:
        agent.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
