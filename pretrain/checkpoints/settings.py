"""When checkpoints are written and which of them are kept."""

from __future__ import annotations

from pydantic import model_validator

from pretrain.section import NonNegative, Positive, Section


class CheckpointSettings(Section):
    """When state is written and how much of it is kept.

    What any one of the rules keeps is kept; the newest complete checkpoint always is.
    """

    every_steps: Positive = 500
    """Steps between two checkpoints; one is always written at the end and on a stop."""
    keep_last: Positive = 2
    """Newest complete checkpoints that are kept. With 1 there is none to fall back on if the
    newest is damaged."""
    keep_every_steps: Positive | None = None
    """Checkpoints at multiples of so many steps are kept for ever; none means no such ones."""
    keep_best: NonNegative = 0
    """Checkpoints of the lowest held-out loss that are kept; only those written at a step that was
    evaluated count."""
    keep_stopped: NonNegative = 0
    """Newest checkpoints written on a stop that are kept beyond `keep_last`."""
    in_background: bool = True
    """Write while training goes on, from a copy in host memory of what each rank holds. Without,
    training waits for the disk and needs no memory for the writing."""

    @model_validator(mode="after")
    def _kept_steps_are_written(self) -> CheckpointSettings:
        if self.keep_every_steps is not None and self.keep_every_steps % self.every_steps:
            raise ValueError(
                f"checkpoint.keep_every_steps {self.keep_every_steps} is no multiple of "
                f"checkpoint.every_steps {self.every_steps}, so that no checkpoint is written "
                "there; change one of them"
            )
        return self
