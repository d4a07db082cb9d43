"""Which batch and which length hold after so many tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from pretrain.optimization.settings import CurriculumStage


def stage_at(stages: Sequence[CurriculumStage], tokens_seen: int) -> CurriculumStage | None:
    """The stage of the step that begins after so many tokens.

    Args:
        stages: In ascending order of `from_tokens`.
        tokens_seen: Before the step; every rank knows the same number.

    Returns:
        The last stage that has begun, or none. What it leaves out is that of `train` and `data`.
    """
    begun = bisect_right(stages, tokens_seen, key=lambda stage: stage.from_tokens)
    return stages[begun - 1] if begun else None
