"""From raw documents to batches: corpora, tokenizer, shards, sample order, objective, streaming.

Importing this room loads no torch: loader workers and `webdataset` reach it when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.reading.sample_order import SampleOrder
    from data_pipeline.reading.source import StreamSettings
    from data_pipeline.reading.stream import PretrainingStream
    from data_pipeline.shards.manifest import Manifest

__all__ = ["Manifest", "PretrainingStream", "SampleOrder", "StreamSettings"]

_HOMES = {
    "Manifest": "data_pipeline.shards.manifest",
    "PretrainingStream": "data_pipeline.reading.stream",
    "SampleOrder": "data_pipeline.reading.sample_order",
    "StreamSettings": "data_pipeline.reading.source",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'data_pipeline' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
