"""What a mixer computes from its parameters alone, kept while they cannot have changed."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_KEPT_PER_KIND = 2
"""Lengths whose results are kept at the same time: that of training and that of evaluation."""


class KernelCache:
    """Results that depend on some tensors, a few of each kind, dropped when a tensor changes.

    A tensor counts as unchanged while it is the same object with the same memory, version, type
    and device. Writing to ``tensor.data`` shows in none of them, so the owner also calls `clear`
    whenever that may have happened. A copy or a pickle of a cache is empty.
    """

    def __init__(self) -> None:
        self.clear()

    def __reduce__(self) -> tuple[type[KernelCache], tuple[()]]:
        return KernelCache, ()

    def clear(self) -> None:
        """Forget everything."""
        self._references: tuple[weakref.ref[Tensor], ...] = ()
        self._facts: tuple[Hashable, ...] = ()
        self._kinds: dict[str, OrderedDict[Hashable, Any]] = {}

    def get(
        self, kind: str, key: Hashable, tensors: Sequence[Tensor], compute: Callable[[], T]
    ) -> T:
        """Return the kept result, or compute it without gradients and keep it.

        Args:
            kind: Name of the function.
            key: Its argument.
            tensors: What else it depends on; the same at every call.
            compute: The function.
        """
        facts = tuple((x._version, x.data_ptr(), x.dtype, x.device) for x in tensors)
        same = len(self._references) == len(tensors) and all(
            reference() is x for reference, x in zip(self._references, tensors, strict=True)
        )
        if not same or facts != self._facts:
            self.clear()
            self._references = tuple(weakref.ref(x) for x in tensors)
            self._facts = facts
        results = self._kinds.setdefault(kind, OrderedDict())
        if key in results:
            results.move_to_end(key)
            kept: T = results[key]
            return kept
        # A result of inference mode could not serve a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            result = compute()
        # The computation may itself have filled this kind or, through a reload, cleared all.
        results = self._kinds.setdefault(kind, OrderedDict())
        results[key] = result
        while len(results) > _KEPT_PER_KIND:
            results.popitem(last=False)
        return result
