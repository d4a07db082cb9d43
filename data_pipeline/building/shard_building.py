"""From the plan of a shard to its files: reading, tokenizing, writing, and what fails meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.building.plan import PlanReader, ShardPlan
from data_pipeline.corpora.corpus import Document
from data_pipeline.errors import DataError
from data_pipeline.progress import Work
from data_pipeline.shards.manifest import ShardInfo
from data_pipeline.shards.shard_writer import write_shard
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

# Enough text that the costs of a call do not show; documents of a batch are held at once.
_BATCH_CHARACTERS = 2**20
_BATCH_DOCUMENTS = 1024

Failure = tuple[int, str, str]


class ShardMaker:
    """Makes the shards of one process."""

    def __init__(
        self,
        reader: PlanReader,
        tokenizer: DocumentTokenizer,
        *,
        num_threads: int,
        keep_names: bool,
    ) -> None:
        """Makes nothing yet.

        Args:
            reader: Reads the corpus.
            tokenizer: Makes the ids.
            num_threads: Threads to tokenize with.
            keep_names: Whether documents' names go into the shards.
        """
        self._keep_names = keep_names
        self._reader = reader
        self._tokenizer = tokenizer
        self._num_threads = num_threads

    def make(
        self,
        shard: ShardPlan,
        folder: Path,
        report: Callable[[Work], None],
        on_failures: Callable[[Sequence[Failure]], None],
    ) -> ShardInfo:
        """Writes a shard.

        Args:
            shard: What belongs into it.
            folder: Where to write it.
            report: Told of documents tokenized.
            on_failures: Called with position, name and reason of each document that could not be
                tokenized, if any, before the shard is there.

        Raises:
            DataError: If the corpus has changed or the system refuses.
        """
        documents = self._tokenized(shard, report, on_failures)
        return write_shard(folder, shard.number, documents, self._tokenizer.token_dtype)

    def _tokenized(
        self,
        shard: ShardPlan,
        report: Callable[[Work], None],
        on_failures: Callable[[Sequence[Failure]], None],
    ) -> Iterator[tuple[str | None, npt.NDArray[Any]]]:
        failures: list[Failure] = []
        position, reported_bytes = 0, 0
        # A long document must not keep the others waiting for a sign of life.
        alive = _Alive(report)
        for batch in _batches(self._reader.read(shard)):
            for document, tokens in zip(batch, self._encoded(batch, alive), strict=True):
                if isinstance(tokens, str):
                    failures.append((position, document.name, tokens))
                else:
                    yield document.name if self._keep_names else None, tokens
                position += 1
                # By documents, so that the sum is the planned one without measuring texts again.
                now_bytes = shard.text_bytes * position // shard.documents
                made = 0 if isinstance(tokens, str) else len(tokens)
                report(Work(now_bytes - reported_bytes, 1, made))
                reported_bytes = now_bytes
        if failures:
            on_failures(failures)

    def _encoded(
        self, batch: Sequence[Document], alive: Callable[[], None]
    ) -> list[npt.NDArray[Any] | str]:
        """The ids of each document, or the reason why it has none."""
        texts = [document.text for document in batch]
        try:
            return list(self._encode(texts, alive))
        except (DataError, RuntimeError, ValueError) as error:
            if len(batch) > 1:
                return [self._encoded([document], alive)[0] for document in batch]
            return [f"cannot be tokenized ({' '.join(str(error).split()) or type(error).__name__})"]

    def _encode(self, texts: Sequence[str], alive: Callable[[], None]) -> list[npt.NDArray[Any]]:
        return self._tokenizer.encode_documents(
            texts, num_threads=self._num_threads, after_block=alive
        )


class _Alive:
    def __init__(self, report: Callable[[Work], None]) -> None:
        self._report = report

    def __call__(self) -> None:
        self._report(Work())


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def tokens_by_source(
    shard: ShardPlan, lengths_tokens: npt.NDArray[Any], failures: Sequence[Failure]
) -> list[tuple[int, int, int]]:
    """How much of a shard comes from which input.

    Args:
        shard: The plan.
        lengths_tokens: [documents] ids of each document in the shard.
        failures: Documents of the plan that it lacks.

    Returns:
        (number of the input, documents, tokens) in order.
    """
    planned = np.repeat(
        [source for source, _ in shard.sources], [count for _, count in shard.sources]
    )
    present = np.delete(planned, [position for position, _, _ in failures])
    return [
        (
            source,
            int((present == source).sum()),
            int(lengths_tokens[present == source].sum(dtype=np.int64)),
        )
        for source, _ in shard.sources
    ]
