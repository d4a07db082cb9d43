"""Whether going on late in a run takes longer than early in it."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

from benchmarks.common.report import Table
from benchmarks.engine.inputs import timed_run, write_config
from benchmarks.engine.options import Options
from benchmarks.engine.ranks import run
from benchmarks.engine.start import first_step_seconds
from pretrain.checkpoints.checkpoint_format import (
    MANIFEST,
    folder_name,
    latest_complete,
    read_manifest,
)
from pretrain.run_folder import write_json

_EARLY_STEP = 10
_STEPS_MORE = 2


def resume_tables(options: Options) -> list[Table]:
    """Resume from a checkpoint of step 10 and from the same one moved far along the run."""
    settings = timed_run(options, "resume")
    config = write_config(options, settings)
    made = options.folder / "runs" / "resume"
    run(config, f"train.max_steps={_EARLY_STEP}", processes=options.processes)
    kept = made.rename(made.with_name("resume-kept"))
    rows = []
    for step in (_EARLY_STEP, options.late_step):
        seconds = []
        for _ in range(options.start_rounds):
            shutil.copytree(kept, made, symlinks=True)
            if step != _EARLY_STEP:
                move_checkpoint(latest_complete(made), step)
            until = step + _STEPS_MORE
            seconds.append(first_step_seconds(config, made, until, options.processes, step))
            shutil.rmtree(made)
        rows.append(
            {"from step": step, "median s": statistics.median(seconds), "longest s": max(seconds)}
        )
    note = f"{options.processes} ranks; the late one has read {options.late_step:,} batches."
    return [Table("resume", "Resuming early and late", rows, (note,))]


def move_checkpoint(path: Path, step: int) -> Path:
    """Make a checkpoint one of a later step, as if the steps between had been made.

    Args:
        path: A complete checkpoint.
        step: The step it is to be of.
    """
    manifest = read_manifest(path)
    times = step // manifest["step"]
    assert times * manifest["step"] == step, "a multiple keeps the position consistent"
    for key in ("step", "sample_index", "tokens_seen", "updates"):
        manifest[key] *= times
    write_json(path / MANIFEST, manifest)
    metrics = path.parent.parent / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    moved = [json.dumps({**line, "step": line["step"] * times}) + "\n" for line in lines]
    metrics.write_text("".join(moved), encoding="utf-8")
    return path.rename(path.with_name(folder_name(step)))
