"""A bounded reader of tars that others made: it names members, and refuses what could do harm.

Read are ordinary files under ustar, GNU and PAX headers, long names included. Everything else that
a tar can hold either ends the reading with an error (links, devices, sparse files, names that lead
out of a folder, sizes beyond the file, bytes behind the end) or is passed over (folders). Nothing
is ever written, followed or decompressed, and no header makes the reader allocate more than
`MAXIMUM_EXTENSION_BYTES`.

A tar must end with an empty block: one that just stops has lost its end, which `tarfile` and
`webdataset` do not tell from a complete one.

Source of the layouts: POSIX.1-2001 (ustar and pax), and the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from data_pipeline.errors import DataError
from data_pipeline.shards.tar_format import BLOCK_BYTES

# Names and times of a member; what makers of tars put there is a few hundred bytes.
MAXIMUM_EXTENSION_BYTES = 2**16
MAXIMUM_NAME_BYTES = 4096
MAXIMUM_MEMBERS = 2**24

_TAIL_BYTES = 2**20
_EMPTY = bytes(BLOCK_BYTES)
_REGULAR = (b"0", b"\0", b"7")
_FOLDER = b"5"
_EXTENSIONS = {b"x": "x", b"g": "g", b"L": "L"}
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"K": "a link with a long name",
}


class Source(Protocol):
    """Where a tar's bytes come from, in order."""

    def read(self, size_bytes: int) -> bytes:
        """The next bytes; fewer only at the end."""

    def skip(self, size_bytes: int) -> None:
        """Passes bytes over, of which the tar's length says that they are there."""


class FileSource:
    """A tar in a file, of which only what is wanted is read."""

    def __init__(self, file: BinaryIO) -> None:
        """Begins where the file stands."""
        self._file = file

    def read(self, size_bytes: int) -> bytes:
        """See `Source.read`."""
        parts = []
        while size_bytes > 0 and (part := self._file.read(size_bytes)):
            parts.append(part)
            size_bytes -= len(part)
        return b"".join(parts)

    def skip(self, size_bytes: int) -> None:
        """See `Source.skip`."""
        self._file.seek(size_bytes, os.SEEK_CUR)


@dataclass(frozen=True)
class Member:
    """An ordinary file in a tar.

    Attributes:
        name: Its name, safe to show and free of steps out of a folder.
        offset_bytes: Where its content begins in the tar.
        size_bytes: Length of its content.
        content: The content where it was wanted, else None.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    content: bytes | None


def scan_tar(
    source: Source, tar_bytes: int, is_wanted: Callable[[str, int], bool]
) -> Iterator[Member]:
    """Reads a tar from its beginning.

    Args:
        source: The tar.
        tar_bytes: Its length; no member is believed to reach beyond.
        is_wanted: Tells from name and size in bytes whether a member's content is read.

    Yields:
        The ordinary files in order.

    Raises:
        DataError: At the first thing that is refused or damaged, naming its place; the caller adds
            the file's name.
    """
    reader = _Reader(source, tar_bytes)
    members = 0
    while (header := reader.read(BLOCK_BYTES)) != _EMPTY:
        place = f"member {members + 1} (at byte {reader.position_bytes - len(header)})"
        extensions: dict[str, bytes] = {}
        while True:
            _check_header(header, place)
            kind = header[156:157]
            if kind not in _EXTENSIONS:
                break
            _take_extension(reader, header, extensions, place)
            header = reader.read(BLOCK_BYTES)
        name, size_bytes = _name_and_size(header, extensions, place)
        members += 1
        if members > MAXIMUM_MEMBERS:
            raise DataError(f"it has more than {MAXIMUM_MEMBERS} members; split it")
        # The oldest tars write a folder as a file whose name ends with a slash.
        if kind == _FOLDER or (kind == b"\0" and name.endswith("/")):
            # Readers do not agree whether such a content is passed over.
            if size_bytes:
                raise DataError(f"{place} {name!r} is a folder with a content; make the tar anew")
            continue
        if kind not in _REGULAR:
            what = _KINDS.get(
                kind, f"a member of type {kind.decode('ascii', 'backslashreplace')!r}"
            )
            raise DataError(f"{place} {name!r} is {what}; make the tar of ordinary files alone")
        offset_bytes = reader.position_bytes
        reader.check_left(_padded(size_bytes), place)
        if is_wanted(name, size_bytes):
            content = reader.read(size_bytes)
            reader.pass_over(_padded(size_bytes) - size_bytes, place)
        else:
            content = None
            reader.pass_over(_padded(size_bytes), place)
        yield Member(name, offset_bytes, size_bytes, content)
    reader.check_nothing_follows()


class _Reader:
    """Keeps count of the bytes of a source."""

    def __init__(self, source: Source, tar_bytes: int) -> None:
        self._source = source
        self._tar_bytes = tar_bytes
        self.position_bytes = 0

    def read(self, size_bytes: int) -> bytes:
        data = self._source.read(size_bytes)
        self.position_bytes += len(data)
        if len(data) < size_bytes:
            raise DataError(
                f"it ends at byte {self.position_bytes} without the mark of an end: it is cut off"
            )
        return data

    def check_left(self, size_bytes: int, place: str) -> None:
        left_bytes = self._tar_bytes - self.position_bytes
        if size_bytes > left_bytes:
            raise DataError(
                f"{place} claims {size_bytes} bytes where {left_bytes} are left: it is cut off or "
                "damaged"
            )

    def pass_over(self, size_bytes: int, place: str) -> None:
        self.check_left(size_bytes, place)
        self._source.skip(size_bytes)
        self.position_bytes += size_bytes

    def check_nothing_follows(self) -> None:
        while data := self._source.read(_TAIL_BYTES):
            if data.count(0) != len(data):
                raise DataError(
                    f"something follows behind its end (at byte {self.position_bytes}): it is "
                    "damaged, or two tars were joined; make it anew"
                )
            self.position_bytes += len(data)


def _padded(size_bytes: int) -> int:
    return size_bytes + -size_bytes % BLOCK_BYTES


def _check_header(header: bytes, place: str) -> None:
    blank = header[:148] + b" " * 8 + header[156:]
    # Some old makers summed signed bytes.
    sums = (sum(blank), sum(blank) - 256 * sum(byte > 127 for byte in blank))
    if _number(header[148:156], place) not in sums:
        raise DataError(f"{place}: its header is damaged, or this is no uncompressed tar")


def _number(field: bytes, place: str) -> int:
    """A number of a header: octal digits, or GNU's binary form."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise DataError(f"{place}: its header holds {digits!r} where a number must stand")
    return int(digits, 8)


