"""The SPADE network: plain torch modules without any of our other rooms.

Names are loaded when they are first asked for (PEP 562), so that reading a configuration with
``from spade_model.config import SpadeConfig`` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spade_model.attention.cache import DecoderCache
    from spade_model.causal_lm import CausalLMOutput, SpadeForCausalLM
    from spade_model.config import SpadeConfig
    from spade_model.decoding import CausalCache
    from spade_model.seq2seq import Seq2SeqOutput, SpadeForSeq2Seq, SpadeModel

__all__ = [
    "CausalCache",
    "CausalLMOutput",
    "DecoderCache",
    "Seq2SeqOutput",
    "SpadeConfig",
    "SpadeForCausalLM",
    "SpadeForSeq2Seq",
    "SpadeModel",
]

_HOMES = {
    "CausalCache": "spade_model.decoding",
    "CausalLMOutput": "spade_model.causal_lm",
    "DecoderCache": "spade_model.attention.cache",
    "Seq2SeqOutput": "spade_model.seq2seq",
    "SpadeConfig": "spade_model.config",
    "SpadeForCausalLM": "spade_model.causal_lm",
    "SpadeForSeq2Seq": "spade_model.seq2seq",
    "SpadeModel": "spade_model.seq2seq",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
