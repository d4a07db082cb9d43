"""What a run has found damaged and goes on without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from data_pipeline.errors import DamageError, DataError
from data_pipeline.shards.manifest import Manifest

DamagePolicy = Literal["fail", "quarantine"]
DEFAULT_MAXIMUM_FRACTION = 1e-3


class QuarantineEntry(NamedTuple):
    """Damage in one shard.

    Attributes:
        source: Name of the data set in the run.
        shard_file: The shard.
        ranges: Damaged tokens, as (first, behind the last) within the shard; None stands for all.
        reason: What was found, for people.
    """

    source: str
    shard_file: str
    ranges: tuple[tuple[int, int], ...] | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        value = self._asdict()
        value["ranges"] = None if self.ranges is None else [list(one) for one in self.ranges]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> QuarantineEntry:
        """The inverse of `to_json`.

        Raises:
            DataError: If it is none.
        """
        try:
            ranges = value["ranges"]
            entry = cls(
                str(value["source"]),
                str(value["shard_file"]),
                None if ranges is None else tuple((int(a), int(b)) for a, b in ranges),
                str(value["reason"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{value!r} is no entry of a quarantine ({error})") from error
        return entry


class Quarantine:
    """Damaged places of the data sets of a run, each listed once.

    The list only grows. It belongs to the state of a run: one that goes on from a checkpoint begins
    with the list of that checkpoint, and so takes the same substitutes even where somebody has
    repaired the data in the meantime.
    """

    def __init__(
        self,
        manifests: Mapping[str, Manifest],
        *,
        policy: DamagePolicy = "fail",
        maximum_fraction: float = DEFAULT_MAXIMUM_FRACTION,
    ) -> None:
        """Begins empty.

        Args:
            manifests: The data sets by name.
            policy: Whether damage ends the run or is gone around.
            maximum_fraction: Share of a data set's tokens that may be damaged before it is an error
                all the same.
        """
        self._tokens = {
            name: {shard.file: shard.tokens for shard in manifest.shards}
            for name, manifest in manifests.items()
        }
        self._policy = policy
        self._maximum_fraction = maximum_fraction
        self._ranges: dict[tuple[str, str], set[tuple[int, int]] | None] = {}
        self._new: list[QuarantineEntry] = []
        self._entries: list[QuarantineEntry] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing is listed."""
        return not self._entries

    @property
    def entries(self) -> tuple[QuarantineEntry, ...]:
        """All that is listed, in the order in which it was found."""
        return tuple(self._entries)

    def contains(self, source: str, shard_file: str, start: int, length: int) -> bool:
        """Whether any token of a window is listed."""
        listed = self._ranges.get((source, shard_file), set())
        if listed is None:
            return True
        return any(start < end and begin < start + length for begin, end in listed)

    def take(self, source: str, error: DamageError) -> None:
        """Lists what an error tells of.

        Raises:
            DamageError: The error itself, where the policy is to fail.
            DataError: If too much is damaged by now.
        """
        if self._policy == "fail":
            raise error
        entry = QuarantineEntry(source, error.shard_file, error.ranges, str(error))
        if self._add(entry):
            self._new.append(entry)
            self._check_limit(source)

    def extend(self, entries: Iterable[QuarantineEntry]) -> list[QuarantineEntry]:
        """Lists what others have found; returns what was not known here."""
        return [entry for entry in entries if self._add(entry)]

    def take_new(self) -> list[QuarantineEntry]:
        """What `take` has listed since this was last called."""
        new, self._new = self._new, []
        return new

    def damaged_fraction(self, source: str) -> float:
        """Share of a data set's tokens that is listed."""
        tokens = self._tokens[source]
        damaged = 0
        for (name, file), ranges in self._ranges.items():
            if name == source and ranges is None:
                damaged += tokens.get(file, 0)
            elif name == source and ranges is not None:
                damaged += sum(end - begin for begin, end in ranges)
        return damaged / max(1, sum(tokens.values()))

    def _add(self, entry: QuarantineEntry) -> bool:
        place = (entry.source, entry.shard_file)
        listed = self._ranges.get(place, set())
        if listed is None:
            return False
        if entry.ranges is None:
            self._ranges[place] = None
        else:
            if listed.issuperset(entry.ranges):
                return False
            self._ranges[place] = listed | set(entry.ranges)
        self._entries.append(entry)
        return True

    def _check_limit(self, source: str) -> None:
        fraction = self.damaged_fraction(source)
        if fraction > self._maximum_fraction:
            raise DataError(
                f"{fraction:.2%} of source {source!r} is damaged, more than "
                f"data.max_damaged_fraction {self._maximum_fraction:g} allows: mend it with "
                f'"spade data repair", or raise the limit; last found: {self._entries[-1].reason}'
            )
