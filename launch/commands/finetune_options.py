"""What all recipes of ``spade finetune`` have in common: their options, and their ends."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import human_seconds, print_json, say, table
from launch.failures import EXIT_RESUMABLE, CommandError, Stopped

if TYPE_CHECKING:
    from finetune.recipe import Recipe
    from finetune.settings import TrainingSettings

Model = Annotated[Path, typer.Argument(help="Exported folder.", metavar="MODEL")]
Train = Annotated[Path, typer.Option(help="Rows to learn: tsv or jsonl, also gzipped.")]
Validation = Annotated[Path, typer.Option(help="Rows that choose the best checkpoint.")]
Test = Annotated[list[Path] | None, typer.Option(help="Rows to predict in the end; repeatable.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; an interrupted one goes on.")]

_NO_EARLY_STOP = "no_early_stop"
_AS_JSON = "as_json"
# Names of `TrainingSettings`, but for the last two; the defaults are those of most recipes.
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "epochs": (Annotated[int, typer.Option(min=1, help="Passes over the data, at most.")], 10),
    "batch_size": (
        Annotated[int, typer.Option(min=1, help="Rows of one step, over all processes.")],
        32,
    ),
    "micro_batch_size": (
        Annotated[int | None, typer.Option(min=1, help="Rows that a process takes at once.")],
        None,
    ),
    "learning_rate": (
        Annotated[float, typer.Option(help="Peak rate; it falls linearly to 0.")],
        3e-4,
    ),
    "state_space_learning_rate": (
        Annotated[
            float | None,
            typer.Option(help="Of the state-space layers (default: a quarter of it)."),
        ],
        None,
    ),
    "weight_decay": (Annotated[float, typer.Option(help="Of matrices.")], 0.01),
    "warmup_share": (
        Annotated[float, typer.Option(help="Share of the steps in which rates rise.")],
        0.06,
    ),
    "evaluate_every_steps": (
        Annotated[
            int | None,
            typer.Option(
                min=1, help="Steps between validations with checkpoints (default: an epoch)."
            ),
        ],
        None,
    ),
    "patience": (
        Annotated[
            int | None,
            typer.Option(min=1, help="Validations in a row without gain that end a training."),
        ],
        3,
    ),
    "seeds": (Annotated[int, typer.Option(min=1, help="Trainings, for a mean and its spread.")], 1),
    "first_seed": (
        Annotated[int, typer.Option("--seed", min=0, help="Seed of the first one.")],
        0,
    ),
    "dropout": (
        Annotated[float | None, typer.Option(help="Instead of the exported model's.")],
        None,
    ),
    "precision": (
        Annotated[
            str | None,
            typer.Option(help="float32 or bfloat16 (default: bfloat16 on GPUs that have it)."),
        ],
        None,
    ),
    "zero_stage": (
        Annotated[
            int | None,
            typer.Option(
                min=0,
                max=2,
                help="DeepSpeed's stage (default: 2 under torchrun, else no DeepSpeed).",
            ),
        ],
        None,
    ),
    "activation_checkpointing": (
        Annotated[
            bool,
            typer.Option("--activation-checkpointing", help="Less memory for long inputs, slower."),
        ],
        False,
    ),
    _NO_EARLY_STOP: (
        Annotated[bool, typer.Option("--no-early-stop", help="Train for all epochs.")],
        False,
    ),
    _AS_JSON: (
        Annotated[bool, typer.Option("--json", help="Print the results as JSON.")],
        False,
    ),
}


@dataclass(frozen=True)
class TrainingOptions:
    """What the user said of a training."""

    chosen: dict[str, Any]
    """By the names of `TrainingSettings`."""
    as_json: bool
    """Whether to print nothing but the results, as JSON."""

    def settings(self) -> TrainingSettings:
        """Return the settings.

        Raises:
            FinetuneError: A value is impossible.
        """
        from finetune.settings import TrainingSettings

        return TrainingSettings(**self.chosen)

    @property
    def say(self) -> Callable[[str], None]:
        """Takes lines of progress; silent where JSON is wanted, and in all processes but one."""
        from finetune.processes import is_first

        return (lambda line: None) if self.as_json or not is_first() else say


def with_training_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a training beside its own.

    The command gets them as its keyword argument `training`, a `TrainingOptions`; the libraries
    that it needs are known to be there when it is called.

    Args:
        defaults: In place of the usual ones.
    """
    unknown = set(defaults) - set(_OPTIONS)
    assert not unknown, unknown

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [p for name, p in own.items() if name != "training"]
        parameters += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, default),
                annotation=annotation,
            )
            for name, (annotation, default) in _OPTIONS.items()
        ]

        def with_options(**given: Any) -> None:
            chosen = {name: given.pop(name) for name in _OPTIONS}
            as_json = chosen.pop(_AS_JSON)
            if chosen.pop(_NO_EARLY_STOP):
                chosen["patience"] = None
            prepare_libraries()
            command(**given, training=TrainingOptions(chosen, as_json))

        with_options.__doc__ = command.__doc__
        with_options.__name__ = command.__name__
        with_options.__annotations__ = {p.name: p.annotation for p in parameters}
        with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted(parameters, key=lambda parameter: parameter.kind)
        )
        return with_options

    return decorate


def prepare_libraries() -> None:
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


def train(recipe: Recipe, training: TrainingOptions, out: Path) -> None:
    """Trains, and shows what came out."""
    from finetune.errors import StoppedOnRequest
    from finetune.processes import is_first
    from finetune.results import TABLE_COLUMNS, table_rows
    from finetune.run import REPORT, RESULTS, run_recipe

    started = time.monotonic()
    try:
        results = run_recipe(recipe, training.settings(), out, training.say)
    except StoppedOnRequest as stop:
        raise Stopped(str(stop), EXIT_RESUMABLE) from stop
    if not is_first():
        return
    if training.as_json:
        print_json(results)
        return
    title = f"{recipe.name}, best checkpoint by validation {recipe.score}"
    table(title, TABLE_COLUMNS, table_rows(results))
    for own in results["tables"]:
        table(own["title"], own["columns"], own["rows"])
    say(f"{human_seconds(time.monotonic() - started)}; {out / RESULTS}, {out / REPORT}")
