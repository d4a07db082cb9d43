"""``spade quickstart``: raw text to a checkpoint that fills gaps, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(application: typer.Typer) -> None:
    """Adds the command."""
    application.command(
        "quickstart",
        epilog="Example: spade quickstart --out trial --corpus essays/ --corpus notes.jsonl.gz",
        no_args_is_help=False,
    )(quickstart)


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path(
        "quickstart"
    ),
    corpus: Annotated[
        list[Path] | None,
        typer.Option(
            help="txt, jsonl, jsonl.gz, parquet, or a folder of those; repeatable. Without it: the "
            "sources of Python's standard library.",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Ranks of the training.")] = 2,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of the training.")] = None,
    pieces: Annotated[
        int | None, typer.Option(min=300, help="Pieces of the tokenizer (8192, or what fits).")
    ] = None,
    prove_resume: Annotated[
        bool,
        typer.Option(
            "--prove-resume",
            help="Train a second time without the stop, and compare the curves bit for bit.",
        ),
    ] = False,
) -> None:
    """Go from raw text to a model that fills gaps, here and now.

    Documents, tokenizer, shards, training with a stop and a resume, export, fill-in, report.
    Started again after a stop, the same command goes on where it was.
    """
    from launch.quickstart import Options, run_quickstart

    code = run_quickstart(
        Options(
            out=out,
            corpus=tuple(corpus or ()),
            processes=processes,
            steps=steps,
            pieces=pieces,
            prove_resume=prove_resume,
        )
    )
    if code:
        raise typer.Exit(code)
