"""The SPADE network: plain torch modules without any of our other rooms.

Names are loaded when they are first asked for (PEP 562), so that reading a configuration with
``from spade_model.config import SpadeConfig`` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spade_model.cache import DecoderCache
    from spade_model.config import SpadeConfig
    from spade_model.seq2seq import Seq2SeqOutput, SpadeForSeq2Seq, SpadeModel

__all__ = ["DecoderCache", "Seq2SeqOutput", "SpadeConfig", "SpadeForSeq2Seq", "SpadeModel"]

_HOMES = {
    "DecoderCache": "spade_model.cache",
    "Seq2SeqOutput": "spade_model.seq2seq",
    "SpadeConfig": "spade_model.config",
    "SpadeForSeq2Seq": "spade_model.seq2seq",
    "SpadeModel": "spade_model.seq2seq",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
