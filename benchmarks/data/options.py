"""How large the measurements are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir

LOADERS = (
    *("webdataset", "webdataset tuned", "mosaic", "litdata", "litdata TokensLoader"),
    *("energon", "flat memmap", "ours", "ours mapped"),
)
RESUMERS = (
    *("webdataset skipping", "webdataset stateful", "stateful map", "mosaic", "litdata"),
    *("litdata TokensLoader", "energon", "ours"),
)
SETS = ("documents", "windows of 2,048", "windows of 16,384")


@dataclass(frozen=True)
class Options:
    """Sizes of all questions."""

    corpus_bytes: int = 100_000_000
    vocab_size: int = 16_000
    sets: tuple[str, ...] = SETS
    loaders: tuple[str, ...] = LOADERS
    resumers: tuple[str, ...] = RESUMERS
    workers: tuple[int, ...] = (0, 1, 2)
    resumed_workers: tuple[int, ...] = (2, 1, 3, 0)
    seconds: float = 0.7
    """Of each measurement in reading."""
    rounds: int = 2
    """In reading and resume."""
    compared_batches: int = 40
    objective_rounds: int = 9
    objective_tokens: int = 2**15
    order_sizes: tuple[int, ...] = (10**6, 10**7, 10**8, 10**9)
    longest_order_seconds: float = 30.0
    """A peer that took longer is not asked for the next size, nor one that would not fit."""
    cache: Path = field(default_factory=lambda: Path(gettempdir()) / "spade-benchmarks-data")
    """Where corpus, tokenizer and the peers' data sets are kept."""


SMOKE = Options(
    corpus_bytes=1_000_000,
    vocab_size=1_000,
    sets=("windows of 2,048",),
    loaders=("webdataset tuned", "flat memmap", "ours", "ours mapped"),
    resumers=("stateful map", "ours"),
    workers=(0, 1),
    resumed_workers=(1, 0),
    seconds=0.05,
    rounds=1,
    compared_batches=3,
    objective_rounds=1,
    objective_tokens=2**12,
    order_sizes=(10**6,),
)
"""Everything once, at sizes that show only that it runs."""
