"""Our own loader, with checksums: windows are cut out of the documents while reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.data.corpus import TokenSet
from benchmarks.data.loaders.interface import Loader, Run
from data_pipeline.objectives import make_objective
from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.source import StreamSettings

_LONGEST_DOCUMENT_TOKENS = 16_384


class _Run(Run):
    endless = True

    def __init__(self, loader: BatchLoader, start_sample: int, batch: int) -> None:
        self._loader, self._start_sample, self._batch = loader, start_sample, batch

    def batches(self) -> Iterator[Any]:
        for batch in self._loader:
            yield torch.from_numpy(batch.input_ids)

    def tokens(self, batch: Any) -> int:
        return self._loader.window_tokens

    def state(self, batches: int) -> Any:
        return self._start_sample + batches * self._batch

    def close(self) -> None:
        self._loader.close()


class Ours(Loader):
    """Batches without an objective, as others have none; the state is one number."""

    memory_map = False

    def prepare(self, data: TokenSet) -> None:
        """Nothing: the corpus is in our form."""

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Begins at a sample."""
        length = data.window_tokens or _LONGEST_DOCUMENT_TOKENS
        settings = StreamSettings(
            sources={"corpus": data.shards},
            objective=make_objective("causal_lm", input_length_tokens=length),
            seed=0,
            windows="concat" if data.window_tokens else "document",
            memory_map=self.memory_map,
        )
        start_sample = state or 0
        stripes = Stripes(
            global_batch_size=data.batch,
            micro_batch_size=data.batch,
            rank=0,
            world_size=1,
            start_sample=start_sample,
        )
        return _Run(BatchLoader(settings, stripes, workers=workers), start_sample, data.batch)


class OursMapped(Ours):
    """The same through memory maps."""

    memory_map = True
