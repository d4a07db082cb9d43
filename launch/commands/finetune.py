"""``spade finetune …``: an exported model on a task."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from launch.console import human_seconds, print_json, say, table
from launch.failures import EXIT_RESUMABLE, CommandError, Stopped

if TYPE_CHECKING:
    from finetune.classification.tasks import Task
    from finetune.recipe import Recipe
    from finetune.settings import TrainingSettings

_Model = Annotated[Path, typer.Argument(help="Exported folder.", metavar="MODEL")]
_Epochs = Annotated[int, typer.Option(min=1, help="Passes over the data, at most.")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Rows of one step, over all processes.")]
_MicroBatchSize = Annotated[
    int | None, typer.Option(min=1, help="Rows that a process takes at once.")
]
_LearningRate = Annotated[float, typer.Option(help="Peak rate; it falls linearly to 0.")]
_StateSpaceLearningRate = Annotated[
    float | None, typer.Option(help="Of the state-space layers (default: a quarter of it).")
]
_WeightDecay = Annotated[float, typer.Option(help="Of matrices.")]
_WarmupShare = Annotated[float, typer.Option(help="Share of the steps in which rates rise.")]
_EvaluateEverySteps = Annotated[
    int | None,
    typer.Option(min=1, help="Steps between validations with checkpoints (default: an epoch)."),
]
_Patience = Annotated[
    int | None, typer.Option(min=1, help="Validations in a row without gain that end a training.")
]
_NoEarlyStop = Annotated[bool, typer.Option("--no-early-stop", help="Train for all epochs.")]
_Seeds = Annotated[int, typer.Option(min=1, help="Trainings, for a mean and its spread.")]
_Seed = Annotated[int, typer.Option(min=0, help="Seed of the first one.")]
_Dropout = Annotated[float | None, typer.Option(help="Instead of the exported model's.")]
_Precision = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16 (default: bfloat16 on GPUs that have it)."),
]
_ZeroStage = Annotated[
    int | None,
    typer.Option(
        min=0, max=2, help="DeepSpeed's stage (default: 2 under torchrun, else no DeepSpeed)."
    ),
]
_ActivationCheckpointing = Annotated[
    bool, typer.Option("--activation-checkpointing", help="Less memory for long inputs, slower.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Fine-tune an exported model, with several seeds, and measure it.",
        epilog="Example: spade finetune classify --help",
        no_args_is_help=True,
    )
    group.command(
        "classify",
        epilog="Example: spade finetune classify base-hf --task mnli --train MNLI/train.tsv "
        "--validation MNLI/dev_matched.tsv --test MNLI/dev_mismatched.tsv --out mnli --seeds 3",
    )(classify)
    application.add_typer(group, name="finetune")


def classify(
    model: _Model,
    train: Annotated[Path, typer.Option(help="Rows to learn: tsv or jsonl, also gzipped.")],
    validation: Annotated[Path, typer.Option(help="Rows that choose the best checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="Rows to predict in the end; repeatable.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Without --task: of the text.")] = None,
    second_text_column: Annotated[str | None, typer.Option(help="Of the pair's other text.")] = (
        None
    ),
    label_column: Annotated[str | None, typer.Option(help="Of the label.")] = None,
    numbers: Annotated[
        bool, typer.Option("--numbers", help="Labels are numbers to be estimated, not classes.")
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="accuracy, f1, matthews; pearson, spearman for numbers; repeatable."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Column names, with commas, of TSV files whose first line is a row."),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="head: a linear layer on the encoder; text: the decoder writes labels."),
    ] = "head",
    max_length_tokens: Annotated[
        int | None, typer.Option(min=2, help="Where to cut texts (default: nowhere).")
    ] = None,
    epochs: _Epochs = 10,
    batch_size: _BatchSize = 32,
    micro_batch_size: _MicroBatchSize = None,
    learning_rate: _LearningRate = 3e-4,
    state_space_learning_rate: _StateSpaceLearningRate = None,
    weight_decay: _WeightDecay = 0.01,
    warmup_share: _WarmupShare = 0.06,
    evaluate_every_steps: _EvaluateEverySteps = None,
    patience: _Patience = 3,
    no_early_stop: _NoEarlyStop = False,
    seeds: _Seeds = 1,
    seed: _Seed = 0,
    dropout: _Dropout = None,
    precision: _Precision = None,
    zero_stage: _ZeroStage = None,
    activation_checkpointing: _ActivationCheckpointing = False,
    as_json: _Json = False,
) -> None:
    """Classify texts or pairs of texts, or estimate a number for them.

    One process alone, or one for each GPU under torchrun. SIGTERM or Ctrl-C saves and ends with
    exit code 75; the same command goes on, as it does after a crash.
    """
    _prepare()
    from finetune.classification.recipe import Classification, Mode
    from finetune.settings import Precision, TrainingSettings

    settings = TrainingSettings(
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=learning_rate,
        state_space_learning_rate=state_space_learning_rate,
        weight_decay=weight_decay,
        warmup_share=warmup_share,
        evaluate_every_steps=evaluate_every_steps,
        patience=None if no_early_stop else patience,
        seeds=seeds,
        first_seed=seed,
        dropout=dropout,
        precision=cast("Precision | None", precision),
        zero_stage=zero_stage,
        activation_checkpointing=activation_checkpointing,
    )
    recipe = Classification(
        model,
        _task(task, text_column, second_text_column, label_column, numbers, metric or [], columns),
        train,
        validation,
        test or [],
        mode=cast("Mode", mode),
        max_length_tokens=max_length_tokens,
        say=_say_unless(as_json),
    )
    _run(recipe, settings, out, as_json=as_json)


def _prepare() -> None:
    """Checks that the libraries are there, and keeps them from the network and the terminal."""
    from importlib.util import find_spec

    for library in ("transformers", "accelerate"):
        if find_spec(library) is None:
            raise CommandError(
                f"{library} is not installed, which trains the model; install it with "
                'pip install "spade-pretrain[finetune]"'
            )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from launch.processes import end_with_parent

        end_with_parent()  # torchrun may be killed before it can end us


def _say_unless(silent: bool) -> Any:
    from finetune.processes import is_first

    return (lambda line: None) if silent or not is_first() else say


def _task(
    name: str | None,
    text_column: str | None,
    second_text_column: str | None,
    label_column: str | None,
    numbers: bool,
    metrics: list[str],
    columns: str | None,
) -> Task:
    """A task of GLUE, or the user's own."""
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


def _run(recipe: Recipe, settings: TrainingSettings, out: Path, *, as_json: bool) -> None:
    """Trains, and shows what came out."""
    from finetune.errors import StoppedOnRequest
    from finetune.processes import is_first
    from finetune.results import TABLE_COLUMNS, table_rows
    from finetune.run import REPORT, RESULTS, run_recipe

    started = time.monotonic()
    try:
        results = run_recipe(recipe, settings, out, _say_unless(as_json))
    except StoppedOnRequest as stop:
        raise Stopped(str(stop), EXIT_RESUMABLE) from stop
    if not is_first():
        return
    if as_json:
        print_json(results)
        return
    title = f"{recipe.name}, best checkpoint by validation {recipe.score}"
    table(title, TABLE_COLUMNS, table_rows(results))
    say(f"{human_seconds(time.monotonic() - started)}; {out / RESULTS}, {out / REPORT}")
