"""How much longer a step takes while a checkpoint is written, in the background and in line."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common.report import Table
from benchmarks.engine.inputs import timed_run, write_config
from benchmarks.engine.options import Options
from benchmarks.engine.ranks import run
from pretrain.run_folder import RunFolder

_SAVED = re.compile(r"checkpoint \S*step-0*(\d+) in ([0-9.]+) s")


def stall_tables(options: Options) -> list[Table]:
    """Compare steps during a save with the others, both ways to save."""
    rows = []
    for in_background in (True, False):
        name = f"stall-{'background' if in_background else 'in-line'}"
        settings = timed_run(
            options,
            name,
            train={"max_steps": options.stall_steps},
            checkpoint={
                "every_steps": options.stall_every_steps,
                "in_background": in_background,
                "keep_last": 2,
            },
        )
        run(write_config(options, settings), processes=1)
        rows.append({"saving": name.removeprefix("stall-"), **_row(options, name)})
    notes = (
        "A step counts as one during a save if it began before the checkpoint was in force.",
        "The pause is the time in which the loop itself waits: for the snapshot, or for it all.",
    )
    return [Table("stall", "Steps while a checkpoint is written", rows, notes)]


def _row(options: Options, name: str) -> dict[str, Any]:
    folder = RunFolder(options.folder / "runs" / name)
    lines = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    seconds = {line["step"]: line["step_seconds"] for line in lines if "loss" in line}
    saves = _saves(folder.logs / "rank-00000.log")
    warm = {step for step in seconds if step > options.warm_up_steps}
    during: set[int] = set()
    for step, length in saves.items():
        began = 0.0
        for following in itertools.takewhile(seconds.__contains__, itertools.count(step + 1)):
            if began >= length:
                break
            during.add(following)
            began += seconds[following]
    times = [seconds[step] for step in warm & during]
    others = [seconds[step] for step in warm - during]
    usual = statistics.median(others)
    pauses = [
        line["time/checkpoint_seconds"] for line in lines if "time/checkpoint_seconds" in line
    ]
    return {
        "saves": len(saves),
        "save s": statistics.median(saves.values()),
        "MB": _megabytes(folder),
        "usual step s": usual,
        "step in a save s": statistics.median(times) if times else None,
        "longer %": 100 * (statistics.median(times) / usual - 1) if times else None,
        "pause s": max(pauses, default=None),
    }


def _saves(log: Path) -> dict[int, float]:
    """Seconds of each save by its step, as the rank's log tells them."""
    found = _SAVED.findall(log.read_text(encoding="utf-8"))
    return {int(step): float(seconds) for step, seconds in found}


def _megabytes(folder: RunFolder) -> float:
    newest = (folder.checkpoints / "latest").resolve()
    return sum(file.stat().st_size for file in newest.iterdir()) / 1e6
