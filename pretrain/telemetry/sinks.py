"""The one small interface behind which all the places lie that a run tells its numbers to."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from pretrain.telemetry.histograms import Histogram
from pretrain.telemetry.metrics import drop_later_lines

NOT_PLOTTED = ("step", "event")
"""Keys of a record that are no quantities."""


class MetricsSink(Protocol):
    """A place that numbers, texts and histograms go to. For one thread."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record; it carries ``step``."""
        ...

    def text(self, name: str, text: str, step: int) -> None:
        """Take a text in Markdown."""
        ...

    def histogram(self, name: str, values: Histogram, step: int) -> None:
        """Take a distribution."""
        ...

    def go_back(self, step: int) -> None:
        """Know that the steps after this one are about to be made again."""
        ...

    def close(self, *, finished: bool) -> None:
        """Flush and close; `finished` says whether the run has made its last step."""
        ...


class JsonLines:
    """``metrics.jsonl``: one record a line, every number in full precision.

    What JSON cannot say, NaN and the infinities, becomes the word for it. Texts and histograms are
    not kept.

    Args:
        path: The file.
        start_step: The step resumed from; what was logged after it is forgotten.
        abandoned: File to which lines go that a roll-back makes void.

    Raises:
        OSError: Also of `write`: without its record a run does not go on.
    """

    def __init__(self, path: Path, start_step: int, abandoned: Path) -> None:
        drop_later_lines(path, start_step)
        self._path, self._abandoned = path, abandoned
        self._stream: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line and hand it to the system."""
        line = json.dumps({key: _in_words(value) for key, value in record.items()})
        self._stream.write(line + "\n")
        self._stream.flush()

    def text(self, name: str, text: str, step: int) -> None:
        """Keep nothing."""

    def histogram(self, name: str, values: Histogram, step: int) -> None:
        """Keep nothing."""

    def sync(self) -> None:
        """Make sure that what was written survives the host."""
        os.fsync(self._stream.fileno())

    def go_back(self, step: int) -> None:
        """Move the lines after a step to the file of abandoned ones."""
        self._stream.close()
        drop_later_lines(self._path, step, keep_in=self._abandoned)
        self._stream = self._path.open("a", encoding="utf-8")

    def close(self, *, finished: bool) -> None:
        """Close the file."""
        self._stream.close()


def _in_words(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The quantities of a record that can be plotted, by their names in trackers."""
    return {
        tracked_name(key): float(value)
        for key, value in record.items()
        if key not in NOT_PLOTTED and isinstance(value, (int, float))
    }


_GROUPED = {
    "loss": "loss/train",
    "learning_rate": "rates/learning_rate",
    "loss_scale": "rates/loss_scale",
    "grad_norm": "gradients/norm",
    "tokens_per_second": "speed/tokens_per_second",
    "model_flops_utilisation": "speed/model_flops_utilisation",
    "step_seconds": "time/step_seconds",
    "data_wait_seconds": "time/data_wait_seconds",
    "memory_bytes": "memory/in_use_bytes",
}
_GROUPS = {"learning_rate/": "rates/", "grad_norm/": "gradients/"}


def tracked_name(key: str) -> str:
    """The name of a quantity where plots are sorted by what stands before the first slash.

    Args:
        key: As in ``metrics.jsonl``, where the names are shorter.
    """
    if key in _GROUPED:
        return _GROUPED[key]
    for prefix, group in _GROUPS.items():
        if key.startswith(prefix):
            return group + key.removeprefix(prefix)
    return key if "/" in key else f"progress/{key}"
