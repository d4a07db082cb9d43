"""How much DeepSpeed sends, and on CPUs how long it waits for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pretrain.telemetry.step_timer import StepTimer

# Methods of DeepSpeed's communication backend that ZeRO uses.
_COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_base",
    "all_gather_coalesced",
    "all_to_all_single",
    "barrier",
)


class CommunicationMeter:
    """Counts the calls and bytes of DeepSpeed's collectives, and gives a timer the waits.

    DeepSpeed's own communication log waits for the device at every call, which slows a GPU down;
    this one only looks at the arguments. On CPUs gloo's calls block, so the time within them is
    what communication costs; calls that return at once are counted where they are waited for.

    Args:
        timer: Gets the part ``communication``.
        backend: DeepSpeed's backend object, ``deepspeed.comm.comm.cdb``.
    """

    def __init__(self, timer: StepTimer, backend: Any) -> None:
        self._timer = timer
        self._backend = backend
        self._calls = 0
        self._bytes = 0
        self._depth = 0
        self._replaced: list[str] = []

    def install(self) -> CommunicationMeter:
        """Begin to count, by methods of this one object that stand before those of its class."""
        for name in _COLLECTIVES:
            method = getattr(self._backend, name, None)
            if method is not None and name not in vars(self._backend):
                setattr(self._backend, name, self._counted(method))
                self._replaced.append(name)
        return self

    def remove(self) -> None:
        """Let the backend be as it was."""
        for name in self._replaced:
            delattr(self._backend, name)
        self._replaced.clear()

    def take(self, steps: int) -> dict[str, float]:
        """Calls and bytes a step of this rank since the last call, for the metrics.

        Args:
            steps: Made since then.

        Returns:
            ``communication/calls`` and ``communication/bytes``: of the larger side of each call,
            which for a gather is what arrives.
        """
        calls, sent = self._calls / max(1, steps), self._bytes / max(1, steps)
        self._calls = self._bytes = 0
        return {"communication/calls": calls, "communication/bytes": sent}

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            if self._depth:  # one method of the backend calls another
                return method(*arguments, **options)
            self._calls += 1
            self._bytes += _bytes_of([*arguments, *options.values()])
            if self._timer.is_on_gpu:
                return method(*arguments, **options)
            self._depth += 1
            try:
                with self._timer.part("communication"):
                    work = method(*arguments, **options)
            finally:
                self._depth -= 1
            return _TimedWork(work, self._timer) if hasattr(work, "wait") else work

        # Under torch.compile ZeRO 3 gathers weights between compiled parts: no part of a graph.
        outside: Callable[..., Any] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
        return outside


class _TimedWork:
    """A collective under way; all but waiting is left to the handle it stands for."""

    def __init__(self, work: Any, timer: StepTimer) -> None:
        self._work, self._timer = work, timer

    def wait(self, *arguments: Any, **options: Any) -> Any:
        with self._timer.part("communication"):
            return self._work.wait(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _bytes_of(arguments: list[Any]) -> int:
    """Of the largest tensor, or list of tensors, of a call."""
    return max((_size(argument) for argument in arguments), default=0)


def _size(argument: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(argument))


def _tensors(argument: Any) -> Iterator[torch.Tensor]:
    if isinstance(argument, torch.Tensor):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for part in argument:
            yield from _tensors(part)
