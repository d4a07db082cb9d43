"""The recipe ``lra``: a new encoder with a classifier on one of Long Range Arena's tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import ByT5Tokenizer, PreTrainedModel

from finetune.class_predictions import class_records, write_records
from finetune.classification.examples import collate
from finetune.classification.tasks import Task
from finetune.errors import FinetuneError
from finetune.long_range_arena.data import (
    DEFAULT_COLUMNS,
    Part,
    RawRows,
    Reader,
    SequenceRows,
    check_task,
    find_classes,
)
from finetune.long_range_arena.networks import network_config
from finetune.long_range_arena.vocabulary import PAD_ID
from finetune.metrics import accuracy
from finetune.recipe import Recipe
from finetune.training import VALIDATION
from spade_model.huggingface import SpadeForSequenceClassification, SpadePretrainedConfig

MOST_TOKENS = {
    "listops": 2000,
    "text": 4096,
    "retrieval": 4096,
    "image": 16_384,
    "pathfinder": 16_384,
}
"""Where texts are cut, and how many pixels images may have: 4K bytes for each text and 128 x 128
pixels, as in Long Range Arena; ListOps is never as long as this."""


class LongRangeArena(Recipe):
    """A task of Long Range Arena (arXiv 2011.04006) with its data.

    Args:
        task: ``listops``, ``text``, ``retrieval``, ``image`` or ``pathfinder``.
        training: File or folder with labels, or a part of one as `data.Part` reads it.
        validation: Likewise.
        tests: What to predict; it is measured as well where it has labels.
        size: ``small`` or ``published``.
        state_space: False: the same network with local attention alone.
        changes: Fields of `SpadeConfig` with other values.
        max_length_tokens: Where to cut each text; None: where Long Range Arena does.
        text_columns: Of tables; None: those of the published files.
        label_column: Likewise.
        columns: Names of the columns of TSV files whose first line is a row.
        say: Takes lines on the data.

    Raises:
        FinetuneError: A choice makes no sense, or a file is not what it should be.
        OSError: A file cannot be read.
    """

    name = "lra"
    score = "accuracy"

    def __init__(
        self,
        task: str,
        training: Path,
        validation: Path,
        tests: Sequence[Path] = (),
        *,
        size: str = "small",
        state_space: bool = True,
        changes: Mapping[str, Any] | None = None,
        max_length_tokens: int | None = None,
        text_columns: Sequence[str] | None = None,
        label_column: str | None = None,
        columns: Sequence[str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._task = check_task(task)
        fields = dict(changes or {})
        if not state_space:
            if "state_space" in fields:
                raise FinetuneError(
                    "without a state space there is no kind of it; leave out field 'state_space'"
                )
            fields["state_space"] = "none"
        network_config(self._task, size, 1, fields)  # what is impossible is said before reading
        self._most = MOST_TOKENS[task] if max_length_tokens is None else max_length_tokens
        if self._most < 2:
            raise FinetuneError(f"max_length_tokens is {self._most}: use 2 or more")
        table = _table(self._task, text_columns, label_column, columns)
        reader = Reader(self._task, self._most, table)
        parts = {name: Part.parse(path) for name, path in _named(tests).items()}
        learned = reader.read(Part.parse(training), labelled=True)
        found = {VALIDATION: reader.read(Part.parse(validation), labelled=True)}
        found |= {name: reader.read(part, labelled=False) for name, part in parts.items()}
        self._classes = find_classes(learned)
        self.training = SequenceRows(learned, self._classes)
        rows = {name: SequenceRows(raw, self._classes) for name, raw in found.items()}
        self.validation = rows.pop(VALIDATION)
        self.tests = rows
        assert self.training.targets is not None, "training rows have labels"
        self._most_frequent = int(np.bincount(self.training.targets).argmax())
        self._network = network_config(self._task, size, self.training.longest, fields)
        self._digests = {name: raw.digest() for name, raw in {"training": learned, **found}.items()}
        for name, raw in {"training": learned, **found}.items():
            say(_line(name, raw, self._most))

    def describe(self) -> dict[str, Any]:
        """Return task, network, classes and data."""
        return {
            "task": self._task,
            "network": self._network.to_spade_config().to_dict(),
            "classes": self._classes,
            "max_length_tokens": self._most,
            "data": self._digests,
        }

    def make_model(self, dropout: float | None) -> PreTrainedModel:
        """Draw a new model."""
        plain = self._network.to_spade_config()
        if dropout is not None:
            plain = plain.from_dict({**plain.to_dict(), "dropout": dropout})
        config = SpadePretrainedConfig.from_spade_config(
            plain,
            problem_type="single_label_classification",
            id2label=dict(enumerate(self._classes)),
            label2id={label: index for index, label in enumerate(self._classes)},
        )
        return SpadeForSequenceClassification(config)

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch, shorter rows filled up and masked."""
        return collate(rows, PAD_ID)

    def measure(self, rows: Any, outputs: Any) -> dict[str, float]:
        """Return the accuracy, and that of always saying the most frequent training class."""
        if rows.targets is None:
            return {}
        return {
            "accuracy": accuracy(outputs.argmax(axis=1), rows.targets),
            "most_frequent_class": float(np.mean(rows.targets == self._most_frequent)),
        }

    def write_predictions(self, folder: Path, name: str, rows: Any, outputs: Any) -> None:
        """Write classes as ``.tsv``, and with probabilities and true labels as ``.jsonl``."""
        records = class_records(outputs, self._classes)
        if rows.targets is not None:
            for record, target in zip(records, rows.targets, strict=True):
                record["label"] = self._classes[target]
        write_records(folder, name, records)

    def save_tokenizer(self, folder: Path) -> None:
        """Write a tokenizer that turns texts into the same ids; the other tasks have no texts."""
        if self._task in ("text", "retrieval"):
            tokenizer = ByT5Tokenizer(extra_ids=0, model_max_length=self._most)
            # A text may hold `</s>`, which is four bytes and no end.
            tokenizer.split_special_tokens = True
            tokenizer.save_pretrained(folder)


