"""Real runs that are asked to stop, or lose a rank: how each rank ends, and what it leaves."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_processes import Workers

from pretrain.resilience.ending import LOST_EXIT_CODE


@pytest.mark.slow
def test_a_file_a_time_limit_and_a_rank_that_stands_still_end_a_run(
    run_settings: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]
) -> None:
    run_settings["train"]["max_steps"] = 1_000_000
    run_settings["evaluation"] = {"every_steps": 1_000_000, "samples": 2}
    run_settings["checkpoint"] = {"every_steps": 1_000_000}
    config = write_config(run_settings)
    run = Path(run_settings["run_dir"]) / run_settings["name"]

    workers = Workers(config, processes=2)
    workers.wait_for_step(run / "metrics.jsonl", 2)
    (run / "STOP").touch()
    assert workers.wait(60) == [75, 75], workers.output
    assert not (run / "STOP").exists(), "the same command goes on"
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["reason"] == "STOP file"

    # Less than a start takes, so the request is there before the first step.
    workers = Workers(config, "resilience.stop.wall_clock_seconds=0.1", processes=2)
    assert workers.wait(60) == [75, 75], workers.output
    again = json.loads((run / "stopped.json").read_text())
    assert (again["reason"], again["step"]) == ("wall clock", stopped["step"])

    quick = ["resilience.liveness.silence_seconds=2", "resilience.liveness.beat_seconds=0.2"]
    workers = Workers(config, *quick, processes=2)
    workers.wait_for_step(run / "metrics.jsonl", stopped["step"] + 1)
    workers.signal(signal.SIGSTOP, 1)
    began = time.monotonic()
    assert workers.ranks[0].wait(20) == LOST_EXIT_CODE
    assert time.monotonic() - began < 12
    assert "rank 1 gave no sign of life for 2 s" in workers.ranks[0].output
    stacks = (run / "logs" / "rank-00000-stacks.txt").read_text()
    assert "loop.py" in stacks, "where the main thread is"
    assert "all_reduce" in stacks
    workers.signal(signal.SIGCONT, 1)
    assert workers.ranks[1].wait(20) not in (0, 75), "it must not train on alone"
