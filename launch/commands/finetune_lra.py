"""``spade finetune lra``: Long Range Arena's tasks, learned from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.commands.finetune_options import Out, TrainingOptions, with_training_options
from launch.commands.finetune_options import train as train_recipe

PART = "or a part of it: FILE[:80%], FILE[8000:]."


def register(group: typer.Typer) -> None:
    """Adds the command."""
    group.command(
        "lra",
        epilog="Example: spade finetune lra --task listops --train listops/train.tsv "
        "--validation listops/validation.tsv --test listops/test.tsv --out lra-listops; the files "
        "are written by spade finetune make-listops",
    )(lra)


@with_training_options(epochs=20, learning_rate=2e-3)
def lra(
    task: Annotated[
        str, typer.Option(help="listops, text (bytes), retrieval (two texts), image, pathfinder.")
    ],
    train: Annotated[
        Path,
        typer.Option(
            help="Rows to learn: tsv or jsonl; images: idx, npz, CIFAR-10's bin, folder of "
            f"pathfinder; {PART}"
        ),
    ],
    validation: Annotated[Path, typer.Option(help=f"Rows that choose the best checkpoint, {PART}")],
    out: Out,
    *,
    training: TrainingOptions,
    test: Annotated[
        list[Path] | None, typer.Option(help=f"Rows to predict in the end, {PART} Repeatable.")
    ] = None,
    size: Annotated[
        str,
        typer.Option(help="small, for CPUs, or published: MEGA's depth and width for the task."),
    ] = "small",
    without_state_space: Annotated[
        bool,
        typer.Option("--without-state-space", help="The same network with local attention alone."),
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Another architecture: d_model=96; repeatable."
        ),
    ] = None,
    max_length_tokens: Annotated[
        int | None, typer.Option(min=2, help="Where to cut each text (default: 4096 bytes).")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Default: Source, text, or text1 for pairs.")
    ] = None,
    second_text_column: Annotated[str | None, typer.Option(help="Default: text2.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Default: Target or label.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Column names, with commas, of TSV files whose first line is a row."),
    ] = None,
) -> None:
    """Classify long sequences with a new encoder: Long Range Arena.

    No exported folder is needed. One process alone, or one for each GPU under torchrun. SIGTERM or
    Ctrl-C saves and ends with exit code 75; the same command goes on, as it does after a crash.
    """
    from finetune.long_range_arena.recipe import LongRangeArena

    training.settings()  # what is impossible shall be said before the files are read
    recipe = LongRangeArena(
        task,
        train,
        validation,
        test or [],
        size=size,
        state_space=not without_state_space,
        changes=_changes(change or []),
        max_length_tokens=max_length_tokens,
        text_columns=_text_columns(text_column, second_text_column),
        label_column=label_column,
        columns=columns.split(",") if columns is not None else None,
        say=training.say,
    )
    train_recipe(recipe, training, out)


def _changes(written: list[str]) -> dict[str, Any]:
    """Fields with values as JSON has them, or else as text."""
    changes: dict[str, Any] = {}
    for item in written:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--set {item!r}: write FIELD=VALUE, as in d_model=96")
        try:
            changes[name] = json.loads(value)
        except ValueError:
            changes[name] = value
    return changes


def _text_columns(first: str | None, second: str | None) -> list[str] | None:
    if first is None and second is None:
        return None
    if first is None:
        raise typer.BadParameter("--second-text-column needs --text-column beside it")
    return [first] if second is None else [first, second]