def _table(
    task: str,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    columns: Sequence[str] | None,
) -> Task | None:
    """Columns of a task's files; None where they are images."""
    if task not in DEFAULT_COLUMNS:
        if text_columns or label_column or columns:
            raise FinetuneError(f"columns are given and task {task!r} has images; leave them out")
        return None
    texts, label = DEFAULT_COLUMNS[task]
    chosen = tuple(text_columns or texts)
    if len(chosen) != len(texts):
        raise FinetuneError(f"{len(chosen)} text columns are given: task {task!r} has {len(texts)}")
    return Task(chosen, label_column or label, columns=tuple(columns) if columns else None)


def _named(tests: Sequence[Path]) -> dict[str, Path]:
    """Name what is to be predicted by what stands before the first dot of a file's own name.

    Where that is taken, as by another part of the same file, a number follows.
    """
    names: dict[str, Path] = {}
    for written in tests:
        own = Part.parse(written).path.name.partition(".")[0]
        numbered = itertools.chain([own], (f"{own}-{number}" for number in itertools.count(2)))
        taken = {"training", VALIDATION, *names}
        names[next(name for name in numbered if name not in taken)] = written
    return names


def _line(name: str, raw: RawRows, most: int) -> str:
    lengths = np.diff(raw.ends, prepend=0)
    line = f"{name}: {len(raw):,} rows of {raw.path}, {lengths.min():,} to {lengths.max():,} tokens"
    if raw.cut_rows:
        line += f", {raw.cut_rows:,} of the file cut to {most:,}"
    if raw.left_out:
        line += f", {raw.left_out:,} empty images of it left out"
    return line + ("" if raw.labels is not None else ", without labels")
