"""Memory for batches that is used again once nobody holds it."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

# Of one piece of memory that only the pool holds: by the deque, by a name here, as an argument.
_REFERENCES_WHEN_FREE = 3
_MOST_PIECES = 128


class RecycledMemory:
    """Hands out arrays whose memory was touched before.

    The system clears fresh memory page by page as it is touched, which costs more than reading a
    batch into it. A piece is handed out again only when no array that looks into it is left,
    wherever it was passed on to, so whoever keeps a batch keeps its memory.
    """

    def __init__(self) -> None:
        self._pieces: deque[npt.NDArray[np.uint8]] = deque()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """An array of any content.

        Args:
            shape: Of the array.
            dtype: Of its elements.
        """
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        piece = self._take(size_bytes)
        array: npt.NDArray[Any] = piece[:size_bytes].view(dtype).reshape(shape)
        return array

    def _take(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        # Batches are mostly dropped in the order in which they were made: the oldest is free first.
        if self._pieces:
            piece = self._pieces.popleft()
            self._pieces.append(piece)
            is_free = sys.getrefcount(piece) == _REFERENCES_WHEN_FREE
            if is_free and size_bytes <= len(piece) <= 2 * size_bytes:
                return piece
            if is_free or len(self._pieces) >= _MOST_PIECES:
                self._pieces.pop()
        piece = np.empty(size_bytes, dtype=np.uint8)
        self._pieces.append(piece)
        return piece
