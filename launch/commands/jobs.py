"""``spade jobs``: what every run is doing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.console import human_seconds, print_json, printable, say, table
from launch.failures import CommandError

if TYPE_CHECKING:
    from launch.clusters.jobs import RunRow

_COLUMNS = (
    *("run", "state", "step", "loss", "tokens/s", "left", "launcher", "job", "checkpoint"),
    "remark",
)
_LONGEST_REASON = 100


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command("jobs", epilog="Example: spade jobs runs")(jobs)


def jobs(
    place: Annotated[
        Path, typer.Argument(help="Folder of runs, or one run.", metavar="RUNS_FOLDER")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List runs: state, step, loss, speed, time left, newest checkpoint.

    All of it is read from the run folders, whoever started the runs and wherever. queued:
    submitted, no rank yet. starting: no step since the start. running: wrote something within two
    minutes, or ten times its usual interval. stalled: silent for longer; it evaluates long, hangs,
    or was killed without a word. stopped: on request, the same command goes on. failed, done.
    """
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder; name a run or a folder of runs")
    from launch.clusters.jobs import find_runs, read_row

    rows = [read_row(run) for run in find_runs(place)]
    if as_json:
        print_json([row.to_dict() for row in rows])
    elif not rows:
        say(f"{place}: no run yet")
    else:
        table("", _COLUMNS, [_cells(row) for row in rows])


def _cells(row: RunRow) -> tuple[str, ...]:
    step = "" if row.step is None else f"{row.step:,}"
    if row.max_steps is not None:
        step = f"{step or 0} of {row.max_steps:,}"
    checkpoint = ""
    if row.checkpoint_step is not None and row.checkpoint_age_seconds is not None:
        age = human_seconds(max(0.0, row.checkpoint_age_seconds))
        checkpoint = f"{row.checkpoint_step:,}, {age} ago"
    remark = printable(row.reason or "", limit=_LONGEST_REASON)
    if row.state == "stalled" and row.silent_seconds is not None:
        remark = f"silent for {human_seconds(row.silent_seconds)}"
    return (
        printable(row.name),
        row.state,
        step,
        "" if row.loss is None else f"{row.loss:.4f}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        "" if row.seconds_left is None else human_seconds(row.seconds_left),
        printable(row.launcher or ""),
        printable(row.job or ""),
        checkpoint,
        remark,
    )
