"""What a recipe has to tell, so that `run` can train it."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from finetune.exported import copy_tokenizer

Rows = Dataset[dict[str, Any]]


@dataclass(frozen=True)
class ResultTable:
    """A table of a recipe's own, for the terminal, the report and ``results.json``."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Recipe(abc.ABC):
    """A task and its data, ready to be trained.

    Attributes:
        name: Of the recipe, as on the command line.
        score: Name of the metric by which validations are compared.
        greater_is_better: Whether a larger score is the better one.
        training: Rows to learn.
        validation: Rows that choose the best checkpoint.
        tests: Rows to predict with it, by name.
        folder: The exported one, where there is one.
    """

    name: str
    score: str
    greater_is_better: bool = True
    training: Rows
    validation: Rows
    tests: Mapping[str, Rows]
    folder: Path

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return all that decides the result beside the training settings, as JSON values.

        A run goes on only with what it was begun with. Called in the first process alone.
        """

    @abc.abstractmethod
    def make_model(self, dropout: float | None) -> PreTrainedModel:
        """Load the model in float32; new weights are drawn from torch's generator.

        Args:
            dropout: None: as in the folder's configuration.

        Raises:
            FinetuneError: The folder cannot be used for this.
        """

    @abc.abstractmethod
    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch of tensors from rows."""

    @abc.abstractmethod
    def measure(self, rows: Rows, outputs: Any) -> dict[str, float]:
        """Return the metrics, `score` among them; empty where the rows have no labels.

        Args:
            rows: In the order of the outputs.
            outputs: What the model said of them, as the Trainer gathers it.
        """

    @abc.abstractmethod
    def write_predictions(self, folder: Path, name: str, rows: Rows, outputs: Any) -> None:
        """Write what was predicted for rows into files of a folder."""

    def detail(self, name: str, rows: Rows, outputs: Any) -> dict[str, Any]:
        """Return what is known of rows beyond the metrics, as JSON values.

        Intervals and baselines, for example. Called in the first process alone, in the end of a
        training; what it returns is kept as `details` of the seed.

        Args:
            name: Of the rows: ``validation``, or that of the test rows.
            rows: In the order of the outputs.
            outputs: As for `measure`.
        """
        return {}

    def tables(self, results: Mapping[str, Any]) -> list[ResultTable]:
        """Return tables to be shown below that of the metrics.

        Args:
            results: See `results.summarize`; they hold the details of all seeds.
        """
        return []

    def save_tokenizer(self, folder: Path) -> None:
        """Write beside a trained model what makes its inputs; a recipe may have none."""
        copy_tokenizer(self.folder, folder)

    def make_arguments(self, common: Mapping[str, Any]) -> TrainingArguments:
        """Return the Trainer's arguments; a recipe that generates text makes others of them."""
        return TrainingArguments(**common)

    def make_trainer(self, **common: Any) -> Trainer:
        """Return a Trainer; a recipe may have a class of its own."""
        return Trainer(**common)
