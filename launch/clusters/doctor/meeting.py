"""Every machine listens, every other connects: ports, clocks and round trips in one go."""

from __future__ import annotations

import contextlib
import hmac
import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

CONNECT_SECONDS = 5.0
_PINGS = 5
_PORTS_TRIED = 20
_TIME = struct.Struct("!d")
_MOST_CONNECTIONS_AT_ONCE = 32


@dataclass(frozen=True)
class Peer:
    """Another machine as this one is to reach it."""

    node: int
    name: str
    ports: tuple[int, ...]


@dataclass(frozen=True)
class Contact:
    """One connection that was tried."""

    node: int
    """The machine that listened."""
    port: int
    problem: str = ""
    """Why it failed; "" where it did not."""
    round_trip_seconds: float = 0.0
    """The shortest of some."""
    offset_seconds: float = 0.0
    """How much the other's clock is ahead of this machine's, within half a round trip."""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    daemon_threads = True
    request_queue_size = 256
    token = b""

    def server_bind(self) -> None:
        """Listen to IPv4 and IPv6 at once."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Answer(socketserver.BaseRequestHandler):
    """Tells its time as often as asked, to whoever knows the word of this examination."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        self.request.settimeout(2 * CONNECT_SECONDS)
        with contextlib.suppress(OSError):
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            token = _receive(self.request, len(self.server.token))
            if not hmac.compare_digest(token, self.server.token):
                return
            while self.request.recv(1):
                self.request.sendall(_TIME.pack(time.time()))


def listen(first: int, last: int, token: bytes) -> int:
    """Answer on a free port until this process ends.

    Args:
        first: Lowest port; 0 takes one of those that the system gives to ranks.
        last: Highest port.
        token: What those who connect must say first.

    Returns:
        The port.

    Raises:
        OSError: If all that were tried are in use.
    """
    tries = 1 if first == 0 else _PORTS_TRIED
    for left in reversed(range(tries)):
        server = _Server(("", random.randint(first, last)), _Answer, bind_and_activate=False)
        server.token = token
        try:
            server.server_bind()
            server.server_activate()
            break
        except OSError:
            server.server_close()
            if not left:
                raise
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def meet(peers: Sequence[Peer], token: bytes) -> list[Contact]:
    """Connect to all ports of all others; each takes a few seconds at most, all go side by side."""
    targets = [(peer, port) for peer in peers for port in peer.ports]
    with ThreadPoolExecutor(max_workers=_MOST_CONNECTIONS_AT_ONCE) as pool:
        return list(pool.map(lambda target: _contact(target[0], target[1], token), targets))


def _contact(peer: Peer, port: int, token: bytes) -> Contact:
    try:
        with socket.create_connection((peer.name, port), timeout=CONNECT_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(token)
            round_trip, offset = min(_ping(connection) for _ in range(_PINGS))
    except socket.gaierror:
        return Contact(peer.node, port, f"does not know the name {peer.name}")
    except TimeoutError:
        return Contact(peer.node, port, f"no answer in {CONNECT_SECONDS:.0f} s")
    except OSError as error:
        return Contact(peer.node, port, error.strerror or str(error))
    return Contact(peer.node, port, "", round_trip, offset)


def _ping(connection: socket.socket) -> tuple[float, float]:
    """Seconds of a round trip, and how much the other's clock is ahead."""
    sent_at, started = time.time(), time.perf_counter()
    connection.sendall(b"?")
    (told,) = _TIME.unpack(_receive(connection, _TIME.size))
    round_trip = time.perf_counter() - started
    return round_trip, told - (sent_at + round_trip / 2)


def _receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            raise ConnectionError("closed the connection")
        received += piece
    return received
