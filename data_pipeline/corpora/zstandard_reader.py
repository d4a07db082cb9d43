"""Reading a `.zst` stream in bounded memory, noticing where it is cut off."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

# A block of 128 KiB may be as short as four bytes: so many at a time give 128 MiB at the very most.
_READ_BYTES = 2**12


class ZstandardReader(io.RawIOBase):
    """The unpacked bytes of one or several zstandard frames in a row.

    The reader of the `zstandard` package takes the end of a cut file for the end of its content.
    """

    def __init__(self, stream: BinaryIO) -> None:
        """Reads nothing yet.

        Args:
            stream: The packed file, at its beginning.
        """
        import zstandard

        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._damage = zstandard.ZstdError
        self._stream = stream
        self._frame: Any = None
        self._packed = b""
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the beginning of `buffer`.

        Returns:
            How many bytes; 0 at the end.

        Raises:
            EOFError: If the file is cut off or damaged.
        """
        while not self._unpacked:
            self._packed = self._packed or self._stream.read(_READ_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it is cut off")
                return 0
            self._unpack()
        size_bytes = min(len(buffer), len(self._unpacked))
        buffer[:size_bytes] = self._unpacked[:size_bytes]
        self._unpacked = self._unpacked[size_bytes:]
        return size_bytes

    def _unpack(self) -> None:
        self._frame = self._frame or self._new_frame()
        packed, self._packed = self._packed, b""
        try:
            self._unpacked = memoryview(self._frame.decompress(packed))
        except self._damage as error:
            raise EOFError(str(error)) from error
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
