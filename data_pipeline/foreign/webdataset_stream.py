"""Streaming texts out of webdataset tars through `webdataset`, tokenized on the way, with resume.

For tars as they are, read from front to back. `webdataset` unpacks them; it gets open files, never
names, so that nothing of it that runs programs is reached, and none of its decoders is used. Each
tar is looked through by our own reader first, header by header, since `webdataset` takes many a
damaged tar for a short one. Where "spade data index" has been run, every text is compared with its
checksum, too, and the tars may lie behind a URL.

Tars are dealt out to readers in an order that is shuffled anew in every epoch; texts stay in the
order of their tar. Whoever needs any number of readers on resume, mixing, or windows of one length
reads the indexed data set by `stream` instead.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import xxhash

from data_pipeline.errors import DamageError, DataError
from data_pipeline.files import canonical_json, explaining
from data_pipeline.foreign.index import TextIndex
from data_pipeline.foreign.tars import FileSource, scan_tar
from data_pipeline.foreign.text_member import MAXIMUM_TEXT_BYTES, TextMember, UnusableText
from data_pipeline.foreign.text_shards import load_text_index
from data_pipeline.permutation import derive_keys, permute
from data_pipeline.remote.dataset_folder import (
    CacheSettings,
    DatasetFolder,
    LocalFolder,
    open_dataset_folder,
)
from data_pipeline.remote.locations import check_plain_file
from data_pipeline.shards.manifest import MANIFEST_FILE, Manifest, ShardInfo
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

STATE_VERSION = 1

_PURPOSE_ORDER_1 = 0x5C01
_TARS_AHEAD = 2
_BATCH_CHARACTERS = 2**18


@dataclass(frozen=True, eq=False)
class StreamedText:
    """One text.

    Attributes:
        file: Name of its tar.
        key: Its key in the tar; never to be used as a path.
        tokens: [tokens] of the tokenizer's type, the end-of-sequence id last.
    """

    file: str
    key: str
    tokens: npt.NDArray[Any]


@dataclass(frozen=True)
class ReaderPlace:
    """Which reader this is of all that share the tars.

    Attributes:
        rank: This process among those that see different data.
        world_size: How many of those there are.
        worker: This worker of the process.
        num_workers: How many of those there are.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.worker < self.num_workers):
            raise DataError(
                f"reader of rank {self.rank} of {self.world_size} and worker {self.worker} of "
                f"{self.num_workers} cannot be"
            )

    @property
    def number(self) -> int:
        """Number of this reader."""
        return self.rank * self.num_workers + self.worker

    @property
    def readers(self) -> int:
        """Number of all readers."""
        return self.world_size * self.num_workers


