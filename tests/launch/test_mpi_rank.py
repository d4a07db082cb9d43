"""The process that mpiexec starts for a rank: it passes requests on, and its child dies with it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PARENT = """
import os, sys
from launch.clusters.mpi.rank import run_child
sys.exit(run_child([sys.executable, "-c", sys.argv[1]], dict(os.environ)) % 256)
"""
CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
print(os.getpid(), flush=True)
time.sleep(60)
"""


def start(child: str = CHILD) -> tuple[subprocess.Popen[str], psutil.Process]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, child], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_request_reaches_the_child_as_sigterm(number: signal.Signals) -> None:
    parent, _ = start()
    parent.send_signal(number)
    assert parent.wait(30) == 5


def test_a_child_does_not_outlive_a_killed_parent() -> None:
    parent, child = start()
    parent.kill()
    parent.wait(30)
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_death_of_a_rank_is_told(tmp_path: Path) -> None:
    """The real module, whose `spade pretrain` fails at once, and one that is killed."""
    environment = {"PATH": "/usr/bin:/bin", "SPADE_LOG_FOLDER": str(tmp_path)}
    environment |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    module = [sys.executable, "-m", "launch.clusters.mpi.rank", "--nodes", "1", "--processes", "1"]
    missing = [*module, "--", str(tmp_path / "missing.yaml")]
    done = subprocess.run(missing, env=environment, capture_output=True, timeout=120, check=False)
    word = tmp_path / "failures" / "rank-00000.json"
    assert done.returncode == 1
    assert json.loads(word.read_text())["exit_code"] == 1
    word.unlink()
    rank = subprocess.Popen(missing, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(rank.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    children[0].kill()
    assert rank.wait(60) == 137
    assert "SIGKILL" in json.loads(word.read_text())["message"]
