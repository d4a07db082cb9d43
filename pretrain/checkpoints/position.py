"""How far a run has come, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps begun and ended, applied or skipped."""
    sample_index: int = 0
    """Samples consumed, and so the next sample: the whole state of the data."""
    tokens_seen: int = 0
    """Tokens of the windows consumed, before masking."""
    updates: int = 0
    """Steps that changed the weights: the schedule and AdamW's bias correction follow them."""
