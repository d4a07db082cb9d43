"""Micro-batches of one rank, made ahead of time in a thread or in worker processes.

Several micro-batches travel together in one message: handing over costs far more than reading. The
messages hold one flat piece of memory each, whatever the batches are made of.
"""

from __future__ import annotations

import gc
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import WHOLE, Batch
from data_pipeline.permutation import IntegerArray
from data_pipeline.reading.batch_memory import fill, laid_out, unpacked
from data_pipeline.reading.quarantine import QuarantineEntry
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream

_POLL_SECONDS = 0.1
_MESSAGE_BYTES = 2**20
_MOST_BATCHES_A_MESSAGE = 16
# Finding places costs about the same for one sample as for a thousand.
_PLANNED_SAMPLES = 4096


@dataclass(frozen=True, kw_only=True)
class Stripes:
    """Which samples a rank reads.

    Attributes:
        global_batch_size: Samples a step over all ranks.
        micro_batch_size: Samples this rank uses at once.
        rank: This rank among those that see different data.
        world_size: How many of those there are.
        start_sample: First sample of the first step.
    """

    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int
    start_sample: int = 0

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "micro_batch_size", "world_size"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank must be from 0 to {self.world_size - 1}, not {self.rank}")
        if self.start_sample < 0:
            raise DataError(f"start_sample must be at least 0, not {self.start_sample}")
        per_micro_batch = self.micro_batch_size * self.world_size
        if self.global_batch_size % per_micro_batch:
            raise DataError(
                f"global_batch_size {self.global_batch_size} is not divisible by micro_batch_size "
                f"{self.micro_batch_size} times {self.world_size} ranks ({per_micro_batch}): "
                "change one of them"
            )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of this rank that make up a step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def samples(self, micro_batches: npt.ArrayLike) -> IntegerArray:
        """Samples of this rank's micro-batches, counted from 0 at `start_sample`.

        All ranks and micro-batches of step `s` together are `[s * B, (s + 1) * B)` behind
        `start_sample`, whatever their number, for the global batch size `B`.

        Args:
            micro_batches: [n] numbers of micro-batches.

        Returns:
            int64 [n, micro_batch_size].
        """
        steps, within = np.divmod(
            np.asarray(micro_batches, dtype=np.int64), self.micro_batches_per_step
        )
        first = steps * self.global_batch_size
        first += (within * self.world_size + self.rank) * self.micro_batch_size
        return self.start_sample + first[:, None] + np.arange(self.micro_batch_size)


class _Message(NamedTuple):
    """Micro-batches in a row, the tokens of their windows, and what was found damaged."""

    batches: list[Batch]
    window_tokens: list[int]
    quarantined: list[QuarantineEntry]


