"""``spade finetune classify``: texts and pairs of texts into classes or numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from launch.commands.finetune_options import (
    Model,
    Out,
    Test,
    Train,
    TrainingOptions,
    Validation,
    with_training_options,
)
from launch.commands.finetune_options import train as train_recipe

if TYPE_CHECKING:
    from finetune.classification.recipe import Mode
    from finetune.classification.tasks import Task

TaskName = Annotated[
    str | None, typer.Option(help="Of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli.")
]
TextColumn = Annotated[str | None, typer.Option(help="Without --task: of the text.")]
SecondTextColumn = Annotated[str | None, typer.Option(help="Of the pair's other text.")]
LabelColumn = Annotated[str | None, typer.Option(help="Of the label.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option(help="accuracy, f1, matthews; pearson, spearman for numbers; repeatable."),
]
Columns = Annotated[
    str | None,
    typer.Option(help="Column names, with commas, of TSV files whose first line is a row."),
]
MaxLengthTokens = Annotated[
    int | None, typer.Option(min=2, help="Where to cut texts (default: nowhere).")
]


def register(group: typer.Typer) -> None:
    """Adds the command."""
    group.command(
        "classify",
        epilog="Example: spade finetune classify base-hf --task mnli --train MNLI/train.tsv "
        "--validation MNLI/dev_matched.tsv --test MNLI/dev_mismatched.tsv --out mnli --seeds 3",
    )(classify)


@with_training_options()
def classify(
    model: Model,
    train: Train,
    validation: Validation,
    out: Out,
    *,
    training: TrainingOptions,
    test: Test = None,
    task: TaskName = None,
    text_column: TextColumn = None,
    second_text_column: SecondTextColumn = None,
    label_column: LabelColumn = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="Labels are numbers to be estimated, not classes.")
    ] = False,
    metric: Metrics = None,
    columns: Columns = None,
    mode: Annotated[
        str,
        typer.Option(help="head: a linear layer on the encoder; text: the decoder writes labels."),
    ] = "head",
    max_length_tokens: MaxLengthTokens = None,
) -> None:
    """Classify texts or pairs of texts, or estimate a number for them.

    One process alone, or one for each GPU under torchrun. SIGTERM or Ctrl-C saves and ends with
    exit code 75; the same command goes on, as it does after a crash.
    """
    from finetune.classification.recipe import Classification

    training.settings()  # what is impossible shall be said before the files are read
    recipe = Classification(
        model,
        make_task(
            task, text_column, second_text_column, label_column, numbers, metric or [], columns
        ),
        train,
        validation,
        test or [],
        mode=cast("Mode", mode),
        max_length_tokens=max_length_tokens,
        say=training.say,
    )
    train_recipe(recipe, training, out)


def make_task(
    name: str | None,
    text_column: str | None,
    second_text_column: str | None,
    label_column: str | None,
    numbers: bool,
    metrics: list[str],
    columns: str | None,
) -> Task:
    """A task of GLUE, or the user's own.

    Args:
        name: Of GLUE's; then the rest, but for columns, must not be given.
        text_column: Of the text.
        second_text_column: Of the pair's other text.
        label_column: Of the label.
        numbers: Whether labels are numbers.
        metrics: Their names.
        columns: With commas.
    """
    import dataclasses

    from finetune.classification.tasks import Task, find_task

    names = tuple(columns.split(",")) if columns is not None else None
    own = (text_column, second_text_column, label_column, numbers or None, metrics or None)
    if name is not None:
        if any(own):
            raise typer.BadParameter(
                "--task says which columns, labels and metrics; leave the other options out"
            )
        return dataclasses.replace(find_task(name), columns=names)
    if text_column is None or label_column is None:
        raise typer.BadParameter("give --task, or both --text-column and --label-column")
    texts = (text_column,) if second_text_column is None else (text_column, second_text_column)
    defaults = ("pearson",) if numbers else ("accuracy",)
    return Task(texts, label_column, tuple(metrics) or defaults, numbers=numbers, columns=names)
