"""One start over several hosts, local programs in the place of ssh: how it is held and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from launch.clusters.ssh.attempt import run_attempt
from launch.clusters.ssh.hostfile import Host
from launch.processes import ProcessResult
from pretrain.resilience.ending import LOST_EXIT_CODE

# Behaves as an agent would: leaves its number, ends with a code by itself or when it is asked to.
AGENT = """
import signal, sys, time
from pathlib import Path
from launch.clusters.control import obey_standard_input

name, seconds, code, asked_code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
mark = Path(sys.argv[5]) / name
mark.write_text("")

def asked(number, frame):
    mark.write_text(signal.Signals(number).name)
    if number == signal.SIGINT or asked_code != "deaf":
        sys.exit(137 if number == signal.SIGINT else int(asked_code))

signal.signal(signal.SIGTERM, asked)
signal.signal(signal.SIGINT, asked)
obey_standard_input(4.0)
print(f"{name} says")
print(f"{name} complains", file=sys.stderr, flush=True)
sys.stdout.flush()
time.sleep(seconds)
if code < 0:
    import os
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def attempt(folder: Path, *agents: tuple[float, int, str], end_seconds: float) -> ProcessResult:
    """Each agent: seconds until it ends by itself, its code then, its code when it is asked."""
    hosts = [Host(f"node{number}", 1) for number in range(1, len(agents) + 1)]
    commands = [
        [sys.executable, "-c", AGENT, host.name, *map(str, agent), str(folder)]
        for host, agent in zip(hosts, agents, strict=True)
    ]
    return run_attempt(hosts, commands, end_seconds=end_seconds)


def heard(folder: Path, *names: str) -> list[str]:
    return [(folder / name).read_text() for name in names]


def when_all_run(folder: Path, count: int, action: object) -> threading.Thread:
    def wait() -> None:
        while len(list(folder.iterdir())) < count:
            time.sleep(0.05)
        time.sleep(0.5)
        action()  # type: ignore[operator]

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_an_attempt_that_is_done_shows_the_first_host_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # Longer than the agents bear silence: they are held by signs of life.
    result = attempt(tmp_path, (6, 0, "75"), (6, 0, "75"), end_seconds=5)
    assert result.exit_code == 0
    assert heard(tmp_path, "node1", "node2") == ["", ""]
    shown = capfd.readouterr()
    assert shown.out == "node1 says\n"
    assert set(shown.err.splitlines()) == {
        "node1 complains",
        "node2: node2 complains",
        "node2: node2 says",
    }


@pytest.mark.parametrize(
    ("code", "expected"), [(1, 1), (137, 137), (255, LOST_EXIT_CODE), (-9, LOST_EXIT_CODE)]
)
def test_a_host_that_fails_or_is_lost_stops_the_others(
    tmp_path: Path, code: int, expected: int, capfd: pytest.CaptureFixture[str]
) -> None:
    result = attempt(tmp_path, (60, 0, "75"), (1.0, code, "75"), end_seconds=20)
    assert result.exit_code == expected
    assert heard(tmp_path, "node1", "node2") == ["SIGTERM", ""]
    assert result.seconds < 15
    lost = "node2: the connection is lost" in capfd.readouterr().err
    assert lost == (expected == LOST_EXIT_CODE)


def test_ranks_that_do_not_end_after_a_failure_are_killed(tmp_path: Path) -> None:
    result = attempt(tmp_path, (60, 0, "deaf"), (1.0, 1, "75"), end_seconds=1.5)
    assert result.exit_code == 1
    assert heard(tmp_path, "node1") == ["SIGINT"]
    assert result.seconds < 20


def test_ctrl_c_stops_all_and_the_second_kills(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    when_all_run(tmp_path, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    result = attempt(tmp_path, (60, 0, "75"), (60, 0, "75"), end_seconds=20)
    assert (result.exit_code, result.signals) == (75, (signal.SIGINT,))
    assert heard(tmp_path, "node1", "node2") == ["SIGTERM", "SIGTERM"]
    for path in tmp_path.iterdir():
        path.unlink()

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    when_all_run(tmp_path, 2, twice)
    result = attempt(tmp_path, (60, 0, "deaf"), (60, 0, "deaf"), end_seconds=20)
    assert result.exit_code == 137
    assert heard(tmp_path, "node1", "node2") == ["SIGINT", "SIGINT"]
    assert result.seconds < 20
    assert signal.getsignal(signal.SIGINT) is handler


def test_without_ssh_nothing_is_left_running(tmp_path: Path) -> None:
    before = psutil.Process().children()
    hosts = [Host("node1", 1), Host("node2", 1)]
    first = [sys.executable, "-c", AGENT, "node1", "60", "0", "75", str(tmp_path)]
    with pytest.raises(FileNotFoundError):
        run_attempt(hosts, [first, ["/no/such/ssh"]], end_seconds=5)
    assert psutil.Process().children() == before
