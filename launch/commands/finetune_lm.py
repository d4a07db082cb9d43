"""``spade finetune lm``: a language model on plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.finetune_options import (
    Out,
    Test,
    TrainingOptions,
    with_training_options,
)
from launch.commands.finetune_options import train as train_recipe


def register(group: typer.Typer) -> None:
    """Adds the command."""
    group.command(
        "lm",
        epilog="Example: spade finetune lm base-hf --from-scratch tiny --train wiki.train.tokens "
        "--validation wiki.valid.tokens --test wiki.test.tokens --out wiki",
    )(language_model)


@with_training_options(batch_size=8, learning_rate=1e-3)
def language_model(
    model: Annotated[
        Path,
        typer.Argument(
            help="Folder of a language model; with --from-scratch any with a tokenizer.",
            metavar="MODEL",
        ),
    ],
    train: Annotated[Path, typer.Option(help="Text to learn: plain or jsonl, also gzipped.")],
    validation: Annotated[Path, typer.Option(help="Text that chooses the best checkpoint.")],
    out: Out,
    *,
    training: TrainingOptions,
    test: Test = None,
    from_scratch: Annotated[
        str | None,
        typer.Option(help="Train a new network: tiny, small, base, large.", metavar="SIZE"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer, if MODEL has none.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Of jsonl files.")] = "text",
    length_tokens: Annotated[
        int, typer.Option(min=1, help="Of training rows, and of windows to measure.")
    ] = 512,
    stride_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="From window to window (default: half of the length)."),
    ] = None,
) -> None:
    """Train a language model on plain text; perplexity by sliding windows, bits per byte.

    One process alone, or one for each GPU under torchrun. SIGTERM or Ctrl-C saves and ends with
    exit code 75; the same command goes on, as it does after a crash.
    """
    from finetune.language_modelling.recipe import LanguageModelling

    training.settings()  # what is impossible shall be said before the files are read
    recipe = LanguageModelling(
        model,
        train,
        validation,
        test or [],
        from_scratch=from_scratch,
        tokenizer=tokenizer,
        text_column=text_column,
        length_tokens=length_tokens,
        stride_tokens=stride_tokens,
        say=training.say,
    )
    train_recipe(recipe, training, out)
