"""Trainings that are compared: each is made once, in a process of its own, and kept."""

from __future__ import annotations

import abc
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from finetune.classification.recipe import Classification
from finetune.classification.tasks import Task
from finetune.long_range_arena.recipe import LongRangeArena
from finetune.recipe import Recipe
from finetune.run import RESULTS, run_recipe
from finetune.settings import TrainingSettings
from finetune.summarization.recipe import Summarization, SummarySettings

_COST = "cost.json"


@dataclass(frozen=True, kw_only=True)
class Arm(abc.ABC):
    """One training, or one for each seed, through a recipe of `finetune`."""

    name: str
    out: Path
    training: TrainingSettings
    files: tuple[Path, Path, Path]
    """To learn, to validate, to test."""

    @property
    def results(self) -> dict[str, Any]:
        """What `run_recipe` has found."""
        found: dict[str, Any] = json.loads((self.out / RESULTS).read_text(encoding="utf-8"))
        return found

    @property
    def cpu_minutes(self) -> float:
        """User and system time of all attempts that ended by themselves."""
        return float(json.loads((self.out.parent / f"{self.name}.{_COST}").read_text())["minutes"])

    def predictions(self, seed: int) -> list[dict[str, Any]]:
        """What a seed's best checkpoint says of the test rows, in their order."""
        name = self.files[2].name.partition(".")[0]
        path = self.out / f"seed-{seed}" / f"predictions-{name}.jsonl"
        # Not splitlines(): texts hold other characters that it takes for ends.
        with path.open(encoding="utf-8") as stream:
            return [json.loads(line) for line in stream]

    @abc.abstractmethod
    def recipe(self) -> Recipe:
        """Read the data."""

    def train(self) -> None:
        """Train, unless there is a result."""
        if (self.out / RESULTS).exists():
            return
        before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.monotonic()
        try:
            run_recipe(self.recipe(), self.training, self.out, self._say)
        finally:
            after = resource.getrusage(resource.RUSAGE_SELF)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            self._add_cost(spent / 60)
        self._say(f"{spent / 60:.1f} CPU-minutes, {(time.monotonic() - started) / 60:.1f} by clock")

    def _say(self, line: str) -> None:
        print(f"{self.name}: {line}", flush=True)

    def _add_cost(self, minutes: float) -> None:
        path = self.out.parent / f"{self.name}.{_COST}"
        before = json.loads(path.read_text())["minutes"] if path.exists() else 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"minutes": before + minutes}))


@dataclass(frozen=True, kw_only=True)
class ClassifierArm(Arm):
    """Sentences, or pairs of them, by the encoder with a linear layer."""

    folder: Path
    task: Task
    from_scratch: bool = False

    def recipe(self) -> Recipe:
        """Read the data."""
        kind = _NewClassifier if self.from_scratch else _Classifier
        return kind(self.folder, self.task, self.files[0], self.files[1], [self.files[2]])


@dataclass(frozen=True, kw_only=True)
class SummaryArm(Arm):
    """Summaries of long documents."""

    folder: Path
    settings: SummarySettings
    from_scratch: bool = False

    def recipe(self) -> Recipe:
        """Read the data."""
        kind = _NewSummarizer if self.from_scratch else Summarization
        learn, validate, test = self.files
        return kind(self.folder, learn, validate, [test], settings=self.settings, say=self._say)


@dataclass(frozen=True, kw_only=True)
class BytesArm(Arm):
    """Whole texts as bytes, by the encoder of ``spade finetune lra``."""

    most_bytes: int

    def recipe(self) -> Recipe:
        """Read the data."""
        learn, validate, test = self.files
        return _ByteClassifier("text", learn, validate, [test], max_length_tokens=self.most_bytes)


class _LengthTrainer(Trainer):
    """Puts rows of similar lengths into a batch to learn from: padding is most of it otherwise.

    The Trainer's own setting for this would change the order of rows that are predicted as well.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            dataset=rows,
            generator=torch.Generator().manual_seed(self.args.seed),
        )


class _ByLength:
    """Trains in batches of similar lengths."""

    def make_trainer(self, **common: Any) -> Trainer:
        return _LengthTrainer(**common)


class _Scratch:
    """Draws all weights anew, by the seed of the training."""

    def make_model(self, dropout: float | None) -> PreTrainedModel:
        model = super().make_model(dropout)  # type: ignore[misc]
        return type(model)(model.config)


class _Classifier(_ByLength, Classification):
    pass


class _NewClassifier(_ByLength, _Scratch, Classification):
    pass


class _NewSummarizer(_Scratch, Summarization):
    pass


class _ByteClassifier(_ByLength, LongRangeArena):
    pass


def train_all(arms: Sequence[Arm], workers: int) -> None:
    """Train what is not trained yet.

    Args:
        arms: Which.
        workers: Processes at a time, with one thread each; 0: one after the other, here.
    """
    left = [arm for arm in arms if not (arm.out / RESULTS).exists()]
    if workers == 0:
        for arm in left:
            arm.train()
        return
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, spawning, initializer=_one_thread, max_tasks_per_child=1
    ) as pool:
        for future in [pool.submit(arm.train) for arm in left]:
            future.result()


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
