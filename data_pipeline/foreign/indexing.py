"""An index beside each webdataset tar that others made; the tars stay as they are.

What is written follows from the tar, the tokenizer and the options alone, so a run that was
interrupted is simply started again: indexes that still fit are kept.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.files import canonical_json, explaining, write_atomically
from data_pipeline.foreign.index import FORMAT_VERSION, MAGIC, TextIndex
from data_pipeline.foreign.tars import Member, scan_tar
from data_pipeline.foreign.text_member import MAXIMUM_TEXT_BYTES, TextMember, UnusableText
from data_pipeline.progress import Progress, ProgressCallback
from data_pipeline.remote.locations import check_plain_file
from data_pipeline.shards.manifest import ShardInfo
from data_pipeline.shards.shard_index import index_checksum
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

_READ_BYTES = 2**20
_BATCH_BYTES = 2**18
_TOLD_BYTES = 2**23
_NAMED_TEXTS = 3
_NAMED_SUFFIXES = 20
_OTHER_SUFFIXES = "(others)"

Advance = Callable[[int], None]


@dataclass
class TarFacts:
    """What was found in a tar.

    Attributes:
        info: The tar as the manifest knows it; None where no text of it can be used.
        passed_over: Members of other kinds, by suffix.
        left_out: Text members without a usable text, by reason.
        left_out_names: The first of those.
    """

    info: ShardInfo | None = None
    passed_over: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    left_out_names: list[str] = field(default_factory=list)

    def pass_over(self, name: str) -> None:
        """Counts a member of another kind; kinds beyond a few are counted together."""
        suffix = name.rpartition("/")[2].partition(".")[2][:40] or "(none)"
        if suffix not in self.passed_over and len(self.passed_over) >= _NAMED_SUFFIXES:
            suffix = _OTHER_SUFFIXES
        self.passed_over[suffix] += 1

    def leave_out(self, reason: str, file: str, name: str) -> None:
        """Counts a text that cannot be used."""
        self.left_out[reason] += 1
        if len(self.left_out_names) < _NAMED_TEXTS:
            self.left_out_names.append(f"{file}: {name[:200]} ({reason})")


@dataclass(frozen=True)
class _Job:
    folder: Path
    tokenizer: Path
    member: TextMember


def index_tars(
    folder: Path,
    tokenizer: Path,
    member: TextMember,
    *,
    processes: int = 1,
    progress: ProgressCallback | None = None,
) -> list[TarFacts]:
    """Writes an index beside every tar of a folder.

    Args:
        folder: With the tars; nothing but indexes is written.
        tokenizer: Folder of the tokenizer.
        member: Where texts are.
        processes: Tars worked on at the same time; what is written does not depend on it.
        progress: Told of the bytes of the tars.

    Returns:
        What was found in each tar, in the order of their names.

    Raises:
        DataError: If there is no tar, one is damaged or refused (indexes of others are kept), or
            an index cannot be written.
    """
    if processes < 1:
        raise DataError(f"processes must be at least 1, not {processes}")
    files = _tar_files(folder)
    sizes_bytes = [(folder / file).stat().st_size for file in files]
    done_bytes = 0

    def advance(size_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += size_bytes
        if progress is not None:
            progress(Progress("index tars", done_bytes, sum(sizes_bytes), "bytes"))

    job = _Job(folder, tokenizer, member)
    if processes == 1 or len(files) == 1:
        loaded = DocumentTokenizer.load(tokenizer)
        return [index_tar(folder / file, loaded, member, advance) for file in files]
    # Spawned, since a fork would share whatever threads the caller runs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(processes, len(files)), context, initializer=_start_worker, initargs=(job,)
    ) as pool:
        facts = []
        try:
            for size_bytes, found in zip(sizes_bytes, pool.map(_work, files), strict=True):
                facts.append(found)
                advance(size_bytes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return facts


_WORKER: tuple[_Job, DocumentTokenizer] | None = None


def _start_worker(job: _Job) -> None:
    global _WORKER
    _WORKER = (job, DocumentTokenizer.load(job.tokenizer))


def _work(file: str) -> TarFacts:
    assert _WORKER is not None
    job, tokenizer = _WORKER
    return index_tar(job.folder / file, tokenizer, job.member, lambda _: None)


def _tar_files(folder: Path) -> list[str]:
    with explaining("read", folder):
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".tar")
    if not names:
        raise DataError(
            f"{folder} holds no file that ends with .tar: name a folder of uncompressed webdataset "
            "tars"
        )
    for name in names:
        try:
            check_plain_file(name)
        except DataError as error:
            raise DataError(f"{folder}: {error}; rename it") from error
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is no ordinary file; remove it")
    return names


def index_tar(
    tar: Path, tokenizer: DocumentTokenizer, member: TextMember, advance: Advance
) -> TarFacts:
    """Indexes one tar and writes the index beside it, unless the one there still fits.

    Raises:
        DataError: If the tar is damaged or refused, or another program's file is in the place of
            the index.
    """
    options = _options_fingerprint(tokenizer, member)
    path = tar.with_suffix(".idx")
    known = _known_index(path, tar, options)
    facts, columns = TarFacts(), _Columns(tokenizer, with_lengths=known is None)
    with explaining("read", tar), tar.open("rb", buffering=0) as file:
        source = _Source(file, advance)
        try:
            for entry in scan_tar(source, tar.stat().st_size, _is_wanted(member)):
                _take(entry, member, facts, columns, tar.name)
        except DataError as error:
            raise DataError(f"{tar}: {error}") from error
    index = columns.finish(source, options)
    if known is not None:
        if not _are_alike(known, index):
            # It is of another content of this name.
            path.unlink()
            return index_tar(tar, tokenizer, member, lambda _: None)
        index = known
    if index.documents == 0:
        return facts
    data = index.to_bytes()
    if known is None:
        write_atomically(path, data)
    facts.info = ShardInfo(
        file=tar.name,
        size_bytes=index.tar_bytes,
        documents=index.documents,
        tokens=index.tokens,
        checksum=index.tar_checksum,
        index_checksum=index_checksum(data),
    )
    return facts


def _is_wanted(member: TextMember) -> Callable[[str, int], bool]:
    def is_wanted(name: str, size_bytes: int) -> bool:
        return size_bytes <= MAXIMUM_TEXT_BYTES and member.key_of(name) is not None

    return is_wanted


def _take(entry: Member, member: TextMember, facts: TarFacts, columns: _Columns, file: str) -> None:
    """Puts one member of the tar to where it belongs."""
    key = member.key_of(entry.name)
    if key is None:
        facts.pass_over(entry.name)
        return
    if key == columns.last_key:
        raise DataError(
            f"two members in a row are the .{member.suffix} of sample {key!r}: webdataset reads "
            "no such tar; make it anew"
        )
    columns.last_key = key
    if entry.content is None:
        facts.leave_out(f"longer than {MAXIMUM_TEXT_BYTES} bytes", file, entry.name)
        return
    try:
        text = member.text_of(entry.content)
    except UnusableText as error:
        facts.leave_out(str(error), file, entry.name)
        return
    columns.add(entry, text)


class _Columns:
    """Collects the columns of an index; texts are tokenized several at a time."""

    def __init__(self, tokenizer: DocumentTokenizer, *, with_lengths: bool) -> None:
        self._tokenizer = tokenizer
        self._with_lengths = with_lengths
        self._rows: list[tuple[int, int, int]] = []
        self._lengths_tokens: list[int] = []
        self._texts: list[str] = []
        self._texts_bytes = 0
        self.last_key: str | None = None

    def add(self, entry: Member, text: str) -> None:
        assert entry.content is not None
        checksum = xxhash.xxh3_64_intdigest(entry.content)
        self._rows.append((entry.offset_bytes, entry.size_bytes, checksum))
        if self._with_lengths:
            self._texts.append(text)
            self._texts_bytes += entry.size_bytes
            if self._texts_bytes >= _BATCH_BYTES:
                self._tokenize()

    def _tokenize(self) -> None:
        encoded = self._tokenizer.encode_documents(self._texts)
        self._lengths_tokens += [len(ids) for ids in encoded]
        self._texts, self._texts_bytes = [], 0

    def finish(self, source: _Source, options: str) -> TextIndex:
        self._tokenize()
        columns = np.array(self._rows, dtype="<u8").reshape(len(self._rows), 3).T
        return TextIndex(
            tar_bytes=source.size_bytes,
            tar_checksum=source.checksum,
            options_fingerprint=options,
            offsets_bytes=columns[0],
            sizes_bytes=columns[1],
            lengths_tokens=np.array(self._lengths_tokens, dtype="<u8"),
            checksums=columns[2],
        )


class _Source:
    """A tar of which every byte read goes into a checksum."""

    def __init__(self, file: BinaryIO, advance: Advance) -> None:
        self._parts = _pieces(file)
        self._left = memoryview(b"")
        self._hasher = xxhash.xxh3_128()
        self._advance = advance
        self._untold_bytes = 0
        self.size_bytes = 0

    @property
    def checksum(self) -> str:
        """xxh3_128 of all that was read, in hex."""
        return self._hasher.hexdigest()

    def read(self, size_bytes: int) -> bytes:
        if len(self._left) >= size_bytes:
            data, self._left = self._left[:size_bytes], self._left[size_bytes:]
            return bytes(data)
        parts = []
        while size_bytes > 0 and (self._left or self._next()):
            part = self._left[:size_bytes]
            self._left = self._left[len(part) :]
            parts.append(part)
            size_bytes -= len(part)
        return b"".join(parts)

    def skip(self, size_bytes: int) -> None:
        while size_bytes > 0 and (self._left or self._next()):
            passed_bytes = min(size_bytes, len(self._left))
            self._left = self._left[passed_bytes:]
            size_bytes -= passed_bytes

    def _next(self) -> bool:
        piece = next(self._parts, b"")
        self._left = memoryview(piece)
        self._hasher.update(piece)
        self.size_bytes += len(piece)
        self._untold_bytes += len(piece)
        if self._untold_bytes >= _TOLD_BYTES or not piece:
            self._advance(self._untold_bytes)
            self._untold_bytes = 0
        return bool(piece)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(_READ_BYTES):
        yield data


def _options_fingerprint(tokenizer: DocumentTokenizer, member: TextMember) -> str:
    """Stands for everything but the tar that an index depends on."""
    options = [FORMAT_VERSION, tokenizer.fingerprint, member.suffix, member.field]
    return xxhash.xxh3_128_hexdigest(canonical_json(options))


def _known_index(path: Path, tar: Path, options: str) -> TextIndex | None:
    """The index an earlier run has left, where it may still fit."""
    if not path.exists():
        return None
    with explaining("read", path):
        data = path.read_bytes()
    if not data.startswith(MAGIC):
        raise DataError(
            f"{path} is in the way and was not written by this command; move it elsewhere"
        )
    try:
        index = TextIndex.from_bytes(data)
    except DataError:
        return None
    fits = index.options_fingerprint == options and index.tar_bytes == tar.stat().st_size
    return index if fits else None


def _are_alike(known: TextIndex, found: TextIndex) -> bool:
    """Whether two indexes are of the same tar; lengths in ids are not compared."""
    return known.tar_checksum == found.tar_checksum and all(
        np.array_equal(getattr(known, column), getattr(found, column))
        for column in ("offsets_bytes", "sizes_bytes", "checksums")
    )
