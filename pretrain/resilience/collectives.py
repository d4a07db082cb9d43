"""What a rank last said to the others: the last collective operations, for a rank that hangs."""

from __future__ import annotations

import functools
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

KEPT = 20
"""Operations remembered."""

# DeepSpeed calls these as attributes of the module too, but for two that it holds for itself.
_OPERATIONS = (
    *("all_reduce", "reduce", "broadcast", "broadcast_object_list", "barrier"),
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "gather", "gather_object"),
    *("scatter", "scatter_object_list", "reduce_scatter", "reduce_scatter_tensor"),
    *("all_to_all", "all_to_all_single", "send", "recv", "isend", "irecv", "batch_isend_irecv"),
    *("all_reduce_coalesced", "all_gather_coalesced", "monitored_barrier"),
)
_HELD_BY_DEEPSPEED = ("all_gather_function", "reduce_scatter_function")


@dataclass
class Operation:
    """One collective operation of this rank."""

    name: str
    shape: str
    """Of the first tensor given, with its dtype; empty for an operation without tensors."""
    began: float
    """On the monotonic clock, in seconds."""
    state: str = "not returned"
    """``not returned``, ``returned`` or ``raised NAME``, of the call itself."""
    work: weakref.ref[Any] | None = None
    """The handle of one that goes on by itself; weak, since handles keep tensors alive."""

    def describe(self, now: float) -> str:
        """One line."""
        state = self.state
        if self.work is not None:
            handle = self.work()
            if handle is None:
                state = "waited for"
            else:
                state = "completed" if handle.is_completed() else "under way"
        return f"{now - self.began:9.1f} s ago  {self.name:<24} {self.shape:<32} {state}"


class CollectiveRecorder:
    """Remembers the last collective operations that this process began, from every thread.

    One note costs a few microseconds. Loads nothing itself, so that it can be made before
    torch is there.
    """

    def __init__(self) -> None:
        self._operations: deque[Operation] = deque(maxlen=KEPT)
        self._inside = threading.local()
        self._undo: list[Callable[[], None]] = []

    def attach(self) -> CollectiveRecorder:
        """Listen to `torch.distributed`, and to DeepSpeed where that has been started."""
        import torch.distributed as dist

        for name in _OPERATIONS:
            if hasattr(dist, name):
                self._listen_to(dist, name)
        backend = _deepspeed_backend()
        for name in _HELD_BY_DEEPSPEED:
            if getattr(backend, name, None) is not None:
                self._listen_to(backend, name)
        return self

    def detach(self) -> None:
        """Leave everything as it was found."""
        while self._undo:
            self._undo.pop()()

    def lines(self) -> list[str]:
        """The last operations, oldest first, one line each: age, name, shape, state."""
        now = time.monotonic()
        return [operation.describe(now) for operation in tuple(self._operations)]

    def _listen_to(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)
        setattr(owner, name, self._noted(function, function.__name__))
        self._undo.append(lambda: setattr(owner, name, function))

    def _noted(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def note(*arguments: Any, **keywords: Any) -> Any:
            if getattr(self._inside, "an_operation", False):
                return function(*arguments, **keywords)  # a part of one that is noted
            operation = Operation(name, _shape(arguments, keywords), time.monotonic())
            self._operations.append(operation)
            self._inside.an_operation = True
            try:
                result = function(*arguments, **keywords)
            except BaseException as error:
                operation.state = f"raised {type(error).__name__}"
                raise
            finally:
                self._inside.an_operation = False
            operation.state = "returned"
            if hasattr(result, "is_completed"):
                operation.work = weakref.ref(result)
            return result

        return note


def _deepspeed_backend() -> Any:
    """DeepSpeed's object through which it communicates; None without DeepSpeed."""
    module = sys.modules.get("deepspeed.comm.comm")
    return getattr(module, "cdb", None)


def _shape(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str:
    """Shape and dtype of the first tensor, also within a list."""
    for tensor in _tensors((*arguments, *keywords.values())):
        return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def _tensors(values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if hasattr(first, "shape") and hasattr(first, "dtype"):
            yield first
