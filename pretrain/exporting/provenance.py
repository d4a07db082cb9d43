"""Everything known about an exported checkpoint. No paths: the folder is made to be given away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.tokenization.segments import SEGMENT_PATTERN
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.config import RunConfig
from pretrain.exporting.curve import Curve, curve_rows

PROVENANCE = "provenance.json"
FORMAT = "spade-export"
_TOKENIZER_FACTS = (
    "vocab_size",
    "piece_count",
    "sentinel_count",
    "pad_token_id",
    "eos_token_id",
    "unk_token_id",
)


def provenance_of(
    config: RunConfig,
    facts: Mapping[str, Any],
    tokenizer: DocumentTokenizer,
    checkpoint_name: str,
    curve: Curve,
    weights: Mapping[str, Any],
) -> dict[str, Any]:
    """What `provenance.json` states.

    Args:
        config: Of the run.
        facts: Of the checkpoint.
        tokenizer: That the data were written with.
        checkpoint_name: Its folder's.
        curve: Up to the checkpoint.
        weights: `parameters` and `dtype`.
    """
    settings = config.to_dict()
    objective = config.data.make_objective()
    return {
        "format": FORMAT,
        "format_version": 1,
        "run": config.name,
        "checkpoint": checkpoint_name,
        "step": facts["step"],
        "sample_index": facts["sample_index"],
        "tokens_seen": facts["tokens_seen"],
        **weights,
        "code_version": facts["code_version"],
        "fingerprints": facts["fingerprints"],
        "heldout": curve.evaluation,
        "curve": curve_rows(curve),
        "tokenizer": {name: getattr(tokenizer, name) for name in _TOKENIZER_FACTS}
        | {"segment_pattern": SEGMENT_PATTERN},
        "objective": {
            "input_length_tokens": objective.input_length_tokens,
            "target_length_tokens": objective.target_length_tokens,
            **settings["data"]["objective"],
        },
        "windows": {
            name: settings["data"][name]
            for name in ("windows", "document_boundaries", "bucket_samples")
        },
        "model": config.model.to_dict(),
        "training": settings["train"],
        "optimizer": settings["optimizer"],
        "schedule": settings["schedule"],
    }
