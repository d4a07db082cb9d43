"""How long-running functions of this room tell how far they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


class Work(NamedTuple):
    """An amount of work done.

    Attributes:
        size_bytes: Bytes read or written.
        documents: Documents gone through.
        tokens: Ids made.
    """

    size_bytes: int = 0
    documents: int = 0
    tokens: int = 0

    def plus(self, other: Work) -> Work:
        """Both together."""
        return Work(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class Progress:
    """One state of a running piece of work.

    Attributes:
        stage: What is being done, for example "write shards".
        done: Units finished so far, never falling within a stage.
        total: Units in all, or None where the end is not known.
        unit: What is counted, for example "bytes" or "documents".
        documents: Documents gone through so far, where they are counted beside the unit.
        tokens: Ids made so far, where they are counted.
    """

    stage: str
    done: int
    total: int | None
    unit: str
    documents: int = 0
    tokens: int = 0


ProgressCallback = Callable[[Progress], None]
