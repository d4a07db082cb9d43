"""Learning-rate schedules as pure functions of the step, so that resuming restores nothing."""

from __future__ import annotations

import math
from typing import Literal

ScheduleKind = Literal["inverse_sqrt", "cosine", "wsd"]


def learning_rate_factor(
    kind: ScheduleKind,
    step: int,
    *,
    warmup_steps: int,
    max_steps: int,
    decay_steps: int,
    final_ratio: float,
) -> float:
    """The factor by which every group's base learning rate is multiplied at a step.

    All schedules rise linearly from ``1 / warmup_steps`` to 1 during the warm-up. Then:

    - ``inverse_sqrt``: ``sqrt(warmup_steps / step)`` (T5, Raffel et al. 2020, section 3.1.2,
      normalised to 1 at the end of the warm-up).
    - ``cosine``: half a cosine from 1 to ``final_ratio`` at ``max_steps``
      (Loshchilov and Hutter 2017).
    - ``wsd``: warm-up, stable, decay: 1 until the last ``decay_steps``, then linearly down to
      ``final_ratio`` (Hu et al. 2024, MiniCPM).

    Args:
        kind: The schedule.
        step: The step about to be taken, counted from 1.
        warmup_steps: Steps of linear warm-up; 0 starts at the full rate.
        max_steps: The last step of the run.
        decay_steps: Steps of the final decay; used by ``wsd`` alone.
        final_ratio: The factor at ``max_steps``; used by ``cosine`` and ``wsd``.

    Returns:
        A factor in ``(0, 1]`` for every step in ``[1, max_steps]`` when ``final_ratio > 0``.

    Raises:
        ValueError: If ``step`` is below 1.
    """
    if step < 1:
        raise ValueError(f"step is {step}; steps are counted from 1")
    if step <= warmup_steps:
        return step / warmup_steps
    if kind == "inverse_sqrt":
        return math.sqrt(max(warmup_steps, 1) / step)
    if kind == "cosine":
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    remaining = max(0, max_steps - step)
    if remaining >= decay_steps:
        return 1.0
    return final_ratio + (1 - final_ratio) * remaining / decay_steps
