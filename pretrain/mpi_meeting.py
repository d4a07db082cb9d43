"""Where the ranks of an MPI job meet: ``python -m pretrain.mpi_meeting``, once beside each rank.

The ranks ask MPI who they are and agree on an address of rank 0 that all hosts reach. It is a
process of its own that has ended before torch is loaded: an MPI library hooks into memory
allocation, forks and signals of its process, and training wants none of that. MPI launchers bear
it, since their programs are often shell scripts that start the real one.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_TRY_SECONDS = 5.0
_LOOPBACK = "127.0.0.1"


def own_addresses(interfaces: str = "") -> list[str]:
    """Addresses at which other hosts may reach this one, IPv4 before IPv6.

    Args:
        interfaces: Names of the only interfaces to use, separated by commas; "" is any.
    """
    import psutil

    wanted = {name for name in interfaces.split(",") if name}
    running = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = [
        (item.family != socket.AF_INET, item.address)
        for name, items in psutil.net_if_addrs().items()
        if name in running and (name in wanted if wanted else name != "lo")
        for item in items
        # Addresses of one link alone carry the link's name behind a %: no other host knows it.
        if item.family in (socket.AF_INET, socket.AF_INET6) and "%" not in item.address
    ]
    return [address for _, address in sorted(found, key=lambda pair: pair[0])]


class Doorbell:
    """A port of rank 0 that answers with a word, by which the others know that it is the one."""

    def __init__(self) -> None:
        """Open it on all addresses."""
        self.word = secrets.token_hex(16)
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        else:
            self._socket = socket.create_server(("", 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._answer, name="doorbell", daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:  # closed
                return
            with visitor:
                visitor.sendall(self.word.encode())

    def close(self) -> None:
        """Answer no more."""
        self._socket.close()


def reaches(address: str, port: int, word: str) -> bool:
    """Whether a doorbell's word comes from there."""
    try:
        with socket.create_connection((address, port), timeout=_TRY_SECONDS) as connection:
            connection.settimeout(_TRY_SECONDS)
            received = b""
            while part := connection.recv(64):
                received += part
    except OSError:
        return False
    return received == word.encode()


def common_address(offered: Sequence[str], reached: Sequence[Sequence[str] | None]) -> str | None:
    """The first address offered that everybody who tried has reached.

    Args:
        offered: Addresses of rank 0.
        reached: For each rank those it has reached, None where it did not try.
    """
    tried = [set(addresses) for addresses in reached if addresses is not None]
    return next((item for item in offered if all(item in found for found in tried)), None)


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def meet(world: Any, local: Any) -> dict[str, Any]:
    """Agree with all ranks; all of them call this.

    Args:
        world: mpi4py's communicator of all ranks.
        local: That of the ranks of this host.

    Returns:
        rank, size and local_rank, and, the same on all ranks, the host and port of rank 0; the host
        is None where no address of it is reached from everywhere, and `offered` names those tried.
    """
    place = {"rank": world.rank, "size": world.size, "local_rank": local.rank}
    beside_first = local.bcast(world.rank) == 0
    if all(world.allgather(beside_first)):
        port = world.bcast(free_port() if world.rank == 0 else None)
        return {**place, "host": _LOOPBACK, "port": port, "offered": []}
    doorbell = Doorbell() if world.rank == 0 else None
    offer = None
    if doorbell is not None:
        addresses = own_addresses(os.environ.get("GLOO_SOCKET_IFNAME", ""))
        offer = (addresses, doorbell.port, doorbell.word)
    addresses, door, word = world.bcast(offer)
    reached = None
    if not beside_first and local.rank == 0 and addresses:
        with ThreadPoolExecutor(len(addresses)) as pool:
            answers = pool.map(lambda address: reaches(address, door, word), addresses)
            reached = [item for item, good in zip(addresses, answers, strict=True) if good]
    found = world.gather(reached)
    agreed = None
    if doorbell is not None:
        doorbell.close()
        agreed = (common_address(addresses, found), free_port())
    host, port = world.bcast(agreed)
    return {**place, "host": host, "port": port, "offered": addresses}


def main() -> None:
    """Meet, and print the outcome as a line of JSON."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    meeting = meet(world, world.Split_type(MPI.COMM_TYPE_SHARED))
    meeting["library"] = " ".join(MPI.Get_library_version().splitlines()[0].split())
    print(json.dumps(meeting), flush=True)


if __name__ == "__main__":
    main()
