"""How a launcher holds a program on another machine: one word a line on its standard input.

A connection tells nothing about a machine that fell silent, and ssh leaves a remote program running
when it is killed itself. So the launcher says ``alive`` every two seconds, ``stop`` once and
``kill`` if need be. Where the line closes or stays silent, the launcher is gone or unreachable: the
program then stops as if asked to.

The other direction must hold as well: a program that writes to a launcher that is gone would break
in the middle of a step, so what it and its children say goes through :func:`relayed_output`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
ALIVE = b"alive\n"
STOP = b"stop\n"
KILL = b"kill\n"

_LONGEST_WORD_BYTES = 64
_KILL_INTERVAL_SECONDS = 0.3
_UNREAD_SECONDS = 5.0
_LAST_OUTPUT_SECONDS = 3.0


class Words:
    """Takes a stream of bytes apart into words, wherever it was cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[bytes]:
        """Take some bytes.

        Returns:
            The words that are complete now, each with the end of its line.
        """
        *lines, rest = (self._rest + received).split(b"\n")
        # No word is longer; the end of one that is too long can be none either.
        self._rest = rest[:_LONGEST_WORD_BYTES]
        return [line + b"\n" for line in lines]


def obey_standard_input(silence_seconds: float = SILENCE_SECONDS) -> None:
    """Listen in a thread.

    ``stop``, the end of the line or silence send this process SIGTERM; ``kill`` sends it SIGINT
    until it is gone, as somebody does who presses Ctrl-C again and again.

    Args:
        silence_seconds: Longest time without a word.
    """
    threading.Thread(
        target=_obey, args=(sys.stdin.fileno(), silence_seconds), name="control", daemon=True
    ).start()


def _obey(descriptor: int, silence_seconds: float) -> None:
    words = Words()
    stopped = False
    while True:
        # Once asked to stop, only a `kill` matters, for which it may wait as long as it takes.
        patience = None if stopped else silence_seconds
        received = _receive(descriptor, patience)
        heard = words.feed(received)
        if KILL in heard:
            _kill()
        if not stopped and (not received or STOP in heard):
            stopped = True
            os.kill(os.getpid(), signal.SIGTERM)
        if not received and patience is None:
            return


def _receive(descriptor: int, patience_seconds: float | None) -> bytes:
    """Bytes; none at the end of the line, or when nobody said anything for so long."""
    if not select.select([descriptor], [], [], patience_seconds)[0]:
        return b""
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


def _kill() -> None:
    while True:  # the second one kills; one that follows too fast is taken for the first
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(_KILL_INTERVAL_SECONDS)


@contextlib.contextmanager
def relayed_output() -> Iterator[None]:
    """Let this process and its children write to pipes that neither break nor fill.

    Threads of this process pass on what comes out of them, for as long as somebody reads; the rest
    is dropped, since a rank that waits to be read stands still.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    relays = []
    for descriptor in (1, 2):
        sink = os.dup(descriptor)
        source, entrance = os.pipe()
        os.dup2(entrance, descriptor)
        os.close(entrance)
        thread = threading.Thread(target=_relay, args=(source, sink), name="relay", daemon=True)
        thread.start()
        relays.append((descriptor, sink, thread))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, sink, thread in relays:
            os.dup2(sink, descriptor)  # closes the pipe's entrance: the relay sees its end
            thread.join(_LAST_OUTPUT_SECONDS)


def _relay(source: int, sink: int) -> None:
    """Pass bytes on; forget them where nobody takes them."""
    read = True
    while received := os.read(source, select.PIPE_BUF):
        try:
            # A pipe that takes anything takes this many bytes without waiting. Once nobody has read
            # for a while, nobody is waited for any more.
            read = bool(select.select([], [sink], [], _UNREAD_SECONDS if read else 0)[1])
            while read and received:
                received = received[os.write(sink, received) :]
        except OSError:
            read = False
