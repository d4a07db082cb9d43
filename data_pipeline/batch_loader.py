"""Micro-batches of one rank, made ahead of time in the background."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.permutation import IntegerArray
from data_pipeline.stream import PretrainingStream, Seq2SeqBatch

_POLL_SECONDS = 0.1


def micro_batch_indices(
    step: int,
    micro_batch: int,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
) -> IntegerArray:
    """Samples of one micro-batch: of the step's range, the ranks' stripes in order.

    All ranks and micro-batches of step `s` together are `[s * B, (s + 1) * B)` whatever their
    number, for the global batch size `B`.

    Returns:
        int64 [micro_batch_size].
    """
    first = step * global_batch_size + (micro_batch * world_size + rank) * micro_batch_size
    return np.arange(first, first + micro_batch_size, dtype=np.int64)


class BatchLoader:
    """Iterates without end over this rank's micro-batches, beginning at any step.

    Attributes:
        micro_batches_per_step: Micro-batches of this rank that make up a step.
        wait_seconds: How long the last `next` waited for data.
    """

    def __init__(
        self,
        stream: PretrainingStream,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        prefetch: int = 2,
    ) -> None:
        """Starts making micro-batches in a thread.

        Args:
            stream: Makes them.
            global_batch_size: Samples a step over all ranks.
            micro_batch_size: Samples this rank uses at once.
            rank: This rank among those that see different data.
            world_size: How many of those there are.
            start_step: First step wanted.
            prefetch: How many micro-batches may wait ready.

        Raises:
            DataError: If the global batch does not divide into micro-batches, or a number is out
                of range.
        """
        sizes = {
            "global_batch_size": global_batch_size,
            "micro_batch_size": micro_batch_size,
            "world_size": world_size,
            "prefetch": prefetch,
        }
        for name, value in sizes.items():
            if value < 1:
                raise DataError(f"{name} must be at least 1, not {value}")
        if not 0 <= rank < world_size:
            raise DataError(f"rank must be from 0 to {world_size - 1}, not {rank}")
        if start_step < 0:
            raise DataError(f"start_step must be at least 0, not {start_step}")
        per_micro_batch = micro_batch_size * world_size
        if global_batch_size % per_micro_batch:
            raise DataError(
                f"global_batch_size {global_batch_size} is not divisible by micro_batch_size "
                f"{micro_batch_size} times {world_size} ranks ({per_micro_batch}): change one of "
                "them"
            )
        self.micro_batches_per_step = global_batch_size // per_micro_batch
        self.wait_seconds = 0.0
        self._stream = stream
        self._start_step = start_step
        self._stripes: dict[str, Any] = {
            "global_batch_size": global_batch_size,
            "micro_batch_size": micro_batch_size,
            "rank": rank,
            "world_size": world_size,
        }
        self._ready: queue.Queue[Seq2SeqBatch | BaseException] = queue.Queue(prefetch)
        self._closed = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._produce, name="batch loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Seq2SeqBatch]:
        return self

    def __next__(self) -> Seq2SeqBatch:
        if self._failure is not None:
            raise self._failure
        started_seconds = time.perf_counter()
        while not self._closed.is_set():
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            self.wait_seconds = time.perf_counter() - started_seconds
            if isinstance(item, BaseException):
                self._failure = item
                raise item
            return item
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; further iteration stops at once. May be called twice."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _produce(self) -> None:
        step = self._start_step
        try:
            while True:
                for micro_batch in range(self.micro_batches_per_step):
                    indices = micro_batch_indices(step, micro_batch, **self._stripes)
                    if not self._offer(self._stream.batch(indices)):
                        return
                step += 1
        except BaseException as error:
            # The consumer raises it: an error must not end the thread unheard.
            self._offer(error)

    def _offer(self, item: Seq2SeqBatch | BaseException) -> bool:
        """Waits for room; False once closed."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False
