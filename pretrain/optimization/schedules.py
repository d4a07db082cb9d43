"""Learning rates as pure functions of what was done, so that resuming restores nothing."""

from __future__ import annotations

import math

from pretrain.optimization.settings import ScheduleSettings


def learning_rate_factor(
    settings: ScheduleSettings, *, updates: int, tokens_seen: int, max_steps: int
) -> float:
    """The factor by which every group's base learning rate is multiplied at the next update.

    All schedules rise linearly to 1 during the warm-up, from ``1 / warmup_steps``, or in
    proportion to the tokens seen. Then:

    - ``inverse_sqrt``: ``sqrt(warmup_steps / step)`` (T5, Raffel et al. 2020, section 3.1.2,
      normalised to 1 at the end of the warm-up), or the same of tokens.
    - ``cosine``: half a cosine from 1 to ``final_ratio`` at ``max_steps``
      (Loshchilov and Hutter 2017).
    - ``wsd``: warm-up, stable, decay: 1 until the last ``decay_steps``, then linearly down to
      ``final_ratio`` (Hu et al. 2024, MiniCPM).
    - ``constant``: 1.

    At which step a warm-up in tokens ends cannot be known beforehand. It multiplies a ``cosine``
    that spans the whole run.

    Args:
        settings: The schedule.
        updates: Updates made so far; a skipped step is none.
        tokens_seen: Tokens of the run up to and with the step at hand; used by a warm-up in tokens
            alone.
        max_steps: The last step of the run.

    Returns:
        A factor in ``(0, 1]`` for every update of the run when ``final_ratio > 0``.

    Raises:
        ValueError: If ``updates`` is negative.
    """
    if updates < 0:
        raise ValueError(f"updates is {updates}; updates are counted from 0")
    step = updates + 1
    if settings.warmup_tokens is not None:
        rise = min(1.0, tokens_seen / settings.warmup_tokens)
        if settings.kind == "inverse_sqrt":
            return rise if rise < 1 else math.sqrt(settings.warmup_tokens / tokens_seen)
        return rise * _after_warmup(settings, step, 0, max_steps)
    warmup_steps = settings.steps_of_warmup()
    if step <= warmup_steps:
        return step / warmup_steps
    return _after_warmup(settings, step, warmup_steps, max_steps)


def _after_warmup(
    settings: ScheduleSettings, step: int, warmup_steps: int, max_steps: int
) -> float:
    if settings.kind == "constant":
        return 1.0
    if settings.kind == "inverse_sqrt":
        return math.sqrt(max(warmup_steps, 1) / step)
    final_ratio = settings.final_ratio
    if settings.kind == "cosine":
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    remaining = max(0, max_steps - step)
    if remaining >= settings.decay_steps:
        return 1.0
    return final_ratio + (1 - final_ratio) * remaining / settings.decay_steps
