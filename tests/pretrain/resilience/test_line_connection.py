"""Lines over real sockets, in whatever pieces they arrive, and whatever else arrives."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from pretrain.resilience.line_connection import LineConnection

LINES = st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40))


def pair() -> tuple[LineConnection, socket.socket]:
    """A connection and the raw other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        raw = socket.create_connection(server.getsockname())
        return LineConnection(server.accept()[0]), raw


def drain(connection: LineConnection) -> list[str] | None:
    """All that comes until the other end, which has closed; None where it was no good."""
    connection.socket.settimeout(5)
    lines: list[str] = []
    while (received := connection.receive()) is not None:
        lines += received
    return lines


@given(LINES, st.data())
def test_lines_arrive_whole_however_they_are_cut(lines: list[str], data: st.DataObject) -> None:
    connection, raw = pair()
    text = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    received: list[str] = []
    connection.socket.settimeout(5)
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        raw.sendall(text[start:end])
        if start < end:
            received += connection.receive() or []
    raw.close()
    assert received + (drain(connection) or []) == lines
    connection.close()


@given(st.binary(max_size=5000))
def test_no_bytes_raise(noise: bytes) -> None:
    connection, raw = pair()
    raw.sendall(noise)
    raw.close()
    assert drain(connection) is not None
    connection.close()


def test_a_line_without_end_is_not_kept() -> None:
    connection, raw = pair()
    raw.sendall(b"x" * 100_000)
    connection.socket.settimeout(5)
    assert connection.receive() is None
    connection.close()
    raw.close()


@given(st.text(max_size=5000))
def test_what_is_sent_is_one_line_that_is_taken(text: str) -> None:
    connection, raw = pair()
    other = LineConnection(raw)
    connection.send(text)
    connection.send("next")
    connection.close()
    received = drain(other)
    assert received is not None
    assert (len(received), received[-1]) == (2, "next")
    other.close()


def test_sending_never_waits_for_who_does_not_read() -> None:
    connection, raw = pair()
    for _ in range(20_000):
        connection.send("x" * 1000)
    raw.close()
    connection.send("to nobody")
    connection.close()