class BatchLoader:
    """Iterates without end over this rank's micro-batches.

    Attributes:
        stripes: Which samples this rank reads.
        wait_seconds: How long the last `next` waited for data.
        window_tokens: Tokens of the windows that the last batch was made of.
        quarantined: What was found damaged so far while this loader's batches were made.
    """

    def __init__(
        self, settings: StreamSettings, stripes: Stripes, *, workers: int = 0, messages: int = 2
    ) -> None:
        """Starts making micro-batches.

        Args:
            settings: Of the stream; each worker opens one of its own.
            stripes: Which samples this rank reads.
            workers: Processes that make them; 0 makes them in a thread of this one.
            messages: How many messages of about a megabyte each worker makes ahead.

        Raises:
            DataError: If the data cannot be opened, or a number is out of range.
        """
        if workers < 0:
            raise DataError(f"workers must be at least 0, not {workers}")
        if messages < 1:
            raise DataError(f"messages must be at least 1, not {messages}")
        self.stripes = stripes
        self._settings = settings
        self._taken = 0
        self._whole: PretrainingStream | None = None
        self.wait_seconds = 0.0
        self.window_tokens = 0
        self.quarantined: list[QuarantineEntry] = []
        self._batches: Iterator[tuple[Batch, int]] = iter(())
        self._failure: BaseException | None = None
        self._source: _Thread | _Workers
        if workers:
            self._source = _Workers(settings, stripes, workers, messages)
        else:
            self._source = _Thread(settings, stripes, messages)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.wait_seconds = 0.0
        found = next(self._batches, None) or self._next_message()
        batch, self.window_tokens = found
        self._taken += 1
        return batch

    def make_whole(self, known: Iterable[QuarantineEntry]) -> Batch:
        """The last micro-batch again, of whole samples and in this thread.

        Args:
            known: Damage that others have found, to be gone around beside what `quarantined` lists;
                both are listed there afterwards, with what is found now.

        Raises:
            DataError: If data are damaged and may not be gone around.
        """
        if self._whole is None:
            self._whole = PretrainingStream(replace(self._settings, part=WHOLE))
        samples = self.stripes.samples([self._taken - 1])[0]
        batch = self._whole.make_whole(samples, (*self.quarantined, *known))
        listed = {*self._settings.quarantined, *self.quarantined}
        self.quarantined += [one for one in self._whole.quarantine.entries if one not in listed]
        return batch

    def _next_message(self) -> tuple[Batch, int]:
        """Waits for a message; its first micro-batch."""
        if self._failure is not None:
            raise self._failure
        started_seconds = time.perf_counter()
        try:
            message = self._source.take()
        except BaseException as error:
            self._failure = error
            raise
        self.wait_seconds = time.perf_counter() - started_seconds
        self.quarantined += message.quarantined
        self._batches = iter(zip(message.batches, message.window_tokens, strict=True))
        return next(self._batches)

    def close(self) -> None:
        """Ends thread or workers; what is left of a message can still be iterated."""
        self._source.close()
        if self._whole is not None:
            self._whole.close()
        self._failure = self._failure or StopIteration()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _messages(
    stream: PretrainingStream, stripes: Stripes, worker: int, workers: int
) -> Iterator[_Message]:
    """One worker's messages without end: of all in order, each `workers`-th.

    The first of each worker holds a single micro-batch, so that a run need not wait for more.
    """
    per_message = _batches_a_message(stream, stripes)
    size = stripes.micro_batch_size
    planned = max(1, _PLANNED_SAMPLES // (per_message * size))
    yield from _made(stream, stripes.samples([worker]), 1)
    number = worker
    while True:
        numbers = number + workers * np.arange(planned)
        micro_batches = workers + numbers[:, None] * per_message + np.arange(per_message)
        yield from _made(stream, stripes.samples(micro_batches.ravel()), per_message)
        number += workers * planned


def _made(stream: PretrainingStream, indices: IntegerArray, per_message: int) -> Iterator[_Message]:
    """Messages of so many micro-batches each, whose samples are found all at once."""
    stream.prefetch(int(indices[0, 0]))
    samples = stream.locate(indices.ravel())
    size = indices.shape[1]
    for first in range(0, len(indices), per_message):
        starts = range(first * size, (first + per_message) * size, size)
        parts = [samples.slice(start, start + size) for start in starts]
        batches = [stream.make(part) for part in parts]
        tokens = [int(part.lengths.sum()) for part in parts]
        yield _Message(batches, tokens, stream.quarantine.take_new())


def _batches_a_message(stream: PretrainingStream, stripes: Stripes) -> int:
    batch_bytes = stripes.micro_batch_size * stream.mean_sample_bytes
    return max(1, min(_MOST_BATCHES_A_MESSAGE, int(_MESSAGE_BYTES / batch_bytes)))


class _Thread:
    """Messages made in a thread of this process."""

    def __init__(self, settings: StreamSettings, stripes: Stripes, messages: int) -> None:
        # Opened here, so that whoever starts the loader sees what is wrong.
        self._stream = PretrainingStream(settings)
        self._stripes = stripes
        self._ready: queue.Queue[_Message | BaseException] = queue.Queue(messages)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="batch loader", daemon=True)
        self._thread.start()

    def take(self) -> _Message:
        while not self._closed.is_set():
            try:
                item = self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            return item
        raise StopIteration

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._stream.close()

    def _produce(self) -> None:
        try:
            for message in _messages(self._stream, self._stripes, 0, 1):
                if not self._offer(message):
                    return
        except BaseException as error:
            # The consumer raises it: an error must not end the thread unheard.
            self._offer(error)

    def _offer(self, item: _Message | BaseException) -> bool:
        """Waits for room; False once closed."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


class _Workers:
    """Messages made in processes of torch's DataLoader, taken in turn."""

    def __init__(
        self, settings: StreamSettings, stripes: Stripes, workers: int, messages: int
    ) -> None:
        import torch
        from torch.utils.data import DataLoader, IterableDataset, get_worker_info

        class Messages(IterableDataset):  # type: ignore[type-arg]
            def __iter__(self) -> Iterator[Any]:
                info = get_worker_info()
                assert info is not None, "messages are made in workers only"
                try:
                    stream = PretrainingStream(settings)
                    for message in _messages(stream, stripes, info.id, info.num_workers):
                        layout, arrays, size_bytes = laid_out(message.batches)
                        # Shared before it is filled, or it would be copied once more.
                        memory = torch.empty(size_bytes, dtype=torch.uint8)
                        memory.share_memory_()  # type: ignore[no-untyped-call]
                        fill(memory.numpy(), arrays)
                        yield memory, layout, [one.part for one in message.batches], message[1:]
                except DataError as error:
                    # As a value: torch would bury the line in a worker's traceback.
                    yield DataError(str(error))

        PretrainingStream(settings).close()  # what is wrong is better said here than in a worker
        loader = DataLoader(
            Messages(),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=messages,
            worker_init_fn=_leave_signals,
            collate_fn=_unchanged,
            # An own generator, so that the run's random numbers are left alone.
            generator=torch.Generator(),
        )
        # Workers are forks: were the trainer's objects looked through by their collections of
        # garbage, its pages would be copied, which takes a tenth of a second.
        gc.freeze()
        try:
            self._iterator: Iterator[Any] = iter(loader)
        finally:
            gc.unfreeze()

    def take(self) -> _Message:
        item = next(self._iterator)
        if isinstance(item, DataError):
            raise item
        memory, layout, parts, rest = item
        return _Message(unpacked(memory.numpy(), layout, parts), *rest)

    def close(self) -> None:
        # The iterator ends its workers when it goes.
        self._iterator = iter(())


def _unchanged(message: Any) -> Any:
    """Without this torch makes lists of the tuples in a message."""
    return message


def _leave_signals(worker: int) -> None:
    """A signal to the whole group asks the trainer to stop; it then ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
