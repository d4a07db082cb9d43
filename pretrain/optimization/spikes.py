"""Steps that stand out: skipped one by one, and if they go on, the run goes back.

A step is compared with the last applied ones by a robust z-score, ``(x - median) / (1.4826 * MAD)``
(Hampel 1974), of the loss and of the logarithm of the gradient norm: 1.4826 times the median
absolute deviation is the standard deviation of normal noise, and half of the window may be spoiled
before it moves. Only what is too high counts. A scale that is tiny, as on a plateau, is raised to
a share of the level.

- Not finite, or a z-score above ``z_threshold``: the weights are not changed.
- ``patience`` steps in a row that were skipped or had a loss above half the threshold: the run goes
  back to its last good checkpoint and steps over the samples since (Chowdhery et al. 2022, PaLM,
  section 5.1: it is the samples together with the weights that bring a spike).
- ``max_skips_in_row`` skipped steps in a row: the run gives up.

Gradients that are not finite under a finite, usual loss count for the last rule alone: under fp16
that is how the scale of the loss is found.

The guard is a function of the numbers it is given, and all ranks give it the same ones; no rank
needs to ask another. Its state is plain JSON and goes into each checkpoint.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.optimization.settings import SpikeSettings

Action = Literal["apply", "skip", "roll_back", "abort"]

NORMAL_MAD = 1.4826
"""Standard deviations of normal noise in its median absolute deviation."""
SMALLEST_LOSS_SCALE = 0.01
"""Of the median loss: steadier losses are judged as if they had this much noise."""
SMALLEST_LOG_NORM_SCALE = 0.1
"""In nats: steadier gradient norms are judged as if they had a tenth of noise."""
SMALLEST_NORM = 1e-30
"""Gradient norms below it, zero included, count as it: a logarithm is taken."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a step."""

    action: Action
    reason: str
    """One line; empty for ``apply``."""


