"""Short lines of text over a socket, from threads that must never wait."""

from __future__ import annotations

import contextlib
import socket

_LONGEST_LINE_BYTES = 2048


class LineConnection:
    """One end of a connection.

    Attributes:
        socket: For a selector.
        rank: The rank at the other end, once it is known.
    """

    def __init__(self, connected: socket.socket, rank: int | None = None) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.rank = rank
        self._received = b""

    def send(self, line: str) -> None:
        """Send one line, cut to what a receiver takes; lost where nobody receives any more."""
        data = " ".join(line.splitlines()).encode()[: _LONGEST_LINE_BYTES - 1]
        with contextlib.suppress(OSError):  # a full buffer too: who does not read is dead anyway
            self.socket.send(data + b"\n")

    def receive(self) -> list[str] | None:
        """What has come in: complete lines; None where the other end is gone, or no rank of ours.

        Call it when the socket is readable.
        """
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        if not data or len(self._received) > _LONGEST_LINE_BYTES:
            return None
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


def listen() -> socket.socket:
    """A listening socket on a free port of every address of this host."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
        )
    return socket.create_server(("", 0), backlog=1024)
