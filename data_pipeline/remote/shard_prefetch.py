"""Fetching shards in the background before they are needed."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from data_pipeline.errors import DataError


class Sized(Protocol):
    """Something of a known length."""

    @property
    def size_bytes(self) -> int:
        """Its length."""


Item = TypeVar("Item", bound=Sized)


class Prefetcher(Generic[Item]):
    """A few threads that work off a list, which may be replaced at any time."""

    def __init__(self, fetch: Callable[[Item], None], *, threads: int, budget_bytes: int) -> None:
        """Starts nothing before there is something to fetch.

        Args:
            fetch: Fetches one item; its `DataError` is passed over.
            threads: Items fetched at the same time.
            budget_bytes: Items of a list beyond so many bytes are left away: what is fetched too
                early would drive out what is needed sooner.
        """
        self._fetch = fetch
        self._num_threads = threads
        self._budget_bytes = budget_bytes
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def replace(self, items: Sequence[Item]) -> None:
        """Fetches these in this order, instead of those that are not begun yet."""
        left_bytes = self._budget_bytes
        wanted: deque[Item] = deque()
        for item in items:
            left_bytes -= item.size_bytes
            if left_bytes < 0:
                break
            wanted.append(item)
        with self._changed:
            self._waiting = wanted
            if wanted and not self._threads and not self._closed:
                self._threads = [
                    threading.Thread(target=self._work, name="shard prefetch", daemon=True)
                    for _ in range(self._num_threads)
                ]
                for thread in self._threads:
                    thread.start()
            self._changed.notify_all()

    def close(self, patience_seconds: float = 5.0) -> None:
        """Ends the threads, each after the item it is fetching; waits that long at most."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(patience_seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                item = self._waiting.popleft()
            with contextlib.suppress(DataError):
                self._fetch(item)
