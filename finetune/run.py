"""A whole run: several seeds of one recipe in one folder, and what came out of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from finetune import processes
from finetune.callbacks import StopRequests
from finetune.checkpoints import write_atomically
from finetune.errors import FinetuneError, StoppedOnRequest
from finetune.recipe import Recipe
from finetune.report import write_report
from finetune.results import summarize
from finetune.settings import TrainingSettings
from finetune.training import Session, train_seed

_SETTINGS = "settings.json"
RESULTS = "results.json"
REPORT = "report.html"


def run_recipe(
    recipe: Recipe,
    settings: TrainingSettings,
    out: Path,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> dict[str, Any]:
    """Train a recipe with all its seeds, or go on where an interrupted run stopped.

    Alone this process does everything; under torchrun each calls it, and DeepSpeed shards the work.

    Args:
        recipe: What to train.
        settings: How.
        out: Folder of the run: new, empty, or of an earlier run with the same recipe and settings.
        say: Takes lines of progress; called in the first process alone.

    Returns:
        What `RESULTS` holds: see `results.summarize`, and ``tables`` of the recipe.

    Raises:
        FinetuneError: The folder holds something else, or the batch cannot be cut.
        StoppedOnRequest: SIGTERM or Ctrl-C came; what was learned is saved.
        OSError: The disk refuses.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    settings.rows_at_once(processes.world_size())
    requests = StopRequests()
    session = Session(recipe, settings, requests, say if processes.is_first() else _nothing)
    if session.uses_deepspeed:
        processes.join()
    processes.on_first(lambda: _claim(out, recipe, settings))
    seeds = []
    with requests:
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
            if processes.any_process(requests.asked):
                raise StoppedOnRequest(
                    f"{out}: stopped before seed {seed}; the same command goes on"
                )
            seeds.append(train_seed(session, out / f"seed-{seed}", seed))
    results = processes.on_first(lambda: _summarize(recipe, out, seeds))
    if processes.is_first():
        write_atomically(out / RESULTS, json.dumps(results, indent=2) + "\n")
        write_report(out / REPORT, results)
    return results


def _summarize(recipe: Recipe, out: Path, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    results = summarize(recipe.score, _read_settings(out), seeds)
    results["tables"] = [dataclasses.asdict(table) for table in recipe.tables(results)]
    return results


def _nothing(line: str) -> None:
    """Say nothing: another process does."""


def _claim(out: Path, recipe: Recipe, settings: TrainingSettings) -> None:
    """Note what a new folder is for, or see that an old one is for the same."""
    wanted = {
        "recipe": {"name": recipe.name, **recipe.describe()},
        "training": settings.decisive(),
        "processes": processes.world_size(),
    }
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as they are in the file
    if (out / _SETTINGS).is_file():
        difference = _difference(_read_settings(out), wanted)
        if difference is not None:
            name, there, here = difference
            raise FinetuneError(
                f"{out}: holds a run with {name} {json.dumps(there)}, now it is "
                f"{json.dumps(here)}; go on with the same, or choose another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FinetuneError(
            f"{out}: already holds something that is no fine-tuning run; choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / _SETTINGS, json.dumps(wanted, indent=2) + "\n")


def _read_settings(out: Path) -> dict[str, Any]:
    path = out / _SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FinetuneError(f"{path}: not JSON ({error}); choose another --out") from error
    if not isinstance(settings, dict):
        raise FinetuneError(f"{path}: was not written by a run; choose another --out")
    return settings


def _difference(there: Any, here: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first value that differs, with its dotted name."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**there, **here}:
            inner = f"{name}.{key}" if name else key
            found = _difference(there.get(key), here.get(key), inner)
            if found is not None:
                return found
        return None
    return None if there == here else (name, there, here)
