"""Runs whose ranks are killed at random moments and restarted by the launcher.

Each is compared bit for bit with one that was left alone: every loss and gradient norm, the weights
and the optimizer's state. On are dropout, accumulation, activation checkpointing and two sources.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.report import Table
from benchmarks.engine.inputs import killed_run, write_config
from benchmarks.engine.options import Options
from benchmarks.engine.ranks import FirstStep, ranks_of, run
from launch.curves import last_step
from pretrain.checkpoints.checkpoint_format import CONFIG, latest_complete, read_manifest
from pretrain.run_folder import RunFolder

_SHARE_IN_A_START = 0.3


class Killer:
    """Kills one rank with SIGKILL at a random moment of each life of the ranks.

    Three of ten kills fall anywhere into the start, the others behind the first step of the life,
    soon enough that the run lasts for all of them.

    Args:
        run_path: The run.
        kills: How often.
        start_seconds: That a start takes.
        training_seconds: That the whole run trains.
        draw: Source of the moments and of the rank.
    """

    def __init__(
        self,
        run_path: Path,
        kills: int,
        start_seconds: float,
        training_seconds: float,
        draw: random.Random,
    ) -> None:
        self._metrics = RunFolder(run_path).metrics_path
        self._left, self._draw = kills, draw
        self._start_seconds = start_seconds
        # One life more than kills: the last one, and what is left of a step, come on top.
        self._life_seconds = training_seconds / (kills + 1)
        self._launcher: int | None = None
        self._at = 0.0
        self._waits_for_step = False
        self._steps_before = 0
        self.moments: Counter[str] = Counter()
        """How many kills fell into the start, and how many behind the first step."""

    def __call__(self) -> None:
        """Kill if the moment has come; the launcher calls this ten times a second."""
        launchers = psutil.Process().children()
        if not self._left or not launchers:
            return
        launcher = launchers[0]
        if launcher.pid != self._launcher:
            self._launcher = launcher.pid
            self._at = float("inf")
            self._waits_for_step = self._draw.random() > _SHARE_IN_A_START
            if not self._waits_for_step:
                self._at = time.monotonic() + self._draw.uniform(0, self._start_seconds)
            self._steps_before = last_step(self._metrics)
        if self._waits_for_step and last_step(self._metrics) > self._steps_before:
            self._waits_for_step = False
            self._at = time.monotonic() + self._draw.uniform(0, self._life_seconds)
        ranks = ranks_of(launcher)
        if time.monotonic() >= self._at and ranks:
            self._draw.choice(ranks).kill()
            self._left -= 1
            self._at = float("inf")  # until the next start
            stepped = last_step(self._metrics) > self._steps_before
            self.moments["training" if stepped else "start"] += 1


def kills_tables(options: Options) -> list[Table]:
    """One row a stage and precision."""
    draw = random.Random(options.seed)
    rows = [
        _row(options, stage, precision, draw)
        for stage in options.stages
        for precision in options.precisions
    ]
    note = (
        f"{options.killed_run_steps} steps on {options.processes} ranks with dropout, "
        "accumulation, activation checkpointing and two sources; a checkpoint every 2 steps."
    )
    return [Table("kills", "Killed at random moments, restarted, compared", rows, (note,))]


def _row(options: Options, stage: int, precision: str, draw: random.Random) -> dict[str, Any]:
    names = [f"{kind}-{stage}-{precision}" for kind in ("whole", "killed")]
    whole, killed = (options.folder / "runs" / name for name in names)
    configs = [write_config(options, killed_run(options, name, stage, precision)) for name in names]
    first_step = FirstStep(whole)
    undisturbed = run(configs[0], processes=options.processes, watch=first_step)
    assert first_step.seconds is not None, "the run has been made"
    training_seconds = undisturbed.seconds - first_step.seconds
    killer = Killer(killed, options.kills, first_step.seconds, training_seconds, draw)
    result = run(
        configs[1],
        processes=options.processes,
        watch=killer,
        max_restarts=options.kills + 1,
    )
    losses, others = curve(whole), curve(killed)
    equal = sum(one == other for one, other in zip(losses, others, strict=False))
    return {
        "stage": stage,
        "precision": precision,
        "kills": killer.moments.total(),
        "in a start": killer.moments["start"],
        "while training": killer.moments["training"],
        "restarts": result.restarts,
        "losses equal": f"{equal}/{max(len(losses), len(others))}",
        "weights and optimizer equal": tensors(whole) == tensors(killed),
        "minutes": result.seconds / 60,
    }


def curve(run_path: Path) -> list[tuple[Any, ...]]:
    """Step, loss, gradient norm and held-out losses of every line, to the last bit."""
    text = RunFolder(run_path).metrics_path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    found = []
    for line in lines:
        kept = {key: value for key, value in line.items() if key.startswith("eval/")}
        if "loss" in line or kept:
            found.append((line["step"], line.get("loss"), line.get("grad_norm"), kept))
    return found


def tensors(run_path: Path) -> dict[str, str]:
    """Checksums of the files of the last checkpoint that hold tensors."""
    files = read_manifest(latest_complete(run_path))["files"]
    return {name: facts["checksum"] for name, facts in files.items() if name != CONFIG}
