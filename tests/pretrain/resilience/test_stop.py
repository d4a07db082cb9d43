"""Requests to stop, heard by a process that is busy with something else."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretrain.resilience.stop import StopRequest

# Computes for minutes in one call of C, which lets other threads run but no signal handler.
BUSY = """
import hashlib, sys
from pretrain.resilience.stop import StopRequest

stop = StopRequest().install()
assert not {"torch", "numpy", "pydantic"} & set(sys.modules), "listens before these are loaded"
print("ready", flush=True)
try:
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted")
print(stop.reason)
"""

# A child that shares the parent's handlers and gets a signal of its own.
FORKING = """
import os, signal, time
from pretrain.resilience.stop import StopRequest

stop = StopRequest().install()
child = os.fork()
if child == 0:
    time.sleep(20)
time.sleep(0.2)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
    os.kill(child, number)
    time.sleep(0.1)
print(stop.reason)
os.kill(child, signal.SIGKILL)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start_process(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start_process
    for process in started:
        process.kill()
        process.communicate()


def busy(start: Start, rounds: int = 10**9) -> subprocess.Popen[str]:
    process = start(BUSY, str(rounds))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_ctrl_c_ends_a_call_that_does_not_return(start: Start) -> None:
    process = busy(start)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(2.0) == 130


def test_many_requests_end_nothing_and_the_first_is_the_reason(start: Start) -> None:
    process = busy(start, 3_000_000)  # a second or a few
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
        time.sleep(0.02)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "SIGUSR1\n")


def test_signals_to_a_fork_are_not_its_parents(start: Start) -> None:
    output, _ = start(FORKING).communicate(timeout=30)
    assert output == "None\n"


def test_a_file_asks_until_it_is_honoured(tmp_path: Path) -> None:
    file = tmp_path / "STOP"
    stop = StopRequest().watch(file=file)
    assert not stop.requested
    file.touch()
    deadline = time.monotonic() + 5
    while not stop.requested:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stop.reason == "STOP file"
    assert file.exists(), "a run that is killed before its checkpoint stands must find it again"
    stop.honoured()
    assert not file.exists()
    assert stop.requested, "what was asked stays asked"


def test_a_file_that_did_not_ask_stays(tmp_path: Path) -> None:
    file = tmp_path / "STOP"
    stop = StopRequest().watch(file=file, wall_clock_seconds=0.0)
    file.touch()
    assert stop.reason == "wall clock"
    stop.honoured()
    assert file.exists()


def test_asking_costs_no_file_access_each_time(tmp_path: Path) -> None:
    """A network file system is asked twice a second, not in each micro-step."""
    looks: list[Path] = []

    class Counted(type(tmp_path)):  # type: ignore[misc]  # the platform's path
        def exists(self, **keywords: bool) -> bool:
            looks.append(self)
            return super().exists(**keywords)

    stop = StopRequest().watch(file=Counted(tmp_path / "STOP"))
    end = time.monotonic() + 1.2
    questions = 0
    while time.monotonic() < end:
        questions += stop.requested is False
    assert 2 <= len(looks) <= 3
    assert questions > 1000


def test_a_broken_file_system_is_no_request(tmp_path: Path) -> None:
    stop = StopRequest().watch(file=Path(f"{tmp_path}/{'x' * 5000}/STOP"))
    assert not stop.requested


def test_the_wall_clock_asks_in_time() -> None:
    stop = StopRequest().watch(wall_clock_seconds=0.3)
    began = time.monotonic()
    while not stop.requested:
        assert time.monotonic() < began + 5
    assert 0.2 < time.monotonic() - began < 1.0
    assert stop.reason == "wall clock"


def test_nobody_asked() -> None:
    assert StopRequest().reason is None
