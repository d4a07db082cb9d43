"""The manifest: what a data set consists of, written last, so its presence means completeness."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.files import (
    canonical_json,
    parse_json_object,
    read_json_object,
    readable_json,
    write_atomically,
)
from data_pipeline.remote.dataset_folder import DatasetFolder

if TYPE_CHECKING:
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"

_PURPOSE = "the manifest of a data set, written when it is complete"
_REMEDY = 'name a folder made by "spade data build", or run that command again'
# Anchored on both sides: no path and no URL can stand in a manifest.
_SHARD_FILES = {
    "tokens": re.compile(r"shard-[0-9]{6,}\.tar\Z"),
    "text": re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,250}\.tar\Z"),
}
_CHECKSUM = re.compile(r"[0-9a-f]{32}\Z")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard as the manifest knows it.

    Attributes:
        file: Name of the tar within the data set's folder; the index has the suffix `.idx`.
        size_bytes: Length of the tar.
        documents: Documents in it.
        tokens: Ids in it, end-of-sequence ids included.
        checksum: xxh3_128 of the tar, in hex.
        index_checksum: xxh3_128 of the index file, in hex.
    """

    file: str
    size_bytes: int
    documents: int
    tokens: int
    checksum: str
    index_checksum: str

    @property
    def stem(self) -> str:
        """The name without its suffix, with which the keys of its documents begin."""
        return self.file.removesuffix(".tar")

    @property
    def index_file(self) -> str:
        """Name of the index."""
        return self.stem + ".idx"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data set consists of.

    Attributes:
        format_version: Version of manifest and shards.
        kind: "tokens" for shards that this program writes, "text" for tars of others whose texts
            are tokenized when they are read.
        dtype: Type of the ids, "<u2" or "<u4".
        vocab_size: Ids of the tokenizer, sentinels included.
        piece_count: Ids without sentinels; the sentinels lie above.
        pad_token_id: Padding.
        eos_token_id: Ends every document.
        tokenizer_fingerprint: Fingerprint of the tokenizer the ids come from.
        documents: Documents in all shards.
        tokens: Ids in all shards.
        shards: The shards in order.
        source: Where the documents come from: part, input names, counts, fingerprint.
    """

    format_version: int
    dtype: str
    vocab_size: int
    piece_count: int
    pad_token_id: int
    eos_token_id: int
    tokenizer_fingerprint: str
    documents: int
    tokens: int
    shards: tuple[ShardInfo, ...]
    source: dict[str, Any]
    kind: str = "tokens"

    @classmethod
    def of_shards(
        cls,
        shards: tuple[ShardInfo, ...],
        tokenizer: DocumentTokenizer,
        source: dict[str, Any],
        kind: str = "tokens",
    ) -> Manifest:
        """The manifest of shards whose ids come from a tokenizer; the rest follows from both."""
        return cls(
            format_version=FORMAT_VERSION,
            kind=kind,
            dtype=tokenizer.token_dtype.str,
            vocab_size=tokenizer.vocab_size,
            piece_count=tokenizer.piece_count,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tokenizer_fingerprint=tokenizer.fingerprint,
            documents=sum(shard.documents for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            shards=shards,
            source=source,
        )

    @classmethod
    def load(cls, location: Path | DatasetFolder) -> Manifest:
        """Reads the manifest of a data set.

        Args:
            location: Its folder.

        Raises:
            DataError: If it is missing, damaged, or of another version.
        """
        if isinstance(location, Path):
            value = read_json_object(location / MANIFEST_FILE, _PURPOSE, _REMEDY)
            path = str(location / MANIFEST_FILE)
        else:
            path = f"{location.name}/{MANIFEST_FILE}"
            if not location.exists(MANIFEST_FILE):
                raise DataError(f"{path} is missing: {_PURPOSE}; {_REMEDY}")
            value = parse_json_object(location.read_bytes(MANIFEST_FILE), path, _PURPOSE, _REMEDY)
        if value.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {value.get('format_version')!r}, this program reads "
                f"{FORMAT_VERSION}; {_REMEDY}"
            )
        try:
            return cls.from_dict(value)
        except DataError as error:
            raise DataError(f"{path} is damaged: {error}; {_REMEDY}") from error

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Manifest:
        """Makes a manifest out of `to_dict`, refusing anything that does not fit together.

        Raises:
            DataError: Naming the field; the caller adds the file's name.
        """
        fields = _checked_fields(cls, value)
        if not isinstance(fields["shards"], list):
            raise DataError("field 'shards' is no list")
        shards = tuple(ShardInfo(**_checked_fields(ShardInfo, item)) for item in fields["shards"])
        manifest = cls(**{**fields, "shards": shards})
        manifest._check()
        return manifest

    def _check(self) -> None:
        if self.dtype not in ("<u2", "<u4"):
            raise DataError(f"field 'dtype' is {self.dtype!r}, not '<u2' or '<u4'")
        if not 0 <= self.eos_token_id < self.piece_count <= self.vocab_size:
            raise DataError("fields 'eos_token_id', 'piece_count', 'vocab_size' contradict")
        if self.vocab_size > 2 ** (8 * self.token_dtype.itemsize):
            raise DataError(f"field 'vocab_size' {self.vocab_size} does not fit {self.dtype!r}")
        if self.kind not in _SHARD_FILES:
            raise DataError(f"field 'kind' is {self.kind!r}, not 'tokens' or 'text'")
        for shard in self.shards:
            if not _SHARD_FILES[self.kind].match(shard.file):
                raise DataError(f"shard name {shard.file!r} is none that this program writes")
            for field in ("checksum", "index_checksum"):
                if not _CHECKSUM.match(getattr(shard, field)):
                    raise DataError(f"shard {shard.file}: field {field!r} is no checksum")
            if min(shard.size_bytes, shard.documents, shard.tokens) < 1:
                raise DataError(f"shard {shard.file}: sizes must be positive")
        if len({shard.file for shard in self.shards}) != len(self.shards):
            raise DataError("a shard is listed twice")
        for field in ("documents", "tokens"):
            total = sum(getattr(shard, field) for shard in self.shards)
            if getattr(self, field) != total:
                raise DataError(
                    f"field {field!r} is {getattr(self, field)}, its shards have {total}"
                )

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON types."""
        value = dataclasses.asdict(self)
        value["shards"] = list(value["shards"])
        return value

    def save(self, folder: Path) -> None:
        """Writes the manifest, wholly or not at all.

        Raises:
            DataError: If the system refuses.
        """
        write_atomically(folder / MANIFEST_FILE, readable_json(self.to_dict()))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, in hex: stands for every byte of the data set."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    @property
    def sentinel_count(self) -> int:
        """Number of sentinel ids at the top of the vocabulary."""
        return self.vocab_size - self.piece_count

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """Type of the ids."""
        return np.dtype(self.dtype)

    def check_tokenizer(self, tokenizer: DocumentTokenizer) -> None:
        """Makes sure that the ids come from this tokenizer.

        Raises:
            DataError: If they come from another.
        """
        if tokenizer.fingerprint != self.tokenizer_fingerprint:
            raise DataError(
                f"the tokenizer (fingerprint {tokenizer.fingerprint[:12]}, {tokenizer.vocab_size} "
                f"ids) is not the one the shards were made with (fingerprint "
                f"{self.tokenizer_fingerprint[:12]}, {self.vocab_size} ids): use the tokenizer "
                "folder beside the shards, or build the shards again"
            )


def _checked_fields(kind: type[Any], value: Any) -> dict[str, Any]:
    """The fields of a dataclass out of JSON, with simple types checked."""
    if not isinstance(value, dict):
        raise DataError(f"a {kind.__name__} is no JSON object")
    wanted = {field.name: field.type for field in dataclasses.fields(kind)}
    for name in sorted(wanted.keys() ^ value.keys()):
        raise DataError(f"field {name!r} is {'missing' if name in wanted else 'unknown'}")
    types: dict[str, type] = {"int": int, "str": str, "dict[str, Any]": dict}
    for name, annotation in wanted.items():
        expected = types.get(str(annotation))
        if expected is not None and type(value[name]) is not expected:
            raise DataError(f"field {name!r} is {value[name]!r}, not of type {expected.__name__}")
    return dict(value)
