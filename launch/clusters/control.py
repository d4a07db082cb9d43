"""How a launcher holds a program on another machine: one word a line on its standard input.

A connection tells nothing about a machine that fell silent, and ssh leaves a remote program running
when it is killed itself. So the launcher says ``alive`` every two seconds and ``stop`` once. Where
the line closes or stays silent, the launcher is gone or unreachable: the program then stops as if
asked to.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 30.0
ALIVE = b"alive\n"
STOP = b"stop\n"


def obey_standard_input(silence_seconds: float = SILENCE_SECONDS) -> None:
    """Listen in a thread: ``stop``, the end of the line or silence send this process SIGTERM.

    Args:
        silence_seconds: Longest time without a word.
    """
    threading.Thread(
        target=_obey, args=(sys.stdin.fileno(), silence_seconds), name="control", daemon=True
    ).start()


def _obey(descriptor: int, silence_seconds: float) -> None:
    heard_at = time.monotonic()
    words = b""
    while True:
        left = heard_at + silence_seconds - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            break
        received = os.read(descriptor, 4096)
        heard_at = time.monotonic()
        words += received
        if not received or STOP in words:
            break
        words = words[-len(STOP) :]
    os.kill(os.getpid(), signal.SIGTERM)
