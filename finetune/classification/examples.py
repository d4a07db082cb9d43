"""Files of a task as rows of token ids with their labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.classification.tasks import Task
from finetune.errors import FinetuneError
from finetune.tables import Table, first_cells, is_json, read_table

_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class Examples:
    """What a file holds for a task."""

    path: Path
    texts: list[tuple[str, ...]]
    """One text or two for each row."""
    labels: list[str] | None
    """As written; None where the file has none."""
    lines: list[int]
    """Where each row stands in the file, from 1."""
    short_rows: int
    """Rows that were left out because they lack cells."""


def read_examples(path: Path, task: Task, *, labelled: bool) -> Examples:
    """Read a file.

    Args:
        path: TSV or JSON lines; see `finetune.tables`.
        task: Says which columns.
        labelled: Whether there must be labels. Only such files may have rows left out, since
            predictions are counted by row.

    Raises:
        FinetuneError: The file is not what the task says.
        OSError: The file cannot be read.
    """
    needed = (*task.text_columns, task.label_column) if labelled else task.text_columns
    table = read_table(
        path,
        needed,
        (task.label_column,),
        names=task.columns or _headless_names(path, task),
        leave_out_short_rows=labelled and task.leave_out_short_rows,
    )
    return Examples(
        path,
        [tuple(row.cells[name] for name in task.text_columns) for row in table.rows],
        _labels(table, task),
        [row.line for row in table.rows],
        table.short_rows,
    )


def _labels(table: Table, task: Task) -> list[str] | None:
    if task.label_column not in table.columns:
        return None
    return [row.cells[task.label_column].strip() for row in table.rows]


def _headless_names(path: Path, task: Task) -> tuple[str, ...] | None:
    """Names of the columns if the file's first line is a row; None if it names them itself."""
    if task.headless is None or is_json(path):
        return None
    named = set(task.text_columns) <= set(first_cells(path))
    return None if named else task.headless


def find_labels(task: Task, training: Examples) -> Task:
    """Return the task with the labels of the training rows, where it names none.

    Raises:
        FinetuneError: There are fewer than two, or more than two for F1.
    """
    assert training.labels is not None, "training rows have labels"
    if not task.numbers and task.labels is None:
        task = dataclasses.replace(task, labels=tuple(sorted(set(training.labels))))
    if task.labels is not None and len(task.labels) < 2:
        raise FinetuneError(
            f"{training.path}: all labels are {task.labels[0]!r}; give rows of two classes or more"
        )
    if task.labels is not None and "f1" in task.metrics and len(task.labels) != 2:
        raise FinetuneError(
            f"metric 'f1' is for two classes and {training.path} has {len(task.labels)}; use "
            "accuracy or matthews"
        )
    return task


def targets_of(task: Task, examples: Examples) -> NDArray[Any] | None:
    """Return class indices int64 [N], or numbers float32 [N]; None where there are no labels.

    Raises:
        FinetuneError: A label is unknown, or no number.
    """
    if examples.labels is None:
        return None
    if task.numbers:
        values = [
            _number(examples, line, label)
            for line, label in zip(examples.lines, examples.labels, strict=True)
        ]
        return np.array(values, dtype=np.float32)
    assert task.labels is not None, "found by find_labels"
    places = {label: index for index, label in enumerate(task.labels)}
    for line, label in zip(examples.lines, examples.labels, strict=True):
        if label not in places:
            known = ", ".join(map(repr, task.labels[:8]))
            raise FinetuneError(
                f"{examples.path}, line {line}: label {label[:40]!r} is unknown; known are {known}"
            )
    return np.array([places[label] for label in examples.labels], dtype=np.int64)


def _number(examples: Examples, line: int, label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FinetuneError(
            f"{examples.path}, line {line}: label {label[:40]!r} is no number; write one"
        )
    return value


class EncodedRows(Dataset[dict[str, Any]]):
    """Token ids, and targets where they are known.

    Attributes:
        targets: Class indices or numbers [N], or None.
        cut_rows: Rows that were longer than allowed.
    """

    def __init__(
        self, ids: list[NDArray[np.int32]], targets: NDArray[Any] | None, cut_rows: int
    ) -> None:
        self._ids = ids
        self.targets = targets
        self.cut_rows = cut_rows

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"input_ids": self._ids[index]}
        return row if self.targets is None else {**row, "labels": self.targets[index]}


def encode(
    examples: Examples,
    targets: NDArray[Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length_tokens: int | None,
) -> EncodedRows:
    """Return rows of token ids; a pair is joined as the tokenizer does.

    Args:
        examples: Texts.
        targets: What `targets_of` returned.
        tokenizer: Of the model.
        max_length_tokens: Where to cut, of a pair the longer text first; None: nowhere.
    """
    ids: list[NDArray[np.int32]] = []
    cut_rows = 0
    for start in range(0, len(examples.texts), _TEXTS_AT_ONCE):
        texts = examples.texts[start : start + _TEXTS_AT_ONCE]
        for row, text in zip(_tokens(tokenizer, texts), texts, strict=True):
            if max_length_tokens is not None and len(row) > max_length_tokens:
                cut_rows += 1
                row = tokenizer(*text, truncation=True, max_length=max_length_tokens).input_ids
            ids.append(np.array(row, dtype=np.int32))
    return EncodedRows(ids, targets, cut_rows)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, ...]]
) -> list[list[int]]:
    columns = [list(column) for column in zip(*texts, strict=True)]
    rows: list[list[int]] = tokenizer(*columns, truncation=False).input_ids
    return rows


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Return ``input_ids`` [B, L], ``attention_mask`` [B, L], and ``labels`` [B] if there are any.

    Args:
        rows: Of `EncodedRows`.
        pad_token_id: Fills up shorter rows.
    """
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), length), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens = row["input_ids"]
        ids[index, : len(tokens)] = torch.from_numpy(tokens)
        mask[index, : len(tokens)] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if "labels" in rows[0]:
        batch["labels"] = torch.from_numpy(np.array([row["labels"] for row in rows]))
    return batch
