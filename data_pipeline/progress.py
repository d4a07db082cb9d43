"""How long-running functions of this room tell how far they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One state of a running piece of work.

    Attributes:
        stage: What is being done, for example "write shards".
        done: Units finished so far, never falling within a stage.
        total: Units in all, or None where the end is not known.
        unit: What is counted, for example "bytes" or "documents".
    """

    stage: str
    done: int
    total: int | None
    unit: str


ProgressCallback = Callable[[Progress], None]
