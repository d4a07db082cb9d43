"""The scale of the loss under fp16, whose gradients would vanish without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_FIRST = 2.0**16
_LARGEST = 2.0**24
_STEPS_BEFORE_GROWTH = 1000


@dataclass
class LossScale:
    """Halved at each overflow, doubled after a thousand updates without one.

    These are the rules of torch's `GradScaler` with another interval (Micikevicius et al. 2018,
    Mixed Precision Training, section 3.2). It is a plain number here because DeepSpeed's use of
    `GradScaler` lets ranks disagree: each looks at its own shard of the gradients.
    """

    scale: float = 1.0
    """What the loss is multiplied by; a power of two."""
    good_steps: int = 0
    """Updates since the last change."""
    dynamic: bool = False
    """Whether it ever changes."""

    @classmethod
    def for_precision(cls, precision: str) -> LossScale:
        """The scale to begin with: 1 for ever except under fp16."""
        if precision == "fp16":
            return cls(scale=_FIRST, dynamic=True)
        return cls()

    @classmethod
    def continued(cls, saved: dict[str, Any], precision: str) -> LossScale:
        """The scale of a checkpoint, unless the precision has changed in between.

        Args:
            saved: The fields of the scale that was saved.
            precision: Of the run now.
        """
        first, before = cls.for_precision(precision), cls(**saved)
        return before if before.dynamic == first.dynamic else first

    def note(self, *, overflow: bool) -> None:
        """Change the scale after a step.

        Args:
            overflow: Whether its gradients were not finite.
        """
        if not self.dynamic:
            return
        if overflow:
            self.scale, self.good_steps = max(1.0, self.scale / 2), 0
            return
        self.good_steps += 1
        if self.good_steps == _STEPS_BEFORE_GROWTH:
            self.scale, self.good_steps = min(_LARGEST, self.scale * 2), 0