def _take_extension(
    reader: _Reader, header: bytes, extensions: dict[str, bytes], place: str
) -> None:
    """Reads what a header says of the following one."""
    kind = _EXTENSIONS[header[156:157]]
    size_bytes = _number(header[124:136], place)
    if kind in extensions or size_bytes > MAXIMUM_EXTENSION_BYTES:
        raise DataError(
            f"{place} has extended headers beyond all measure ({size_bytes} bytes of type "
            f"{kind!r}); make the tar anew without them"
        )
    reader.check_left(_padded(size_bytes), place)
    extensions[kind] = reader.read(_padded(size_bytes))[:size_bytes]


def _name_and_size(header: bytes, extensions: dict[str, bytes], place: str) -> tuple[str, int]:
    name = header[:100].partition(b"\0")[0]
    # Only where the magic is that of ustar is the rest a prefix; GNU keeps times there.
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    size_bytes = _number(header[124:136], place)
    if "L" in extensions:
        name = extensions["L"].partition(b"\0")[0]
    if _pax_records(extensions.get("g", b""), place).keys() & {b"path", b"size", b"linkpath"}:
        raise DataError(f"{place} gives one name or size to all members; make the tar anew")
    records = _pax_records(extensions.get("x", b""), place)
    if b"path" in records and "L" in extensions:
        raise DataError(f"{place} has two long names; make the tar anew")
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise DataError(f"{place} is a sparse file; make the tar of ordinary files alone")
    name = records.get(b"path", name)
    if b"size" in records:
        if not records[b"size"].isdigit() or len(records[b"size"]) > 20:
            raise DataError(f"{place}: its extended header holds no size")
        size_bytes = int(records[b"size"])
    return _checked_name(name, place), size_bytes


def _pax_records(data: bytes, place: str) -> dict[bytes, bytes]:
    """Records of an extended header: LENGTH KEY=VALUE and a line end."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        length_text, space, _ = data[position : position + 8].partition(b" ")
        length = int(length_text) if space and length_text.isdigit() else 0
        record = data[position : position + length]
        key, equals, value = record[len(length_text) + 1 : -1].partition(b"=")
        if length < 5 or len(record) < length or record[-1:] != b"\n" or not equals:
            raise DataError(f"{place}: its extended header is damaged")
        records[key] = value
        position += length
    return records


def _checked_name(name: bytes, place: str) -> str:
    shown = name[:100].decode("utf-8", "backslashreplace")
    if not name or b"\0" in name or len(name) > MAXIMUM_NAME_BYTES:
        raise DataError(f"{place}: its name is empty or absurd ({shown!r}); make the tar anew")
    if name.startswith(b"/") or b".." in name.split(b"/"):
        raise DataError(f"{place}: its name {shown!r} leads out of the tar; make the tar anew")
    return name.decode("utf-8", "backslashreplace")
