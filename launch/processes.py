"""Child processes that never outlive us, whatever ends first.

A child runs in a session of its own, so Ctrl-C on the terminal reaches only this process, which
passes it on once, as SIGTERM: the polite request that schedulers use as well. A second Ctrl-C
kills. Three nets catch what is left, because torchrun puts its workers into further sessions:

1. this process becomes the foster parent of orphans (PR_SET_CHILD_SUBREAPER, Linux), so that every
   descendant stays findable, and ends them when the child has ended;
2. the child is told by the kernel when this process dies, even by SIGKILL (PR_SET_PDEATHSIG);
3. the child's process group is killed on every way out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from launch.failures import Stopped

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_POLL_SECONDS = 0.1
# Loaded here: between fork and exec nothing may be.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class ProcessResult:
    """How a supervised process ended.

    Attributes:
        exit_code: Its exit code; negative for a signal.
        signals: Requests to stop that this process received meanwhile, in order.
        seconds: Wall-clock time.
        output: What it wrote on standard output, where that was captured, else "".
    """

    exit_code: int
    signals: tuple[signal.Signals, ...]
    seconds: float
    output: str = ""


def _prctl(option: int, value: int) -> None:
    """Calls prctl(2) where there is one; the nets above are one fewer elsewhere."""
    if _LIBC is not None:
        _LIBC.prctl(option, value, 0, 0, 0)


def end_with_parent(parent: int | None = None, number: signal.Signals = signal.SIGTERM) -> None:
    """Asks the kernel to send this process a signal when its parent dies.

    Args:
        parent: Process id that the parent must have (default: that of whoever it is now).
        number: The signal.
    """
    parent = os.getppid() if parent is None else parent
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it has died before it could be asked for
        os.kill(os.getpid(), number)


@contextlib.contextmanager
def stop_on_termination() -> Iterator[None]:
    """Turns SIGTERM and SIGHUP into ``Stopped`` inside the block, so that it can clean up.

    Raises:
        Stopped: In the main thread, with exit code 128 + the signal's number.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}", 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class StopRequests:
    """Signals received while a child runs: noted, never acted upon inside the handler."""

    received: list[signal.Signals] = field(default_factory=list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the stop signals over; hands them back afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _frame: FrameType | None) -> None:
            self.received.append(signal.Signals(number))

        before = {number: signal.signal(number, note) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, seconds: float) -> None:
        """Wait, while listening, for so long or until a stop is requested."""
        deadline = time.monotonic() + seconds
        while not self.received and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(_POLL_SECONDS, left))

    @property
    def wants_kill(self) -> bool:
        """Whether Ctrl-C came twice."""
        return self.received.count(signal.SIGINT) > 1


@contextlib.contextmanager
def _adopting_orphans() -> Iterator[set[psutil.Process]]:
    """Makes this process inherit its orphaned descendants; gives the children it had before."""
    import psutil

    before = set(psutil.Process().children(recursive=True))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield before
    finally:
        _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _kill_leftovers(process: subprocess.Popen[Any], before: set[psutil.Process]) -> None:
    """Ends the child, its process group and every descendant that still lives."""
    import psutil

    for _ in range(50):  # a process may fork while we look
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()  # before psutil can, which would lose the exit code
        left = [child for child in psutil.Process().children(recursive=True) if child not in before]
        if not left:
            return
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(left, timeout=0.5)  # collects the adopted ones


def run_supervised(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    working_folder: Path | None = None,
    ask_to_stop: Callable[[subprocess.Popen[Any]], None] | None = None,
    watch: Callable[[], None] | None = None,
    grace_seconds: float | None = 15.0,
    capture_output: bool = False,
) -> ProcessResult:
    """Runs a command to its end and leaves no process behind.

    Args:
        command: Program and arguments; no shell is involved.
        environment: The child's whole environment (default: ours).
        working_folder: Where the child runs (default: here).
        ask_to_stop: Passes a stop request on (default: SIGTERM to the child). Called again at
            every poll until the child has ended, so it must be safe to repeat.
        watch: Called about ten times a second while the child runs.
        grace_seconds: How long after the request the child may take before it is killed; None
            waits for as long as it takes (or for a second Ctrl-C).
        capture_output: Keep standard output for the result instead of passing it through.

    Returns:
        How it ended; a request to stop is in ``signals``, never raised.

    Raises:
        OSError: The program cannot be started.
    """
    requests = StopRequests()
    started = time.monotonic()
    asked_at: float | None = None
    chunks: list[str] = []
    with requests.listening(), _adopting_orphans() as before:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=None if environment is None else dict(environment),
            cwd=working_folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture_output else None,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
        reader = threading.Thread(target=_drain, args=(process, chunks), daemon=True)
        reader.start()
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_POLL_SECONDS)
                    break
                if watch is not None:
                    watch()
                if not requests.received:
                    continue
                if asked_at is None:
                    asked_at = time.monotonic()
                too_late = grace_seconds is not None and time.monotonic() > asked_at + grace_seconds
                if requests.wants_kill or too_late:
                    break
                if ask_to_stop is None:
                    process.terminate()
                else:
                    ask_to_stop(process)
        finally:
            _kill_leftovers(process, before)
            reader.join(timeout=5.0)
            if process.stdout is not None:
                process.stdout.close()
    return ProcessResult(
        exit_code=process.returncode,
        signals=tuple(requests.received),
        seconds=time.monotonic() - started,
        output="".join(chunks),
    )


def _drain(process: subprocess.Popen[str], chunks: list[str]) -> None:
    """Reads a captured output to its end, so that the child never waits for us."""
    if process.stdout is not None:
        with contextlib.suppress(ValueError):  # closed under us: the child was killed
            chunks.extend(process.stdout)
