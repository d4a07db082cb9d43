"""litdata over its own chunks, shuffled: samples as they are, and its loader of token windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import litdata
import numpy as np
import torch
from litdata.streaming.item_loader import TokensLoader
from litdata.streaming.writer import BinaryWriter

from benchmarks.data.corpus import TokenSet
from benchmarks.data.loaders.interface import Loader, Run, collate

_CHUNK_BYTES = 8 * 2**20


class _Run(Run):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def batches(self) -> Iterator[Any]:
        return iter(self._loader)

    def state(self, batches: int) -> Any:
        return self._loader.state_dict()


class Litdata(Loader):
    """StreamingDataset and StreamingDataLoader."""

    def prepare(self, data: TokenSet) -> None:
        """Writes chunks."""
        folder = data.folder("litdata")
        if (folder / "index.json").exists():
            return
        writer = BinaryWriter(str(folder), chunk_bytes=_CHUNK_BYTES)
        for number, sample in enumerate(data.samples()):
            writer[number] = {"tokens": sample}
        writer.done()
        writer.merge()

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Begins where a state says."""
        return self._run(
            litdata.StreamingDataset(str(data.folder("litdata")), **_ORDER), data, workers, state
        )

    def _run(self, dataset: Any, data: TokenSet, workers: int, state: Any) -> Run:
        loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=data.batch,
            num_workers=workers,
            collate_fn=collate,
            drop_last=True,
        )
        if state is not None:
            loader.load_state_dict(state)
        return _Run(loader)


_ORDER: dict[str, Any] = {"shuffle": True, "seed": 0, "drop_last": True}


class LitdataTokens(Litdata):
    """The same with TokensLoader, which cuts windows out of one stream of ids."""

    def suits(self, data: TokenSet) -> str | None:
        """Has windows only."""
        return None if data.window_tokens else "TokensLoader has windows of one length only"

    def prepare(self, data: TokenSet) -> None:
        """Writes chunks of whole windows."""
        folder = data.folder("litdata-tokens")
        if (folder / "index.json").exists():
            return
        assert data.window_tokens is not None
        windows = _CHUNK_BYTES // 2 // data.window_tokens
        loader = TokensLoader(block_size=data.window_tokens)
        writer = BinaryWriter(
            str(folder), chunk_size=windows * data.window_tokens, item_loader=loader
        )
        for number, sample in enumerate(data.samples()):
            writer[number] = torch.from_numpy(sample.astype(np.uint16))
        writer.done()
        writer.merge()

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Begins where a state says."""
        dataset = litdata.StreamingDataset(
            str(data.folder("litdata-tokens")),
            item_loader=TokensLoader(block_size=data.window_tokens),
            **_ORDER,
        )
        return self._run(dataset, data, workers, state)
