"""webdataset over tars of `.npy` members, as its users write them, and tuned."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader

from benchmarks.data.corpus import TokenSet
from benchmarks.data.loaders.interface import Loader, Run, collate

_SHARD_BYTES = 8 * 2**20
_SHUFFLED_SAMPLES = 1_000


class _Run(Run):
    def __init__(self, loader: Any, skipped: int = 0) -> None:
        self._loader, self._skipped = loader, skipped

    def batches(self) -> Iterator[Any]:
        return islice(iter(self._loader), self._skipped, None)

    def state(self, batches: int) -> Any:
        return self._loader.state_dict() if hasattr(self._loader, "state_dict") else batches


class NaiveWebDataset(Loader):
    """`decode()` and a default DataLoader."""

    def prepare(self, data: TokenSet) -> None:
        """Writes plain ustar tars of about 8 MiB."""
        folder = data.folder("tars")
        if (folder / "complete").exists():
            return
        folder.mkdir(exist_ok=True)
        samples = enumerate(data.samples())
        following = next(samples, None)
        shard = 0
        while following is not None:
            path = folder / f"{shard:06d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                while following is not None and tar.offset < _SHARD_BYTES:
                    _add(tar, *following)
                    following = next(samples, None)
            shard += 1
        (folder / "complete").touch()

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Reads shards in order."""
        dataset = self._dataset(data).decode().to_tuple("tokens.npy")
        dataset = dataset.map(_first).batched(data.batch, collation_fn=collate, partial=False)
        return _Run(DataLoader(dataset, batch_size=None, num_workers=workers))

    def _dataset(self, data: TokenSet, seed: int | None = None) -> Any:
        urls = sorted(str(path) for path in data.folder("tars").glob("*.tar"))
        return webdataset.WebDataset(
            urls,
            shardshuffle=False if seed is None else len(urls),
            seed=seed,
            nodesplitter=None,
            empty_check=False,
        )


class TunedWebDataset(NaiveWebDataset):
    """Ids taken from the raw bytes, no decoders, a shuffle buffer, collated by the pipeline."""

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Reads shards in a random order."""
        return _Run(DataLoader(self._tuned(data), batch_size=None, num_workers=workers))

    def _tuned(self, data: TokenSet) -> Any:
        dataset = self._dataset(data, seed=0).shuffle(_SHUFFLED_SAMPLES, seed=0)
        return dataset.map(ids_of).batched(data.batch, collation_fn=collate, partial=False)


class SkippingWebDataset(TunedWebDataset):
    """Resumes by reading again what has been consumed."""

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Skips batches."""
        loader = DataLoader(self._tuned(data), batch_size=None, num_workers=workers)
        return _Run(loader, skipped=state or 0)


class StatefulWebDataset(TunedWebDataset):
    """Resumes through torchdata's StatefulDataLoader."""

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Loads the state."""
        from torchdata.stateful_dataloader import StatefulDataLoader

        loader = StatefulDataLoader(self._tuned(data), batch_size=None, num_workers=workers)
        if state is not None:
            loader.load_state_dict(state)
        return _Run(loader)


def _add(tar: tarfile.TarFile, number: int, sample: Any) -> None:
    memory = io.BytesIO()
    np.save(memory, sample)
    member = tarfile.TarInfo(f"{number:09d}.tokens.npy")
    member.size = memory.tell()
    memory.seek(0)
    tar.addfile(member, memory)


def _first(sample: Any) -> Any:
    return torch.from_numpy(sample[0])


def ids_of(sample: dict[str, bytes]) -> Any:
    """The ids in the raw bytes of a `.npy` member."""
    content = sample["tokens.npy"]
    header_bytes = 10 + int.from_bytes(content[8:10], "little")
    return np.frombuffer(content, dtype="<u2", offset=header_bytes)