class SpikeGuard:
    """Judges the steps of a run, one after another.

    Before an update, `norm_limit_for` says up to which gradient norm it may be made; afterwards,
    `judge` must be told what became of it.

    Args:
        settings: Thresholds and patience.
        state: Of `to_json`; none at the start of a run.

    Raises:
        ValueError: If the state is not one of `to_json`.
    """

    def __init__(self, settings: SpikeSettings, state: dict[str, Any] | None = None) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=settings.window_steps)
        self._log_norms: deque[float] = deque(maxlen=settings.window_steps)
        self._trouble_in_row = 0
        self._skips_in_row = 0
        self._stage: list[int] = []
        if state is not None:
            self._fill(state)
        self._refresh()

    @property
    def calm(self) -> bool:
        """Whether nothing is wrong just now: a checkpoint made now is one to go back to."""
        return self._trouble_in_row == 0

    def loss_limit(self) -> float:
        """The loss above which the next step is skipped; infinite while history is short."""
        return self._loss_limit

    def norm_limit(self) -> float:
        """The gradient norm above which the next step is skipped; infinite as above."""
        return self._norm_limit

    def norm_limit_for(self, loss: float) -> float:
        """The gradient norm up to which the step with this loss may be applied; -1: not at all."""
        return self._norm_limit if loss <= self._loss_limit and math.isfinite(loss) else -1.0

    def judge(self, loss: float, gradient_norm: float, applied: bool) -> Decision:
        """Take in what became of a step.

        Args:
            loss: Of the step over all ranks.
            gradient_norm: Before clipping; not finite where the gradients were not.
            applied: Whether the weights were changed.

        Returns:
            ``apply`` or ``skip``, as it was; ``roll_back`` or ``abort`` where more must happen.
        """
        settings = self._settings
        problem = self._problem(loss, gradient_norm)
        if applied:
            self._skips_in_row = 0
            suspicious = bool(problem) or loss > self._suspicious_loss
            self._trouble_in_row = self._trouble_in_row + 1 if suspicious else 0
            reason = problem or (f"loss {loss:.6g} is suspicious" if suspicious else "")
            if math.isfinite(loss) and math.isfinite(gradient_norm):
                self._losses.append(loss)
                self._log_norms.append(math.log(max(gradient_norm, SMALLEST_NORM)))
                self._refresh()
        else:
            self._skips_in_row += 1
            if math.isfinite(gradient_norm) or not loss <= self._suspicious_loss:
                self._trouble_in_row += 1
            reason = problem or "skipped as decided before"
        if self._skips_in_row >= settings.max_skips_in_row:
            return Decision(
                "abort",
                f"{self._skips_in_row} steps in a row were skipped, the last one because {reason}; "
                "lower optimizer.learning_rate or look at the data",
            )
        may_roll_back = settings.enabled and settings.max_roll_backs > 0
        if may_roll_back and self._trouble_in_row >= settings.patience:
            return Decision(
                "roll_back", f"{self._trouble_in_row} bad steps in a row, the last one: {reason}"
            )
        return Decision("apply", "") if applied else Decision("skip", reason)

    def enter(self, global_batch_size: int, input_length_tokens: int) -> None:
        """Begin a new history where the next steps have another batch or length than the last.

        To be called before each step, or wherever a stage of the curriculum may begin. What the
        last stage was is part of the state, so a resumed run forgets where the first one did.
        """
        stage = [global_batch_size, input_length_tokens]
        if self._stage not in ([], stage):
            self._losses.clear()
            self._log_norms.clear()
            self._refresh()
        self._stage = stage

    def to_json(self) -> dict[str, Any]:
        """All of the state; JSON keeps every bit of its numbers."""
        return {
            "losses": list(self._losses),
            "log_norms": list(self._log_norms),
            "trouble_in_row": self._trouble_in_row,
            "skips_in_row": self._skips_in_row,
            "stage": list(self._stage),
        }

    def _fill(self, state: dict[str, Any]) -> None:
        counts: list[Any] = [state.get(key) for key in ("trouble_in_row", "skips_in_row")]
        stage = state.get("stage")
        losses, log_norms = _numbers(state.get("losses")), _numbers(state.get("log_norms"))
        if (
            not all(type(count) is int and count >= 0 for count in counts)
            or losses is None
            or log_norms is None
            or len(losses) != len(log_norms)
            or not isinstance(stage, list)
            or len(stage) not in (0, 2)
        ):
            raise ValueError("the state of the spike guard is damaged; use another checkpoint")
        self._trouble_in_row, self._skips_in_row = counts
        self._stage = list(stage)
        self._losses.extend(losses)
        self._log_norms.extend(log_norms)

    def _problem(self, loss: float, gradient_norm: float) -> str:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm is {gradient_norm}"
        if loss > self._loss_limit:
            return f"loss {loss:.6g} is above {self._loss_limit:.6g}"
        if gradient_norm > self._norm_limit:
            return f"gradient norm {gradient_norm:.6g} is above {self._norm_limit:.6g}"
        return ""

    def _refresh(self) -> None:
        """Find the limits that hold until the history changes."""
        settings = self._settings
        self._loss_limit = self._suspicious_loss = self._norm_limit = math.inf
        if not settings.enabled or len(self._losses) < settings.minimum_history_steps:
            return
        level, scale = _level_and_scale(self._losses)
        scale = max(scale, SMALLEST_LOSS_SCALE * abs(level))
        self._loss_limit = level + settings.z_threshold * scale
        self._suspicious_loss = level + settings.z_threshold / 2 * scale
        level, scale = _level_and_scale(self._log_norms)
        logarithm = level + settings.z_threshold * max(scale, SMALLEST_LOG_NORM_SCALE)
        self._norm_limit = math.exp(min(logarithm, 700.0))


def is_calm(state: dict[str, Any]) -> bool:
    """Whether the guard whose state is in a checkpoint saw nothing wrong when it was made."""
    return state.get("trouble_in_row") == 0


def roll_back_or_abort(decision: Decision, done: int, settings: SpikeSettings) -> Decision:
    """The decision itself, or to give up where this roll-back would be one too many.

    Args:
        decision: To roll back.
        done: Roll-backs to the same checkpoint so far.
        settings: How many are allowed.
    """
    if done < settings.max_roll_backs:
        return decision
    return Decision(
        "abort",
        f"{decision.reason}; the run went back to the same checkpoint {done} times already; lower "
        "optimizer.learning_rate, look at the data, or raise spikes.z_threshold",
    )


def _numbers(values: Any) -> list[float] | None:
    """A list of finite floats as it is; nothing for anything else."""
    if not isinstance(values, list):
        return None
    fine = all(type(value) is float and math.isfinite(value) for value in values)
    return values if fine else None


def _level_and_scale(values: Iterable[float]) -> tuple[float, float]:
    """Median, and the standard deviation that normal noise of this spread has."""
    ordered = sorted(values)
    level = _median(ordered)
    return level, NORMAL_MAD * _median(sorted(abs(value - level) for value in ordered))


def _median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
