"""Batches in one flat piece of memory, in which they travel between processes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.objectives.batch import Batch, BatchPart

_ALIGNMENT_BYTES = 16
_ARRAYS = tuple(field.name for field in fields(Batch) if field.name != "part")
Layout = list[tuple[int, str, str, tuple[int, ...], int]]


Placed = list[tuple[int, npt.NDArray[Any]]]


def laid_out(batches: list[Batch]) -> tuple[Layout, Placed, int]:
    """Where all arrays of batches lie in one piece of memory, and how long it is."""
    layout: Layout = []
    # By identity: a decoder's labels are its inputs, and travel once.
    starts: dict[int, int] = {}
    arrays: Placed = []
    size_bytes = 0
    for number, batch in enumerate(batches):
        for name in _ARRAYS:
            array = getattr(batch, name)
            if array is None:
                continue
            if id(array) not in starts:
                starts[id(array)] = size_bytes
                arrays.append((size_bytes, array))
                size_bytes += -(-array.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            layout.append((number, name, array.dtype.str, array.shape, starts[id(array)]))
    return layout, arrays, size_bytes


def fill(memory: npt.NDArray[np.uint8], arrays: Placed) -> None:
    """Puts arrays into their places."""
    for start, array in arrays:
        place = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        place[...] = array


def unpacked(
    memory: npt.NDArray[np.uint8], layout: Layout, parts: list[BatchPart | None]
) -> list[Batch]:
    """The batches again, as views of the memory."""
    values: dict[int, dict[str, Any]] = {}
    for number, name, kind, shape, start in layout:
        dtype = np.dtype(kind)
        size_bytes = dtype.itemsize * int(np.prod(shape))
        array = memory[start : start + size_bytes].view(dtype).reshape(shape)
        values.setdefault(number, dict.fromkeys(_ARRAYS))[name] = array
    return [Batch(**values[number], part=part) for number, part in enumerate(parts)]
