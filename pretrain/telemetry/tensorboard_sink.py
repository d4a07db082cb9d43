"""TensorBoard: scalars in groups, an overview, texts, histograms."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.telemetry.histograms import Histogram
from pretrain.telemetry.sinks import numbers_of

# Chart titles and the names drawn in them, which TensorBoard reads as regular expressions.
_OVERVIEW = {
    "loss": ["Multiline", ["loss/train", "eval/.*/loss"]],
    "held-out loss on text": ["Multiline", ["eval/.*/text_loss", "eval/.*/unigram_text_loss"]],
    "learning rates": ["Multiline", ["rates/.*"]],
    "gradient norms": ["Multiline", ["gradients/.*"]],
    "seconds of a step": ["Multiline", ["time/.*"]],
    "memory of ranks": ["Multiline", ["memory/.*bytes.*"]],
    "spectral radius": ["Multiline", ["state_space/.*/spectral_radius"]],
}


class TensorBoardSink:
    """Event files that ``tensorboard --logdir`` shows.

    Args:
        folder: Where they go.
        start_step: The step resumed from; older files' later events are hidden.
        configuration: The run's configuration as YAML.
    """

    def __init__(self, folder: Path, start_step: int, configuration: str) -> None:
        self._folder = folder
        self._open(start_step)
        self._board.add_custom_scalars({"overview": _OVERVIEW})
        self.text("configuration", as_code_block(configuration), start_step)

    def _open(self, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _wait_for_another_second(self._folder)
        self._board: Any = SummaryWriter(str(self._folder), purge_step=start_step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write all numbers of a record as one event, which costs a tenth of one event each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in numbers_of(record).items()
        ]
        if values:
            self._board.file_writer.add_summary(Summary(value=values), record["step"])

    def text(self, name: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        self._board.add_text(name, text, step)

    def histogram(self, name: str, values: Histogram, step: int) -> None:
        """Write a histogram."""
        self._board.add_histogram_raw(
            name,
            min=values.smallest,
            max=values.largest,
            num=values.count,
            sum=values.total,
            sum_squares=values.sum_of_squares,
            # TensorBoard wants the upper border of each bin.
            bucket_limits=list(values.edges[1:]),
            bucket_counts=list(values.counts),
            global_step=step,
        )

    def go_back(self, step: int) -> None:
        """Begin a new file that hides the later events of those before."""
        self._board.close()
        self._open(step)

    def close(self, *, finished: bool) -> None:
        """Flush and close."""
        self._board.close()


def _wait_for_another_second(folder: Path) -> None:
    """Let a new file's name come after those of all others, at most a second later.

    TensorBoard reads files in the order of their names, which begin with the second in which they
    were made; within one a counter follows, and 10 comes before 9.
    """
    names = [path.name.split(".") for path in folder.glob("events.out.tfevents.*")]
    newest = max((int(name[3]) for name in names if name[3].isdecimal()), default=0)
    if newest == int(time.time()):
        time.sleep(max(0.0, newest + 1.01 - time.time()))


def as_code_block(text: str) -> str:
    """Markdown that shows a text as it is: indented, so that nothing within can end it."""
    return "\n".join(f"    {line}" for line in text.splitlines())
