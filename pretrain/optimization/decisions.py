"""The file of decisions: what was skipped and where the run went back, for ever.

``decisions.jsonl`` in the run folder holds one JSON object a line. Each is on the disk before it
takes effect. A run that comes to the same place again, since it was killed in between, finds there
what was decided: the same steps are skipped and the same samples are stepped over, whatever the
number of ranks now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pretrain.errors import RunError
from pretrain.run_folder import flush_folder

ACTIONS = ("skip", "roll_back", "abort")
FILE_NAME = "decisions.jsonl"


@dataclass(frozen=True)
class DecisionRecord:
    """One decision about one step."""

    action: str
    """``skip``, ``roll_back`` or ``abort``."""
    reason: str
    """One line."""
    step: int
    """The step that was judged, counted from 1."""
    sample_index: int
    """Its first sample. Together with the step it names a place of the run: after a roll-back the
    same steps come again with other samples."""
    to_step: int | None = None
    """For a roll-back: the step of the checkpoint."""
    from_sample_index: int | None = None
    """For a roll-back: the sample with which the run had gone on from the checkpoint."""
    next_sample_index: int | None = None
    """For a roll-back: the sample with which it goes on now."""

    @property
    def place(self) -> tuple[str, int, int, int | None]:
        """What was decided and where; two decisions with the same are one made twice.

        Two checkpoints may lead to the same step with the same samples, so the one that a roll-back
        leads to belongs to it.
        """
        return self.action, self.step, self.sample_index, self.to_step


class DecisionLog:
    """The decisions of a run: all ranks hold them, one writes them.

    When the run gave up, somebody has to change something before it goes on. What was skipped
    before is judged anew then, and roll-backs are counted anew; samples stay stepped over.

    Args:
        records: What was read from the file; the same on every rank.
        path: The file, on the rank that writes.
    """

    def __init__(self, records: Sequence[DecisionRecord], path: Path | None) -> None:
        self._records: list[DecisionRecord] = []
        self._since_abort: dict[tuple[str, int, int, int | None], DecisionRecord] = {}
        for record in records:
            self._remember(record)
        self._path = path
        if path is not None:
            _cut_torn_line(path)

    @property
    def records(self) -> Sequence[DecisionRecord]:
        """All decisions, the oldest first."""
        return tuple(self._records)

    def append(self, record: DecisionRecord) -> bool:
        """Have a decision on the disk; one that is there already is not written again.

        Returns:
            Whether it is new.

        Raises:
            OSError: If it cannot be written; it must not take effect then.
        """
        if record.place in self._since_abort:
            return False
        if self._path is not None:
            _append_line(self._path, json.dumps(asdict(record), allow_nan=False))
        self._remember(record)
        return True

    def skipped_before(self, step: int, sample_index: int) -> DecisionRecord | None:
        """The decision to skip the step at this place, where it was made already."""
        return self._since_abort.get(("skip", step, sample_index, None))

    def roll_back(
        self,
        reason: str,
        *,
        step: int,
        sample_index: int,
        samples: int,
        to_step: int,
        to_sample_index: int,
    ) -> int:
        """Write down a roll-back before it is made.

        Args:
            reason: One line.
            step: The step that was judged.
            sample_index: Its first sample.
            samples: How many it had.
            to_step: Step of the checkpoint.
            to_sample_index: The checkpoint's own sample index.

        Returns:
            The sample to go on with: the one behind the judged step.
        """
        going_on = steps_over(self._records, to_step, to_sample_index)
        following = sample_index + samples
        self.append(
            DecisionRecord("roll_back", reason, step, sample_index, to_step, going_on, following)
        )
        return following

    def steps_over(self, step: int, sample_index: int) -> int:
        """The sample with which the run goes on at this place; see :func:`steps_over`."""
        return steps_over(self._records, step, sample_index)

    def roll_backs_to(self, to_step: int, *, besides: tuple[int, int]) -> int:
        """How often the run went back to the checkpoint of a step.

        Args:
            to_step: Of the checkpoint.
            besides: Step and sample index of the roll-back about to be made. It may be on the disk
                already: the run was killed before it took effect, and came here again.
        """
        return sum(
            record.to_step == to_step and (record.step, record.sample_index) != besides
            for record in self._since_abort.values()
        )

    def _remember(self, record: DecisionRecord) -> None:
        self._records.append(record)
        if record.action == "abort":
            self._since_abort.clear()
        else:
            self._since_abort[record.place] = record


def steps_over(records: Sequence[DecisionRecord], checkpoint_step: int, sample_index: int) -> int:
    """Where the samples go on after a checkpoint.

    Args:
        records: All decisions, the oldest first.
        checkpoint_step: Steps made.
        sample_index: The next sample, as the checkpoint has it.

    Returns:
        The same, or behind all that roll-backs to this very place step over.
    """
    for record in records:
        if (record.to_step, record.from_sample_index) == (checkpoint_step, sample_index):
            assert record.next_sample_index is not None, "checked when it was read or made"
            sample_index = record.next_sample_index
    return sample_index


def read_decisions(path: Path) -> list[DecisionRecord]:
    """All decisions in a file; none if it is not there.

    A last line that was torn by a crash is left out: what it decided never took effect.

    Raises:
        RunError: If any other line is not a decision.
    """
    lines, _ = _lines_of(path)
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _lines_of(path: Path) -> tuple[list[bytes], int]:
    """The whole lines of a file, and how many bytes of a torn one follow them."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    whole, newline, rest = content.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    torn = len(rest)
    # After a power loss the length of a file may be on the disk before its bytes: zeros.
    if lines and not _is_json(lines[-1]):
        torn += len(lines.pop()) + 1
    return lines, torn


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _cut_torn_line(path: Path) -> None:
    _, torn = _lines_of(path)
    if torn:
        os.truncate(path, path.stat().st_size - torn)


def _append_line(path: Path, line: str) -> None:
    new = not path.exists()
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        flush_folder(path.parent)


def _record(line: bytes, where: str) -> DecisionRecord:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise RunError(f"{where} is not JSON; restore or remove the line") from None
    problem = _problem(values)
    if problem:
        raise RunError(f"{where}: {problem}; restore or remove the line")
    return DecisionRecord(**values)


def _problem(values: Any) -> str:
    names = {field.name for field in fields(DecisionRecord)}
    if not isinstance(values, dict) or set(values) != names:
        return f"a decision has the fields {', '.join(sorted(names))}"
    if values["action"] not in ACTIONS or not isinstance(values["reason"], str):
        return f"action {values['action']!r} is none of {', '.join(ACTIONS)}"
    places = [values["to_step"], values["from_sample_index"], values["next_sample_index"]]
    numbers = [values["step"], values["sample_index"]]
    if values["action"] == "roll_back":
        numbers += places
    elif places != [None, None, None]:
        return "only a roll_back leads elsewhere"
    if not all(type(number) is int and number >= 0 for number in numbers):
        return "steps and samples are whole numbers from 0"
    if values["action"] == "roll_back" and places[1] >= places[2]:
        return "a roll_back goes on behind where it began"
    return ""
