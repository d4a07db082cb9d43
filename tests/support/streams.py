"""Streams and data sets that tests of the data room share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.objectives import Objective
from data_pipeline.objectives.span_corruption import SpanCorruption
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.shards.manifest import FORMAT_VERSION, Manifest
from data_pipeline.shards.shard_writer import write_shard

OBJECTIVE = SpanCorruption(64)


def stream_settings(
    *folders: Path | str, objective: Objective = OBJECTIVE, seed: int = 5, **settings: Any
) -> StreamSettings:
    """Settings of a stream over data sets that are named `a`, `b`, ... in order."""
    sources = dict(zip("abcdefgh", folders, strict=False))
    return StreamSettings(sources=sources, objective=objective, seed=seed, **settings)


def open_stream(*folders: Path | str, **settings: Any) -> PretrainingStream:
    """A stream over data sets; arguments as of `stream_settings`."""
    return PretrainingStream(stream_settings(*folders, **settings))


def write_dataset(
    folder: Path, shards: Sequence[Sequence[np.ndarray]], vocab_size: int = 600
) -> Manifest:
    """Writes documents of ids, by shard, as a data set of 100 sentinels and the end id 1."""
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    folder.mkdir(parents=True, exist_ok=True)
    infos = tuple(
        write_shard(
            folder,
            number,
            ((f"{number}-{position}", ids.astype(dtype)) for position, ids in enumerate(documents)),
            dtype,
        )
        for number, documents in enumerate(shards)
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dtype=dtype.str,
        vocab_size=vocab_size,
        piece_count=vocab_size - 100,
        pad_token_id=0,
        eos_token_id=1,
        tokenizer_fingerprint="f" * 64,
        documents=sum(info.documents for info in infos),
        tokens=sum(info.tokens for info in infos),
        shards=infos,
        source={},
    )
    manifest.save(folder)
    return manifest


def random_documents(
    rng: np.random.Generator, count: int, *, median: int = 120, highest_id: int = 499
) -> list[np.ndarray]:
    """Documents of log-normal lengths that end with id 1."""
    lengths = np.clip(rng.lognormal(np.log(median), 1.0, count), 2, 50 * median).astype(int)
    documents = [rng.integers(3, highest_id + 1, length) for length in lengths]
    for document in documents:
        document[-1] = 1
    return documents
