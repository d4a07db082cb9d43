"""Tars as others make them, sound and hostile, byte by byte where no tool would write them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

BLOCK_BYTES = 512


def header(
    name: bytes = b"a.txt",
    size: bytes = b"00000000005\0",
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    link: bytes = b"",
) -> bytes:
    """One header with a right checksum."""
    fields = [
        name.ljust(100, b"\0"),
        b"0000644\0" * 3,
        size.ljust(12, b"\0"),
        b"00000000000\0",
        b" " * 8,
        kind,
        link.ljust(100, b"\0"),
        magic,
        bytes(32 + 32 + 8 + 8),
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = b"".join(fields)
    assert len(block) == BLOCK_BYTES, len(block)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, b"%011o\0" % len(data), kind) + padded(data)


def pax(records: dict[str, str], kind: bytes = b"x") -> bytes:
    """An extended header."""
    data = b""
    for key, value in records.items():
        body = f" {key}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        data += str(length).encode() + body
    return header(b"x", b"%011o\0" % len(data), kind) + padded(data)


END = bytes(2 * BLOCK_BYTES)


def write_tar(path: Path, members: dict[str, bytes], tar_format: int) -> Path:
    """A tar written by Python's tarfile."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1234567.5 if tar_format == tarfile.PAX_FORMAT else 1234567
            tar.addfile(info, io.BytesIO(data))
    return path


def hostile_tars() -> dict[str, bytes]:
    """Tars that must be refused, by what is wrong with them."""
    good = member(b"a.txt", b"hello")
    return {
        "symbolic link": good + header(b"l.txt", b"0\0", b"2", link=b"/etc/passwd") + END,
        "hard link": good + header(b"l.txt", b"0\0", b"1", link=b"a.txt") + END,
        "character device": header(b"d.txt", b"0\0", b"3") + END,
        "block device": header(b"d.txt", b"0\0", b"4") + END,
        "named pipe": header(b"d.txt", b"0\0", b"6") + END,
        "sparse file": header(b"d.txt", b"0\0", b"S") + END,
        "unknown type": header(b"d.txt", b"0\0", b"\xff") + END,
        "absolute name": member(b"/etc/evil.txt", b"x") + END,
        "name with dots": member(b"../../evil.txt", b"x") + END,
        "name with dots inside": member(b"a/../../evil.txt", b"x") + END,
        "folder with dots": header(b"../", b"0\0", b"5") + END,
        "folder with a content": header(b"f/", b"00000001000\0", b"5") + good * 2 + END,
        "two long names": member(b"n", b"x\0", b"L") + pax({"path": "y"}) + good + END,
        "prefix with dots": header(b"evil.txt", b"0\0", prefix=b"..") + END,
        "pax name with dots": pax({"path": "../evil.txt"}) + good + END,
        "pax absolute name": pax({"path": "/evil.txt"}) + good + END,
        "gnu name with dots": member(b"././@LongLink", b"../evil.txt\0", b"L") + good + END,
        "empty name": member(b"", b"x") + END,
        "pax name of all": pax({"path": "x.txt"}, b"g") + good + END,
        "pax size of all": pax({"size": "0"}, b"g") + good + END,
        "pax sparse": pax({"GNU.sparse.major": "1"}) + good + END,
        "pax size absurd": pax({"size": "9" * 30}) + good + END,
        "pax size beyond the end": pax({"size": str(2**62)}) + good + END,
        "pax size negative": pax({"size": "-1"}) + good + END,
        "pax record damaged": header(b"x", b"00000000005\0", b"x") + padded(b"99 a=") + good + END,
        "pax record of length zero": header(b"x", b"6\0", b"x") + padded(b"0 a=b\n") + good + END,
        "pax without end": header(b"x", b"77777777777\0", b"x") + END,
        "pax of a gigabyte": header(b"x", b"%011o\0" % 2**30, b"x") + bytes(2**20) + END,
        "pax twice": pax({"a": "b"}) * 2 + good + END,
        "long name twice": member(b"n", b"x\0", b"L") * 2 + good + END,
        "size beyond the end": header(b"a.txt", b"77777777777\0") + END,
        "binary size beyond the end": header(b"a.txt", b"\x80" + b"\xff" * 11) + END,
        "binary size negative": header(b"a.txt", b"\xff" * 12) + END,
        "size no number": header(b"a.txt", b"0x000000000\0") + END,
        "size with digits nine": header(b"a.txt", b"99999999999\0") + END,
        "checksum wrong": good[:100] + b"\1" + good[101:] + END,
        "cut at an edge": good,
        "cut within": good[:-100],
        "cut within a header": good + good[:300],
        "something behind the end": good + END + good + END,
        "page of zeros within": good + bytes(4096) + good + END,
        "empty file": b"",
        "gzip": b"\x1f\x8b\x08\x00" + bytes(2000),
        "the same text twice": good + good + END,
    }
