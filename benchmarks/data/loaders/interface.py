"""What the measurements want of a loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.data.corpus import TokenSet


class Run(ABC):
    """An opened loader.

    Attributes:
        endless: Whether its batches never end, so that its beginning can be left out by time.
    """

    endless = False

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """One epoch, or more; of a resumed run, what is left of its epoch first."""

    def tokens(self, batch: Any) -> int:
        """Tokens of the last batch."""
        return int(content(batch).numel())

    @abstractmethod
    def state(self, batches: int) -> Any:
        """What it takes to go on behind so many batches, which have just been taken."""

    def close(self) -> None:  # noqa: B027  (most have nothing to end)
        """Ends workers."""


class Loader(ABC):
    """One way to read the samples of a set, shuffled, in batches."""

    @abstractmethod
    def prepare(self, data: TokenSet) -> None:
        """Writes the set in the loader's own form, unless that has been done."""

    @abstractmethod
    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Opens it, at its beginning or where a state says."""

    def suits(self, data: TokenSet) -> str | None:
        """Why it cannot read a set, if so."""
        return None


def content(batch: Any) -> torch.Tensor:
    """The ids of a batch, whatever a loader wraps them in."""
    while not isinstance(batch, torch.Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return batch


def collate(samples: list[Any]) -> Any:
    """A batch with as little work as possible: windows stacked, documents end to end."""
    rows = [sample["tokens"] if isinstance(sample, dict) else sample for sample in samples]
    rows = [row.numpy() if isinstance(row, torch.Tensor) else row for row in rows]
    lengths = {len(row) for row in rows}
    if len(lengths) == 1:
        return torch.from_numpy(np.stack(rows))
    return torch.from_numpy(np.concatenate(rows)), torch.tensor([len(row) for row in rows])
