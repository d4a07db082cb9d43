"""Seconds from the command to the first step: of a new run, and of one that goes on."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from benchmarks.common.report import Table
from benchmarks.engine.inputs import timed_run, write_config
from benchmarks.engine.options import Options
from benchmarks.engine.ranks import FirstStep, run

_STEPS = 3


def start_tables(options: Options) -> list[Table]:
    """Measure new and resumed starts in turn."""
    fresh, resumed = [], []
    for number in range(options.start_rounds):
        settings = timed_run(
            options,
            f"start-{number}",
            evaluation={"every_steps": 10**9, "samples": 16},
        )
        config = write_config(options, settings)
        path = options.folder / "runs" / settings["name"]
        fresh.append(first_step_seconds(config, path, _STEPS, options.processes))
        resumed.append(first_step_seconds(config, path, 2 * _STEPS, options.processes, _STEPS))
        shutil.rmtree(path)
    rows = [
        {
            "start": name,
            "median s": statistics.median(seconds),
            "longest s": max(seconds),
            "rounds": len(seconds),
        }
        for name, seconds in (("new run", fresh), ("resumed run", resumed))
    ]
    note = f"{options.processes} ranks under the launcher, from the command to the step's metrics."
    return [Table("start", "From the command to the first step", rows, (note,))]


def first_step_seconds(
    config: Path, run_path: Path, max_steps: int, processes: int, after_step: int = 0
) -> float:
    """Run to a step, and measure when the first one was made.

    Args:
        config: The run.
        run_path: Its folder.
        max_steps: Where it ends.
        processes: Number of ranks.
        after_step: Step that it goes on from.
    """
    watch = FirstStep(run_path, after_step)
    run(config, f"train.max_steps={max_steps}", processes=processes, watch=watch)
    watch()
    assert watch.seconds is not None, "the run has reached its last step"
    return watch.seconds
