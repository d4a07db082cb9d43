"""``spade report``: pages about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import print_json, printable, say, table


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command("report", epilog="Example: spade report runs/base runs/wide --out .")(
        report
    )


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...")],
    out: Annotated[
        Path, typer.Option(help="Folder for the comparison of several runs.", metavar="DIR")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a page about a run, or one that compares several.

    One run gets report.html and loss.png in its folder; several are compared in comparison.html
    and comparison.png in the current folder: curves with restarts, throughput, settings that
    differ. The runs may still be going on.
    """
    from pretrain.report.comparison import summarize, summary_data, write_comparison
    from pretrain.report.report import write_report
    from pretrain.report.run_record import read_run

    if len(runs) == 1:
        page, picture = write_report(runs[0])
        summaries = [summarize(read_run(runs[0]))]
    else:
        page, picture, summaries = write_comparison(runs, out)
    if as_json:
        data = {"page": str(page), "picture": str(picture)}
        print_json({**data, "runs": [summary_data(summary) for summary in summaries]})
        return
    rows = [
        (
            printable(item.run, limit=40),
            f"{item.step:,}",
            _decimals(item.loss),
            _decimals(item.heldout_loss),
            "" if item.tokens_per_second is None else f"{item.tokens_per_second:,.0f}",
            printable(item.state, limit=60),
        )
        for item in summaries
    ]
    table("", ("run", "step", "loss", "held-out loss", "tokens/s", "state"), rows)
    for item in summaries:
        for problem in item.problems:
            say(f"{printable(item.run)}: {printable(problem)}")
    say(f"wrote {page}")
    say(f"wrote {picture}")


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
