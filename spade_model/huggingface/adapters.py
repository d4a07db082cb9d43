"""Which layers PEFT adapts unless it is told otherwise."""

from __future__ import annotations

import sys
from typing import Final

LORA_TARGET_MODULES: Final = ("query_key_value", "query", "key_value")
"""Names of the projections that LoRA adapts by default: queries, keys and values of all attention.
Never the state space, whose kernels are a nonlinear function of its parameters."""


def name_lora_targets(model_type: str) -> None:
    """Tell PEFT these names for a model type, if PEFT is loaded.

    PEFT has a table for models that name no targets, and no other way in. It is loaded already
    whenever somebody is about to adapt a model, so that we never load it ourselves.
    """
    constants = sys.modules.get("peft.utils.constants")
    table = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", None)
    if table is not None:
        table.setdefault(model_type, list(LORA_TARGET_MODULES))
