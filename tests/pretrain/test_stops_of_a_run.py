"""Whoever asks a run to stop, and wherever it is: the state is saved and the exit code says so."""

from __future__ import annotations

import json
import signal
import time

import pytest
from worker_processes import Workers, losses, read_lines, train

from pretrain.checkpoints.checkpoint_format import list_checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture
def long_settings(run_settings):
    """Would go on for minutes."""
    run_settings["train"]["max_steps"] = 5000
    run_settings["evaluation"]["every_steps"] = 5000
    run_settings["checkpoint"]["every_steps"] = 5000
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 2}
    return run_settings


def reason(run):
    return json.loads((run / "stopped.json").read_text())["reason"]


def test_a_file_and_the_clock_stop_a_run_which_goes_on_exactly(
    long_settings, write_config, tmp_path
):
    config = write_config(long_settings)
    run = tmp_path / "runs" / "tiny"
    workers = Workers(config, processes=2)
    workers.wait_for_step(run / "metrics.jsonl", 3)
    (run / "STOP").touch()
    assert workers.wait() == [75, 75], workers.output
    assert reason(run) == "STOP file"
    assert not (run / "STOP").exists(), "or the same command could not go on"
    by_file = list_checkpoints(run)[-1]
    assert by_file.kind == "stop"

    workers = Workers(config, "resilience.stop.wall_clock_seconds=12", processes=2)
    started = time.monotonic()
    assert workers.wait() == [75, 75], workers.output
    assert time.monotonic() - started < 40
    assert reason(run) == "wall clock"
    steps = list_checkpoints(run)[-1].step
    assert steps > by_file.step
    train(config, "name=whole", f"train.max_steps={steps}", processes=2)
    assert losses(run) == losses(tmp_path / "runs" / "whole")


def test_a_stop_within_an_evaluation_is_noticed_and_the_evaluation_made_later(
    long_settings, write_config, tmp_path
):
    many = {f"again_{number}": {"kind": "prefix_lm"} for number in range(12)}
    long_settings["evaluation"] |= {"samples": 4000, "objectives": many}
    long_settings["data"]["heldout"] = long_settings["data"]["train"]  # a minute of evaluation
    long_settings["model"]["max_target_length_tokens"] = 80
    long_settings["train"]["max_steps"] = 2
    config = write_config(long_settings)
    run = tmp_path / "runs" / "tiny"
    workers = Workers(config, processes=2)
    log = run / "logs" / "rank-00000.log"
    workers.wait_for(lambda: log.exists() and "numbers in float32" in log.read_text())
    time.sleep(1)
    workers.signal(signal.SIGUSR1, 1)
    started = time.monotonic()
    assert workers.wait() == [75, 75], workers.output
    assert time.monotonic() - started < 30
    assert reason(run) == "SIGUSR1"
    assert [info.step for info in list_checkpoints(run)] == [0]
    assert not any("eval/heldout/loss" in line for line in read_lines(run / "metrics.jsonl"))
    train(config, "evaluation.samples=2", processes=2)
    evaluated = [x["step"] for x in read_lines(run / "metrics.jsonl") if "eval/heldout/loss" in x]
    assert evaluated == [0, 2]
