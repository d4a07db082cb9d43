"""From raw documents to batches: corpora, tokenizer, shards, sample order, objective, streaming.

Nothing in this room imports torch; `data_pipeline.inspect` alone reaches it, through `webdataset`,
and only when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline.manifest import Manifest
    from data_pipeline.sample_order import SampleOrder
    from data_pipeline.stream import PretrainingStream, StreamSettings

__all__ = ["Manifest", "PretrainingStream", "SampleOrder", "StreamSettings"]

_HOMES = {
    "Manifest": "data_pipeline.manifest",
    "PretrainingStream": "data_pipeline.stream",
    "SampleOrder": "data_pipeline.sample_order",
    "StreamSettings": "data_pipeline.stream",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'data_pipeline' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
