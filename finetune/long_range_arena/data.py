"""Rows of each task: ids with the names of their classes, of files and of parts of files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from finetune.classification.examples import read_examples
from finetune.classification.tasks import Task
from finetune.errors import FinetuneError
from finetune.long_range_arena.images import read_images
from finetune.long_range_arena.vocabulary import Ids, cut, listops_ids, pixel_ids, text_ids

TaskName = Literal["listops", "text", "retrieval", "image", "pathfinder"]

DEFAULT_COLUMNS: dict[str, tuple[tuple[str, ...], str]] = {
    "listops": (("Source",), "Target"),
    "text": (("text",), "label"),
    "retrieval": (("text1", "text2"), "label"),
}
"""Text and label columns of the tasks whose files are tables."""

_PART = re.compile(r"(?P<path>.+)\[(?P<begin>\d*%?):(?P<end>\d*%?)\]")


@dataclass(frozen=True)
class Part:
    """Some rows of a file: all, or those between two places."""

    path: Path
    begin: str = ""
    end: str = ""

    @classmethod
    def parse(cls, written: Path) -> Part:
        """Understand ``PATH``, or ``PATH[:80%]``, ``PATH[80%:]``, ``PATH[8000:9000]``.

        Raises:
            FinetuneError: A share is above 100 %.
        """
        found = None if written.exists() else _PART.fullmatch(str(written))
        if found is None:
            return cls(written)
        for bound in (found["begin"], found["end"]):
            if bound == "%" or (bound.endswith("%") and int(bound[:-1]) > 100):
                raise FinetuneError(f"{written}: {bound!r} is no share; use one from 0% to 100%")
        return cls(Path(found["path"]), found["begin"], found["end"])

    def bounds(self, rows: int) -> tuple[int, int]:
        """First row and the one behind the last, of a file with some rows.

        Raises:
            FinetuneError: There is none between them.
        """
        begin, end = _place(self.begin or "0", rows), _place(self.end or "100%", rows)
        if begin >= end:
            raise FinetuneError(
                f"{self.path}[{self.begin}:{self.end}]: has no rows, the file has {rows:,}; choose "
                "other bounds"
            )
        return begin, end


def _place(bound: str, rows: int) -> int:
    if bound.endswith("%"):
        return rows * int(bound[:-1]) // 100
    return min(int(bound), rows)


@dataclass(frozen=True)
class RawRows:
    """Rows as they stand in a file."""

    path: Path
    ids: Ids
    """Of all rows, one behind the other."""
    ends: NDArray[np.int64]
    """Of each row, in `ids`."""
    labels: Sequence[str] | None
    """Of each row, or None where the file has none."""
    cut_rows: int = 0
    """Rows that were longer than allowed."""
    left_out: int = 0
    """Rows of which there is nothing to read."""

    def __len__(self) -> int:
        return len(self.ends)

    def part(self, begin: int, end: int) -> RawRows:
        """Rows from `begin` to below `end`; what was cut or left out is of the whole file."""
        first = int(self.ends[begin - 1]) if begin else 0
        return RawRows(
            self.path,
            self.ids[first : self.ends[end - 1]],
            self.ends[begin:end] - first,
            None if self.labels is None else self.labels[begin:end],
            self.cut_rows,
            self.left_out,
        )

    def digest(self) -> str:
        """SHA-256 of ids, lengths and labels, whatever kind of file they came from."""
        labels = "\n".join(self.labels or ())
        digest = hashlib.sha256(self.ids.astype("<i2").tobytes())
        digest.update(self.ends.astype("<i8").tobytes() + labels.encode())
        return digest.hexdigest()


class Reader:
    """Reads files of a task, each once however many parts are wanted.

    Args:
        task: Which one.
        max_length_tokens: Where to cut each text.
        table: Columns of files that are tables, or None.
    """

    def __init__(self, task: TaskName, max_length_tokens: int, table: Task | None) -> None:
        self._task, self._most, self._table = task, max_length_tokens, table
        self._known: dict[Path, RawRows] = {}

    def read(self, part: Part, *, labelled: bool) -> RawRows:
        """Read some rows of a file.

        Args:
            part: Which ones.
            labelled: Whether there must be labels.

        Raises:
            FinetuneError: The file is not what the task needs.
            OSError: It cannot be read.
        """
        if part.path not in self._known:
            self._known[part.path] = self._read(part.path)
        rows = self._known[part.path]
        if labelled and rows.labels is None:
            remedy = "add the file of labels beside it, or the array labels of .npz"
            if self._table is not None:
                remedy = f"add a column {self._table.label_column!r}"
            raise FinetuneError(f"{part.path}: has no labels; {remedy}")
        return rows.part(*part.bounds(len(rows)))

    def _read(self, path: Path) -> RawRows:
        if self._table is None:
            return _read_pixels(path, self._most)
        examples = read_examples(path, self._table, labelled=False)
        rows = []
        cut_rows = 0
        for texts, line in zip(examples.texts, examples.lines, strict=True):
            place = f"{path}, line {line}"
            if self._task == "listops":
                whole = [listops_ids(texts[0], place)]
            else:
                whole = [text_ids(text) for text in texts]
            row = np.concatenate([cut(ids, self._most) for ids in whole])
            cut_rows += len(row) < sum(map(len, whole))
            if len(row) == 0:
                raise FinetuneError(f"{place}: holds no words; remove the line")
            rows.append(row)
        ends = np.cumsum([len(row) for row in rows])
        return RawRows(path, np.concatenate(rows), ends, examples.labels, cut_rows)


def _read_pixels(path: Path, most: int) -> RawRows:
    images = read_images(path)
    count, length = images.pixels.shape
    if length > most:
        raise FinetuneError(
            f"{path}: images have {length:,} pixels, and a part of an image is none; set "
            f"max_length_tokens to {length:,} or more"
        )
    labels = None if images.classes is None else list(map(str, images.classes.tolist()))
    ends = np.arange(1, count + 1) * length
    ids = pixel_ids(images.pixels.reshape(-1))
    return RawRows(path, ids, ends, labels, left_out=images.left_out)


class SequenceRows(Dataset[dict[str, Any]]):
    """Rows of ids, with class indices where they are known.

    Attributes:
        targets: int64 [N], or None.
        longest: Ids of the longest row.
    """

    def __init__(self, raw: RawRows, classes: Sequence[str]) -> None:
        self._ids, self._ends = raw.ids, raw.ends
        self.longest = int(np.diff(raw.ends, prepend=0).max())
        self.targets: NDArray[np.int64] | None = None
        if raw.labels is not None:
            places = {label: index for index, label in enumerate(classes)}
            unknown = sorted(set(raw.labels) - set(places))
            if unknown:
                raise FinetuneError(
                    f"{raw.path}: label {unknown[0]!r} is in no training row; those have "
                    f"{', '.join(classes)[:200]}"
                )
            self.targets = np.array([places[label] for label in raw.labels])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        begin = self._ends[index - 1] if index else 0
        row = {"input_ids": self._ids[begin : self._ends[index]]}
        return row if self.targets is None else {**row, "labels": self.targets[index]}


def find_classes(raw: RawRows) -> tuple[str, ...]:
    """Return the different labels of training rows, whole numbers by their size.

    Raises:
        FinetuneError: There is one alone.
    """
    assert raw.labels is not None, "training rows have labels"
    found = set(raw.labels)
    if len(found) < 2:
        raise FinetuneError(
            f"{raw.path}: all labels are {min(found)!r}; give rows of two classes or more"
        )
    if all(label.isdecimal() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def check_task(name: str) -> TaskName:
    """Return the name if it is that of a task.

    Raises:
        FinetuneError: It is not.
    """
    if name not in get_args(TaskName):
        raise FinetuneError(f"task {name!r} is unknown: use {', '.join(get_args(TaskName))}")
    return cast("TaskName", name)
