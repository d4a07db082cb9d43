"""`spade launch local` keeps a run running: ranks are killed, the curve is that of a quiet run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from worker_processes import losses, read_lines, train


def launch(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "launch", "local", str(config), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train."""
    found = []
    for process in psutil.Process(launcher.pid).children(recursive=True):
        try:
            if "pretrain" in process.cmdline() and "RANK" in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def steps_made(run: Path) -> int:
    return max((line["step"] for line in read_lines(run / "metrics.jsonl")), default=0)


@pytest.mark.slow
def test_killed_ranks_are_restarted_and_nothing_is_lost(run_settings, write_config, tmp_path):
    run_settings["train"]["max_steps"] = 12
    run_settings["checkpoint"] = {"every_steps": 2, "keep_last": 2}
    run_settings["evaluation"]["every_steps"] = 100
    config = write_config(run_settings)
    train(config, "name=whole", processes=2)
    run, moments = tmp_path / "runs" / "kept", random.Random(0)
    launcher = launch(config, "name=kept", "--processes", "2", "--max-restarts", "2")
    deadline = time.monotonic() + 200
    for step in (3, 8):
        while steps_made(run) < step and time.monotonic() < deadline:
            time.sleep(0.02)
        ranks = ranks_of(launcher)
        assert ranks, "the ranks of the run are found"
        moments.choice(ranks).kill()
        time.sleep(1)
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, output
    assert "restarted 2 times" in output
    assert losses(run) == losses(tmp_path / "runs" / "whole")


@pytest.mark.slow
def test_ctrl_c_saves_ends_all_and_is_not_restarted(run_settings, write_config, tmp_path):
    run_settings["train"]["max_steps"] = 5000
    config = write_config(run_settings)
    launcher = launch(config, "--processes", "2")
    run = tmp_path / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while steps_made(run) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = ranks_of(launcher)
    os.kill(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, output
    assert (run / "stopped.json").exists()
    assert not any(rank.is_running() for rank in ranks)


def test_a_dry_run_prints_the_command(run_settings, write_config):
    config = write_config(run_settings)
    launcher = launch(config, "name=a b", "--processes", "2", "--dry-run")
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "name" in output
    launcher = launch(config, "--processes", "2", "--dry-run")
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert f"pretrain {config}" in output
    assert "--nproc-per-node 2" in output
    launcher = launch(config, "--processes", "3", "--dry-run")
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "train.global_batch_size 8 is no multiple" in output
