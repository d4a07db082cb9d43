"""`spade launch local` keeps a run running: ranks are killed, the curve is that of a quiet run."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import spade
from worker_processes import losses, read_lines, train

from launch.clusters.record import read_events


def launch(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "launch", "local", str(config), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),  # what libraries have told C alone is not ours
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
    killed = []
    for step in (3, 8):
        while steps_made(run) < step and time.monotonic() < deadline:
            time.sleep(0.02)
        ranks = ranks_of(launcher)
        assert ranks, "the ranks of the run are found"
        victim = moments.choice(ranks)
        killed.append(int(victim.environ()["RANK"]))
        victim.kill()
        time.sleep(1)
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, output
    assert "restarted 2 times" in output
    assert losses(run) == losses(tmp_path / "runs" / "whole")
    check_what_is_told(output.splitlines(), run, killed)
    check_events(run, killed)


def check_what_is_told(lines: list[str], run: Path, killed: list[int]) -> None:
    """The first failure comes before all else that the launcher says about an end."""
    told = [number for number, line in enumerate(lines) if line.startswith("first failure: ")]
    for number, rank in zip(told, killed, strict=True):
        assert lines[number].startswith(f"first failure: rank {rank} on {socket.gethostname()} at ")
        assert lines[number].endswith(": was ended by SIGKILL: out of memory?")
        assert lines[number + 1].startswith(f"log: {run}/logs/rank-{rank:05d}.log")
        following = lines[number + 2 : number + 4]
        if following[0] == "(1 other rank ended because of it)":  # or it was only asked to end
            del following[0]
        assert following[0].startswith("restart 1 of 2 in 1 s from the checkpoint of step ")
    assert not any("rank 1:" in line for line in lines), "only the first rank writes here"
    assert (run / "logs" / "rank-00001.out").exists()


def check_events(run: Path, killed: list[int]) -> None:
    events = read_events(run)
    names = [event["event"] for event in events]
    assert names == ["started", "failed", "restarted", "failed", "restarted", "done"]
    assert [event["restarts"] for event in events if "restarts" in event] == [0, 1, 2]
    failed = [event for event in events if event["event"] == "failed"]
    for event, rank in zip(failed, killed, strict=True):
        assert event["reason"] == f"rank {rank}: was ended by SIGKILL: out of memory?"
        assert event["restart"]
        assert event["exit_code"] == 137
    assert {event["launcher"] for event in events} == {"local"}
    assert not (run / "logs" / "failures").exists(), "the last start had none"


@pytest.mark.slow
def test_ctrl_c_saves_ends_all_and_is_not_restarted(run_settings, write_config, tmp_path):
    run_settings["train"]["max_steps"] = 5000
    config = write_config(run_settings)
    dry = dry_run(config)
    launcher = launch(config, "--processes", "2")
    run = tmp_path / "runs" / "tiny"
    deadline = time.monotonic() + 120
    while steps_made(run) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = ranks_of(launcher)
    (torchrun,) = psutil.Process(launcher.pid).children()
    check_dry_run(dry, torchrun)
    (row,) = json.loads(spade("jobs", run, "--json"))
    assert (row["state"], row["launcher"], row["max_steps"]) == ("running", "local", 5000)
    assert row["step"] >= 3
    refused = spade("launch", "local", config, "--processes", "2", code=1)
    assert f"process {launcher.pid} of this host is training it" in refused
    os.kill(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 75, output
    assert (run / "stopped.json").exists()
    assert not any(rank.is_running() for rank in ranks)
    assert [event["event"] for event in read_events(run)] == ["started", "stopped"]
    assert "first failure" not in output


def dry_run(config: Path) -> str:
    """The command that it prints."""
    process = launch(config, "--processes", "2", "--dry-run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output.splitlines()[-1]


def check_dry_run(printed_command: str, torchrun: psutil.Process) -> None:
    """What a dry run prints is what runs, to the last variable."""
    words = shlex.split(printed_command)
    command = torchrun.cmdline()
    assert words[0] == "env"
    assert words[-len(command) :] == command
    printed = dict(word.split("=", 1) for word in words[1 : -len(command)])
    real = torchrun.environ()
    assert printed.items() <= real.items()
    assert real.keys() - printed.keys() <= os.environ.keys(), "nothing is set unsaid"


def test_a_dry_run_prints_the_command(run_settings, write_config, tmp_path):
    config = write_config(run_settings)
    launcher = launch(config, "name=a b", "--processes", "2", "--dry-run")
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "name" in output
    launcher = launch(config, "--processes", "2", "--dry-run")
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    frozen = tmp_path / "runs" / "tiny" / "launch" / "config.yaml"
    assert f"pretrain {frozen}" in output
    assert "--nproc-per-node 2" in output
    assert not frozen.parent.parent.exists(), "nothing is written"
    launcher = launch(config, "--processes", "3", "--dry-run")
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "train.global_batch_size 8 is no multiple" in output
