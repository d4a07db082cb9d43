"""What is in a data set, for people and programs; and reading it the way anybody else would."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.files import explaining
from data_pipeline.manifest import Manifest, ShardInfo
from data_pipeline.shard_reader import check_shard_size, load_index
from data_pipeline.tar_format import METADATA_SUFFIX, TOKENS_SUFFIX

_PERCENTILES = (0, 10, 50, 90, 99, 100)
_FIRST_DOCUMENTS = 3
_FIRST_IDS = 16
# What webdataset adds to a sample of its own accord.
_OWN_FIELDS = frozenset({"__key__", "__url__", "__local_path__"})


class TokenizedDocument(NamedTuple):
    """A document as a shard holds it.

    Attributes:
        key: Its key in the shard.
        name: Its name in the corpus.
        tokens: [tokens] ids.
    """

    key: str
    name: str
    tokens: npt.NDArray[Any]


def describe_dataset(folder: Path) -> dict[str, Any]:
    """Describes a data set out of its manifest, its indexes, and its first documents.

    Args:
        folder: The data set.

    Returns:
        JSON types: counts, sizes, lengths of documents, source, fingerprints, first documents.

    Raises:
        DataError: If it is incomplete or damaged where it is read.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    lengths = []
    for info in manifest.shards:
        check_shard_size(folder, info)
        lengths.append(load_index(folder, info, manifest.token_dtype).lengths_tokens)
    tokens = np.concatenate(lengths) if lengths else np.zeros(1, np.uint64)
    values = np.percentile(tokens, _PERCENTILES, method="nearest").tolist()
    first = itertools.islice(iterate_shard_tokens(folder), _FIRST_DOCUMENTS)
    return {
        "folder": str(folder),
        "format_version": manifest.format_version,
        "fingerprint": manifest.fingerprint,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        "shards": len(manifest.shards),
        "documents": manifest.documents,
        "tokens": manifest.tokens,
        "size_bytes": sum(info.size_bytes for info in manifest.shards),
        "dtype": manifest.dtype,
        "vocab_size": manifest.vocab_size,
        "piece_count": manifest.piece_count,
        "sentinel_count": manifest.sentinel_count,
        "document_tokens_percentiles": {
            str(percentile): int(value)
            for percentile, value in zip(_PERCENTILES, values, strict=True)
        },
        "source": manifest.source,
        "first_documents": [
            {
                "key": document.key,
                "name": document.name,
                "tokens": len(document.tokens),
                "first_ids": document.tokens[:_FIRST_IDS].tolist(),
            }
            for document in first
        ],
    }


def iterate_shard_tokens(folder: Path) -> Iterator[TokenizedDocument]:
    """Reads all documents in order through `webdataset`, as any user of the shards would.

    The files are opened here, so no name can become a command or a URL, and every member is
    decoded by a function named here, so nothing in a shard is ever unpickled. `webdataset` ends
    quietly at some damage; the counts of the manifest bring it to light.

    Args:
        folder: The data set.

    Yields:
        Documents in the order of the shards.

    Raises:
        DataError: If a shard is missing, cut off, or holds anything but documents.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    for info in manifest.shards:
        check_shard_size(folder, info)
        documents, tokens = 0, 0
        for document in _read_shard(folder, info, manifest.token_dtype):
            documents += 1
            tokens += len(document.tokens)
            yield document
        if (documents, tokens) != (info.documents, info.tokens):
            raise DataError(
                f"{folder / info.file} is damaged: {documents} documents with {tokens} tokens "
                f"can be read, the manifest says {info.documents} with {info.tokens}; find all "
                f'damage with "spade data verify {folder}"'
            )


def _read_shard(folder: Path, info: ShardInfo, dtype: np.dtype[Any]) -> Iterator[TokenizedDocument]:
    import tarfile

    # Heavy, and brings torch along: only whoever reads through it pays for it.
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path = folder / info.file
    with explaining("read", path), path.open("rb") as file:
        source = [{"url": str(path), "stream": file}]
        try:
            for sample in group_by_keys(tar_file_expander(source)):
                yield _decode_sample(sample, info, dtype)
        except (tarfile.TarError, DataError) as error:
            raise DataError(
                f'{path}: {error}; find all damage with "spade data verify {folder}"'
            ) from error
        except ValueError as error:
            # webdataset's own complaint about members with the same key.
            raise DataError(f"{path} is no shard of ours ({error})") from error


def _decode_sample(
    sample: dict[str, Any], info: ShardInfo, dtype: np.dtype[Any]
) -> TokenizedDocument:
    key = sample.get("__key__")
    wanted = {TOKENS_SUFFIX.removeprefix("."), METADATA_SUFFIX.removeprefix(".")}
    found = sample.keys() - _OWN_FIELDS
    if not isinstance(key, str) or not key.startswith(info.stem + "-") or found != wanted:
        raise DataError(f"document {key!r} with members {sorted(found)} is none that we write")
    try:
        tokens = np.load(io.BytesIO(sample["tokens.npy"]), allow_pickle=False)
        metadata = json.loads(sample["json"])
    except (ValueError, EOFError, RecursionError) as error:
        raise DataError(f"document {key} is damaged ({error})") from error
    if tokens.dtype != dtype or tokens.ndim != 1:
        raise DataError(f"document {key} is no list of {dtype.str} ids")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise DataError(f"document {key} has no name")
    return TokenizedDocument(key, name, tokens)
