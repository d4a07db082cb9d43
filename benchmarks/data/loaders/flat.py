"""One flat file of ids, mapped into memory, read in a permuted order by torch's DataLoader.

The way of OLMo-core and Megatron-LM; the form is one array, the order one array of all samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.data.corpus import TokenSet
from benchmarks.data.loaders.interface import Loader, Run, collate


class _Samples(Dataset):  # type: ignore[type-arg]
    """Sample by number."""

    def __init__(self, data: TokenSet) -> None:
        self._file = data.folder("flat").with_suffix(".bin")
        self._ends = data.ends
        self._tokens: Any = None

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Any:
        if self._tokens is None:
            self._tokens = np.memmap(self._file, dtype="<u2", mode="r")
        start = self._ends[number - 1] if number else 0
        return self._tokens[start : self._ends[number]]


class _Run(Run):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def batches(self) -> Iterator[Any]:
        return iter(self.loader)

    def state(self, batches: int) -> Any:
        return self.loader.state_dict()


class FlatMemmap(Loader):
    """The whole epoch permuted beforehand."""

    def prepare(self, data: TokenSet) -> None:
        """Writes the file."""
        file = data.folder("flat").with_suffix(".bin")
        if not file.exists():
            np.array(data.tokens).tofile(file)

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Permutes all samples."""
        samples = _Samples(data)
        order = np.random.default_rng(0).permutation(len(samples)).tolist()
        return _Run(
            DataLoader(
                samples,
                batch_size=data.batch,
                sampler=order,
                num_workers=workers,
                collate_fn=collate,
                drop_last=True,
            )
        )


class StatefulMap(FlatMemmap):
    """The same samples under torchdata's StatefulDataLoader and torch's RandomSampler."""

    def __init__(self) -> None:
        import torchdata.stateful_dataloader  # noqa: F401

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Lets the sampler permute all samples, and go on where a state says."""
        import torch
        from torchdata.stateful_dataloader import StatefulDataLoader
        from torchdata.stateful_dataloader.sampler import RandomSampler

        samples = _Samples(data)
        sampler = RandomSampler(samples, generator=torch.Generator().manual_seed(0))
        loader = StatefulDataLoader(
            samples,
            batch_size=data.batch,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            drop_last=True,
        )
        if state is not None:
            loader.load_state_dict(state)
        return _Run(loader)