class WebdatasetStream:
    """Texts of tars, without end or for some epochs; each iterator goes on where the last stopped.

    Attributes:
        left_out: Texts without a usable text that this object has passed over, by reason.
    """

    def __init__(
        self,
        location: Path | str,
        tokenizer: DocumentTokenizer,
        member: TextMember | None = None,
        *,
        seed: int,
        place: ReaderPlace | None = None,
        epochs: int | None = None,
        cache: CacheSettings | None = None,
    ) -> None:
        """Finds out what tars there are; none is opened yet.

        Args:
            location: Folder of tars, or folder or URL of a data set made by "spade data index".
            tokenizer: Makes ids of the texts.
            member: Where texts are; by default what the manifest says, or members `KEY.txt`.
            seed: Chooses the order of the tars.
            place: Which reader this is; by default the only one.
            epochs: Passes over all tars; None for no end.
            cache: Of tars behind a URL.

        Raises:
            DataError: If there is no tar, or manifest and arguments contradict each other.
        """
        self._folder: DatasetFolder = open_dataset_folder(location, cache)
        self._has_index = self._folder.exists(MANIFEST_FILE)
        if self._has_index:
            manifest = Manifest.load(self._folder)
            self._member = _member_of(manifest, member, tokenizer, self._folder.name)
            self._tars = manifest.shards
        else:
            self._member = member or TextMember()
            self._tars = _list_tars(self._folder)
        self._tokenizer = tokenizer
        self._seed = seed
        self._place = place or ReaderPlace()
        self._epochs = epochs
        # Tars are numbered through all epochs; this reader's are those of its number.
        self._turn = self._place.number
        self._consumed = 0
        self.left_out: Counter[str] = Counter()
        derive_keys(seed, _PURPOSE_ORDER_1)

    def state_dict(self) -> dict[str, Any]:
        """Where this reader stands behind the text handed out last: JSON, some hundred bytes."""
        epoch, position = divmod(self._turn, len(self._tars))
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "shard": position,
            "samples": self._consumed,
            "fingerprint": self._fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            DataError: If it was taken of other tars, options, or another reader.
        """
        numbers = [state.get(name) for name in ("epoch", "shard", "samples")]
        if state.get("version") != STATE_VERSION or not all(
            type(number) is int and number >= 0 for number in numbers
        ):
            raise DataError(f"the state of the stream of {self._folder.name} is none of this kind")
        epoch, position, samples = (int(str(number)) for number in numbers)
        turn = epoch * len(self._tars) + position
        if (
            state.get("fingerprint") != self._fingerprint()
            or position >= len(self._tars)
            or turn % self._place.readers != self._place.number
        ):
            raise DataError(
                f"the state was taken of other tars, options or readers than those of "
                f"{self._folder.name}: resume with the same tars, tokenizer, seed, rank, workers "
                'and their numbers, or index the tars with "spade data index", which resumes with '
                "any"
            )
        self._turn, self._consumed = turn, samples

    def __iter__(self) -> Iterator[StreamedText]:
        while not self._is_at_end():
            info = self._tar_of(self._turn)
            ahead = [self._turn + n * self._place.readers for n in range(1, _TARS_AHEAD + 1)]
            if self._has_index:
                self._folder.prefetch([self._tar_of(turn) for turn in ahead])
            for text in self._undamaged(info):
                self._consumed += 1
                if text is not None:
                    yield text
            self._turn += self._place.readers
            self._consumed = 0

    def close(self) -> None:
        """Ends background work."""
        self._folder.close()

    def _is_at_end(self) -> bool:
        return self._epochs is not None and self._turn >= self._epochs * len(self._tars)

    def _tar_of(self, turn: int) -> ShardInfo:
        epoch, position = divmod(turn, len(self._tars))
        keys = derive_keys(self._seed, _PURPOSE_ORDER_1, epoch)
        return self._tars[int(permute(position, len(self._tars), keys)[0])]

    def _fingerprint(self) -> str:
        tars = [[tar.file, tar.size_bytes, tar.checksum] for tar in self._tars]
        options = [self._member.suffix, self._member.field, self._tokenizer.fingerprint]
        readers = [self._seed, self._place.number, self._place.readers]
        return xxhash.xxh3_128_hexdigest(canonical_json([tars, options, readers]))

    def _undamaged(self, info: ShardInfo) -> Iterator[StreamedText | None]:
        """As `_tokenized`; a tar behind a URL whose cached copy is damaged is fetched once more."""
        try:
            yield from self._tokenized(info)
            return
        except DamageError:
            descriptor = self._folder.refetch_shard(info) if self._has_index else None
            if descriptor is None:
                raise
        os.close(descriptor)
        yield from self._tokenized(info)

    def _tokenized(self, info: ShardInfo) -> Iterator[StreamedText | None]:
        """Texts of one tar behind those consumed already; None for one that cannot be used.

        Several are tokenized at a time, which is faster; consumed are those handed out.
        """
        batch: list[tuple[str, str | None]] = []
        characters = 0
        for key, text in self._read_tar(info):
            batch.append((key, text))
            characters += len(text or "")
            if characters >= _BATCH_CHARACTERS:
                yield from self._encoded(info, batch)
                batch, characters = [], 0
        yield from self._encoded(info, batch)

    def _encoded(
        self, info: ShardInfo, batch: list[tuple[str, str | None]]
    ) -> Iterator[StreamedText | None]:
        ids = iter(
            self._tokenizer.encode_documents([text for _, text in batch if text is not None])
        )
        for key, text in batch:
            shown = key.encode("utf-8", "backslashreplace").decode()
            yield None if text is None else StreamedText(info.file, shown, next(ids))

    def _read_tar(self, info: ShardInfo) -> Iterator[tuple[str, str | None]]:
        """Keys and texts of one tar behind those consumed already."""
        name = f"{self._folder.name}/{info.file}"
        index = load_text_index(self._folder, info) if self._has_index else None
        descriptor = self._folder.open_shard(info)
        with explaining("read", name), os.fdopen(descriptor, "rb", buffering=0) as file:
            try:
                expected = _count_texts(file, info.size_bytes, self._member)
            except DataError as error:
                raise self._damage(info, str(error)) from error
            file.seek(0)
            check = _IndexCheck(index)
            delivered, passed_over = 0, self._consumed
            for key, content in self._unpacked(file, info):
                delivered += 1
                is_new = delivered > passed_over
                text = self._text_of(content, is_new=is_new)
                if not check.is_right(content, text is not None):
                    reason = f"{key!r} or the text before it is not what was indexed"
                    raise self._damage(info, reason)
                if is_new:
                    yield key, text
            if delivered != expected:
                reason = f"webdataset gives {delivered} of its {expected} texts"
                raise self._damage(info, reason)
            if not check.is_complete():
                raise self._damage(info, "its last texts are not what was indexed")

    def _unpacked(self, file: Any, info: ShardInfo) -> Iterator[tuple[str, bytes]]:
        """Keys and text members as `webdataset` unpacks them; other members are not even read."""
        # It needs torch, which most of this room must not load.
        from webdataset.tariterators import group_by_keys, tar_file_expander

        def is_text(name: str) -> bool:
            return self._member.key_of(name) is not None

        files = tar_file_expander([{"url": info.file, "stream": file}], select_files=is_text)
        samples = group_by_keys(files)
        while True:
            try:
                sample = next(samples, None)
            except (DataError, MemoryError):
                raise
            except Exception as error:
                # Whatever tarfile meets in a damaged tar comes in many kinds.
                reason = f"webdataset cannot read it: {type(error).__name__}"
                raise self._damage(info, reason) from error
            if sample is None:
                return
            yield str(sample["__key__"]), sample[self._member.suffix]

    def _text_of(self, content: bytes, *, is_new: bool) -> str | None:
        try:
            return self._member.text_of(content)
        except UnusableText as error:
            self.left_out[str(error)] += is_new
            return None

    def _damage(self, info: ShardInfo, reason: str) -> DamageError:
        return DamageError(
            f"{self._folder.name}/{info.file} is damaged ({reason}); get the tar again",
            shard_file=info.file,
            ranges=None,
        )


class _IndexCheck:
    """Compares the usable texts of a tar with its index, where there is one."""

    def __init__(self, index: TextIndex | None) -> None:
        self._index = index
        self._position = 0

    def is_right(self, content: bytes, is_usable: bool) -> bool:
        """Whether the next text of the tar may be this one; unusable ones are not indexed."""
        if self._index is None or not is_usable:
            return True
        if self.is_complete():
            return False
        checksum = int(self._index.checksums[self._position])
        self._position += 1
        return checksum == xxhash.xxh3_64_intdigest(content)

    def is_complete(self) -> bool:
        """Whether no more texts are expected."""
        return self._index is None or self._position == self._index.documents


def _count_texts(file: Any, tar_bytes: int, member: TextMember) -> int:
    """Texts in a tar by its headers, which must be sound."""
    count, last_key = 0, None
    for entry in scan_tar(FileSource(file), tar_bytes, lambda name, size_bytes: False):
        key = member.key_of(entry.name)
        if key is None:
            continue
        if entry.size_bytes > MAXIMUM_TEXT_BYTES:
            raise DataError(f"text {entry.name!r} is longer than {MAXIMUM_TEXT_BYTES} bytes")
        if key == last_key:
            raise DataError(f"two members in a row are the .{member.suffix} of sample {key!r}")
        count, last_key = count + 1, key
    return count


def _member_of(
    manifest: Manifest, member: TextMember | None, tokenizer: DocumentTokenizer, name: str
) -> TextMember:
    """The text member that a manifest names, which arguments may not contradict."""
    if manifest.kind != "text":
        raise DataError(
            f"{name}/{MANIFEST_FILE} is not of a data set whose tars hold texts: read it by its ids"
        )
    found = TextMember.from_source(manifest.source)
    if member not in (None, found) or tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{name} is indexed for another text member or tokenizer; use those, or run "
            '"spade data index" again'
        )
    return found


def _list_tars(location: DatasetFolder) -> tuple[ShardInfo, ...]:
    """Tars of a folder without a manifest: of those, only names and sizes are known."""
    if not isinstance(location, LocalFolder):
        raise DataError(
            f"{location.name}/{MANIFEST_FILE} is missing: tars behind a URL are known by it alone; "
            'make it with "spade data index" on a copy and put it there with the .idx files'
        )
    folder = location.path
    with explaining("read", folder):
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".tar")
        tars = tuple(
            ShardInfo(
                file=check_plain_file(path.name),
                size_bytes=path.stat().st_size,
                documents=0,
                tokens=0,
                checksum="",
                index_checksum="",
            )
            for path in paths
        )
    if not tars:
        raise DataError(f"{folder} holds neither a manifest nor a file that ends with .tar")
    return tars
