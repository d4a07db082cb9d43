"""Windows of tokens out of all shards of a data set, few of them open at a time."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DamageError, DataError, UnavailableError
from data_pipeline.foreign.text_member import TextMember
from data_pipeline.foreign.text_shards import OpenTextShard, TokenCache, load_text_index
from data_pipeline.permutation import IntegerArray
from data_pipeline.reading.shard_reader import OpenShard, Scratch, load_index
from data_pipeline.remote.dataset_folder import DatasetFolder
from data_pipeline.shards.manifest import Manifest, ShardInfo
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

# Each holds one open file; systems commonly allow a process 1,024.
_MAXIMUM_OPEN_SHARDS = 256


class DatasetReader:
    """Windows of tokens out of all shards of a data set."""

    def __init__(
        self,
        folder: DatasetFolder,
        manifest: Manifest,
        tokenizer: DocumentTokenizer | None = None,
        *,
        memory_map: bool = False,
    ) -> None:
        """Opens no shard yet.

        Args:
            folder: The data set.
            manifest: Its manifest.
            tokenizer: The one of the manifest; needed where shards hold texts.
            memory_map: Whether shards of ids are read through memory maps.

        Raises:
            DataError: If the tokenizer is missing or another one.
        """
        self._folder = folder
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._memory_map = memory_map
        if manifest.kind == "text":
            if tokenizer is None:
                raise DataError(f"{folder.name} holds texts: name its tokenizer to read it")
            manifest.check_tokenizer(tokenizer)
        self._token_cache = TokenCache()
        self._open: OrderedDict[int, OpenShard | OpenTextShard] = OrderedDict()
        self._scratch = Scratch()

    def read(
        self,
        target: memoryview,
        shard: int,
        start_token: int,
        segments: npt.NDArray[np.uint16] | None = None,
    ) -> None:
        """Reads one window.

        Args:
            target: Memory of as many ids as are wanted, in bytes.
            shard: Position of the shard in the manifest.
            start_token: First token, within the shard.
            segments: [tokens] filled with the number of the document in the window, from 1.

        Raises:
            DamageError: If what the window touches is damaged or missing.
        """
        self.shard(shard).read(target, start_token, self._scratch, segments)

    def shard(self, number: int) -> OpenShard | OpenTextShard:
        """The shard at a position of the manifest, opened if it is not.

        Raises:
            DamageError: If it is missing, of another size, or its index is damaged.
        """
        shard = self._open.get(number)
        if shard is not None:
            self._open.move_to_end(number)
            return shard
        info = self._manifest.shards[number]
        try:
            shard = self._opened(info)
        except UnavailableError:
            raise
        except DataError as error:
            raise DamageError(str(error), shard_file=info.file, ranges=None) from error
        self._open[number] = shard
        if len(self._open) > _MAXIMUM_OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return shard

    def _opened(self, info: ShardInfo) -> OpenShard | OpenTextShard:
        if self._manifest.kind == "tokens":
            dtype = self._manifest.token_dtype
            return OpenShard(self._folder, info, dtype, memory_map=self._memory_map)
        assert self._tokenizer is not None, "checked when the reader was made"
        member = TextMember.from_source(self._manifest.source)
        return OpenTextShard(self._folder, info, member, self._tokenizer, self._token_cache)

    def close(self) -> None:
        """Closes all files."""
        for shard in self._open.values():
            shard.close()
        self._open.clear()


def document_lengths(folder: DatasetFolder, manifest: Manifest, shard: int) -> IntegerArray:
    """Tokens of each document of a shard, int64 [documents].

    Raises:
        DataError: If its index is missing or damaged.
    """
    info = manifest.shards[shard]
    if manifest.kind == "text":
        return load_text_index(folder, info).lengths_tokens.astype(np.int64)
    return load_index(folder, info, manifest.token_dtype).lengths_tokens.astype(np.int64)
