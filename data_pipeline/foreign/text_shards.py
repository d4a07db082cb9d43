"""Reading tars that others made as if they held ids: texts are tokenized when asked for."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DamageError, DataError
from data_pipeline.files import read_at
from data_pipeline.foreign.index import TextIndex
from data_pipeline.foreign.text_member import TextMember, UnusableText
from data_pipeline.remote.dataset_folder import DatasetFolder
from data_pipeline.shards.manifest import ShardInfo
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

DEFAULT_CACHE_BYTES = 64 * 2**20


class TokenCache:
    """Ids of the texts used last, of all shards of a data set together."""

    def __init__(self, limit_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        """Starts empty.

        Args:
            limit_bytes: Most bytes of ids to keep; one text may be longer.
        """
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._ids: OrderedDict[tuple[str, int], npt.NDArray[Any]] = OrderedDict()

    def get(self, key: tuple[str, int]) -> npt.NDArray[Any] | None:
        """Ids of (tar, position), or None."""
        ids = self._ids.get(key)
        if ids is not None:
            self._ids.move_to_end(key)
        return ids

    def put(self, key: tuple[str, int], ids: npt.NDArray[Any]) -> None:
        """Keeps ids that are not kept yet."""
        self._ids[key] = ids
        self._used_bytes += ids.nbytes
        while self._used_bytes > self._limit_bytes and len(self._ids) > 1:
            _, dropped = self._ids.popitem(last=False)
            self._used_bytes -= dropped.nbytes


class TextShardDocuments:
    """The texts of one foreign tar as ids.

    Attributes:
        index: Where the texts are, and their lengths in ids.
        token_ends: [documents] ids up to and with each text.
    """

    def __init__(
        self,
        folder: DatasetFolder,
        info: ShardInfo,
        member: TextMember,
        tokenizer: DocumentTokenizer,
        cache: TokenCache,
    ) -> None:
        """Reads the index; the tar is opened by the caller.

        Args:
            folder: The data set.
            info: The tar.
            member: Where texts are in it.
            tokenizer: The one of the manifest.
            cache: Shared by all tars of the data set.

        Raises:
            DataError: If the index is missing or not the one of the manifest.
        """
        self.index = load_text_index(folder, info)
        # In a compact array whose elements are quick to reach one by one.
        ends = np.cumsum(self.index.lengths_tokens.astype(np.int64))
        self.token_ends = array("q", ends.tobytes())
        self._name = f"{folder.name}/{info.file}"
        self._file = info.file
        self._member = member
        self._tokenizer = tokenizer
        self._cache = cache

    def document_tokens(self, descriptor: int, position: int) -> npt.NDArray[Any]:
        """Ids of one text.

        Args:
            descriptor: The open tar.
            position: Number of the text in it.

        Returns:
            [tokens], of the tokenizer's type, the end-of-sequence id last; not to be written to.

        Raises:
            DamageError: If the text is not what was indexed, naming the tar and the text.
            DataError: If its ids are not as many as they were.
        """
        key = (self._file, position)
        ids = self._cache.get(key)
        if ids is None:
            ids = self._tokenizer.encode_documents([self._text(descriptor, position)])[0]
            expected = int(self.index.lengths_tokens[position])
            if len(ids) != expected:
                raise DataError(
                    f"{self._name}: {self.key(position)} becomes {len(ids)} ids, it was {expected} "
                    "when it was indexed: the tokenizing library has changed; run "
                    '"spade data index" again'
                )
            self._cache.put(key, ids)
        return ids

    def key(self, position: int) -> str:
        """How messages name a text."""
        return f"text {position} (at byte {int(self.index.offsets_bytes[position])})"

    def _text(self, descriptor: int, position: int) -> str:
        size_bytes = int(self.index.sizes_bytes[position])
        try:
            content = read_at(descriptor, size_bytes, int(self.index.offsets_bytes[position]))
        except OSError as error:
            raise self._damage(position, error.strerror or str(error)) from error
        if len(content) < size_bytes:
            raise self._damage(position, "the tar is cut off before its end")
        if xxhash.xxh3_64_intdigest(content) != int(self.index.checksums[position]):
            raise self._damage(position, "its checksum differs")
        try:
            return self._member.text_of(content)
        except UnusableText as error:
            raise self._damage(position, f"no text comes out of it: {error}") from None

    def _damage(self, position: int, reason: str) -> DamageError:
        end_token = self.token_ends[position]
        start_token = end_token - int(self.index.lengths_tokens[position])
        return DamageError(
            f"{self._name}: {self.key(position)} is damaged ({reason}); get the tar again, or, if "
            'it was changed on purpose, run "spade data index" again',
            shard_file=self._file,
            ranges=((start_token, end_token),),
        )


class OpenTextShard:
    """A foreign tar, open for reading windows out of its texts; has the face of `OpenShard`.

    Attributes:
        info: The tar.
        index: Its index.
    """

    def __init__(
        self,
        folder: DatasetFolder,
        info: ShardInfo,
        member: TextMember,
        tokenizer: DocumentTokenizer,
        cache: TokenCache,
    ) -> None:
        """Opens the tar; arguments as of `TextShardDocuments`.

        Raises:
            DataError: If it is missing, of another size, or its index is damaged.
        """
        self.info = info
        self._folder = folder
        self._documents = TextShardDocuments(folder, info, member, tokenizer, cache)
        self.index = self._documents.index
        self._ends = self._documents.token_ends
        self._item_bytes = tokenizer.token_dtype.itemsize
        self._descriptor = folder.open_shard(info)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def key(self, position: int) -> str:
        """How messages name a text."""
        return self._documents.key(position)

    def read(
        self,
        target: memoryview,
        start_token: int,
        scratch: object = None,
        segments: npt.NDArray[np.uint16] | None = None,
    ) -> None:
        """Reads a window of the tar's texts, which lie end to end.

        Args:
            target: Memory of as many ids as are wanted, in bytes.
            start_token: First of them, within the tar.
            scratch: Not needed here.
            segments: [tokens] filled with the number of the text in the window, from 1.

        Raises:
            DamageError: If a text is not what was indexed.
        """
        length = len(target) // self._item_bytes
        position = bisect_right(self._ends, start_token)
        done = 0
        number = 1
        while done < length:
            ids = self._ids(position)
            before = self._ends[position] - len(ids)
            part = ids[max(0, start_token - before) :][: length - done]
            target[done * self._item_bytes : (done + len(part)) * self._item_bytes] = part.tobytes()
            if segments is not None:
                segments[done : done + len(part)] = number
            done += len(part)
            position += 1
            number += 1

    def document_at(self, token: int) -> int:
        """Number of the text that a token of the tar belongs to."""
        return bisect_right(self._ends, token)

    def _ids(self, position: int) -> npt.NDArray[Any]:
        try:
            return self._documents.document_tokens(self._descriptor, position)
        except DamageError:
            descriptor = self._folder.refetch_shard(self.info)
            if descriptor is None:
                raise
        os.close(self._descriptor)
        self._descriptor = descriptor
        return self._documents.document_tokens(descriptor, position)


def load_text_index(folder: DatasetFolder, info: ShardInfo) -> TextIndex:
    """Reads the index of a foreign tar.

    Raises:
        DataError: If it is missing, not the one of the manifest, or does not fit the tar.
    """
    name = f"{folder.name}/{info.index_file}"
    remedy = 'run "spade data index" again'
    data = folder.read_bytes(info.index_file, info.index_checksum)
    try:
        index = TextIndex.from_bytes(data)
    except DataError as error:
        raise DataError(f"{name} is damaged ({error}); {remedy}") from error
    found = (index.tar_bytes, index.tar_checksum, index.documents, index.tokens)
    if found != (info.size_bytes, info.checksum, info.documents, info.tokens):
        raise DataError(f"{name} and the manifest contradict each other; {remedy}")
    return index
