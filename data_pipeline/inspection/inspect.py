"""What is in a data set, for people and programs; and reading it the way anybody else would."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.files import explaining
from data_pipeline.reading.shard_reader import check_shard_size, load_index
from data_pipeline.reading.windows import document_parts
from data_pipeline.shards.manifest import Manifest, ShardInfo
from data_pipeline.shards.tar_format import METADATA_SUFFIX, TOKENS_SUFFIX
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

_PERCENTILES = (0, 10, 50, 90, 99, 100)
_FIRST_DOCUMENTS = 3
_FIRST_IDS = 16
_DECODED_IDS = 96
# What webdataset adds to a sample of its own accord.
_OWN_FIELDS = frozenset({"__key__", "__url__", "__local_path__"})


class TokenizedDocument(NamedTuple):
    """A document as a shard holds it.

    Attributes:
        key: Its key in the shard.
        name: Its name in the corpus, or its key where names are not kept.
        tokens: [tokens] ids.
    """

    key: str
    name: str
    tokens: npt.NDArray[Any]


def describe_dataset(
    folder: Path,
    *,
    sequence_length_tokens: int | None = None,
    tokenizer: DocumentTokenizer | None = None,
) -> dict[str, Any]:
    """Describes a data set out of its manifest, its indexes, and its first documents.

    Args:
        folder: The data set.
        sequence_length_tokens: Length of windows of which to say how many an epoch has.
        tokenizer: Makes text of the first documents' ids; by default the one beside the data set,
            if there is one.

    Returns:
        JSON types: counts, sizes, lengths of documents, source, fingerprints, first documents.

    Raises:
        DataError: If it is incomplete or damaged where it is read, or the tokenizer is another.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if tokenizer is not None:
        manifest.check_tokenizer(tokenizer)
    tokenizer = tokenizer or _tokenizer_beside(folder, manifest)
    lengths = []
    for info in manifest.shards:
        check_shard_size(folder, info)
        lengths.append(load_index(folder, info, manifest.token_dtype).lengths_tokens)
    tokens = np.concatenate(lengths) if lengths else np.zeros(1, np.uint64)
    values = np.percentile(tokens, _PERCENTILES, method="nearest").tolist()
    first = itertools.islice(iterate_shard_tokens(folder), _FIRST_DOCUMENTS)
    description = {
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
        "document_tokens_histogram": length_histogram(tokens),
        "source": manifest.source,
        "first_documents": [_shown(document, tokenizer) for document in first],
    }
    if sequence_length_tokens is not None:
        description["epoch"] = describe_epoch(lengths, sequence_length_tokens)
    return description


def length_histogram(lengths_tokens: npt.NDArray[Any]) -> list[dict[str, int]]:
    """Documents and their tokens by length, in classes that double.

    Args:
        lengths_tokens: [documents] ids in each.

    Returns:
        Classes from the shortest to the longest: bounds (`below` left out), documents, tokens.
    """
    lengths = lengths_tokens.astype(np.int64)
    classes = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    return [
        {
            "from": 2**number,
            "below": 2 ** (number + 1),
            "documents": int((classes == number).sum()),
            "tokens": int(lengths[classes == number].sum()),
        }
        for number in range(int(classes.min()), int(classes.max()) + 1)
    ]


def describe_epoch(
    lengths_tokens: Sequence[npt.NDArray[Any]], window_tokens: int
) -> dict[str, dict[str, float]]:
    """What one epoch is at a length of windows, for both ways to cut them.

    Args:
        lengths_tokens: For each shard [documents] ids in each.
        window_tokens: Longest window.

    Returns:
        Of "concat" and "document": windows, tokens left out, and the share of the windows'
        places that hold tokens if each were as long as the longest.

    Raises:
        DataError: If the length is out of range.
    """
    if window_tokens < 1:
        raise DataError(f"the sequence length must be at least 1 token, not {window_tokens}")
    total = sum(int(lengths.sum()) for lengths in lengths_tokens)
    windows = {
        "concat": sum(int(lengths.sum()) // window_tokens for lengths in lengths_tokens),
        "document": 0,
    }
    used = {"concat": windows["concat"] * window_tokens, "document": 0}
    for lengths in lengths_tokens:
        _, parts = document_parts(lengths, window_tokens)
        windows["document"] += len(parts)
        used["document"] += int(parts.sum())
    return {
        mode: {
            "window_tokens": window_tokens,
            "windows": count,
            "tokens_left_out": total - used[mode],
            "full": used[mode] / (count * window_tokens) if count else 0.0,
        }
        for mode, count in windows.items()
    }


def _tokenizer_beside(folder: Path, manifest: Manifest) -> DocumentTokenizer | None:
    """The tokenizer that a build leaves beside its data sets, if it is there and the right one."""
    try:
        tokenizer = DocumentTokenizer.load(folder.absolute().parent / "tokenizer")
    except DataError:
        return None
    return tokenizer if tokenizer.fingerprint == manifest.tokenizer_fingerprint else None


def _shown(document: TokenizedDocument, tokenizer: DocumentTokenizer | None) -> dict[str, Any]:
    shown = {
        "key": document.key,
        "name": document.name,
        "tokens": len(document.tokens),
        "first_ids": document.tokens[:_FIRST_IDS].tolist(),
    }
    if tokenizer is not None:
        shown["text"] = tokenizer.decode(document.tokens[:_DECODED_IDS])
    return shown


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
    tokens_field, name_field = TOKENS_SUFFIX.removeprefix("."), METADATA_SUFFIX.removeprefix(".")
    found = sample.keys() - _OWN_FIELDS
    is_ours = found - {name_field} == {tokens_field}
    if not isinstance(key, str) or not key.startswith(info.stem + "-") or not is_ours:
        raise DataError(f"document {key!r} with members {sorted(found)} is none that we write")
    try:
        tokens = np.load(io.BytesIO(sample[tokens_field]), allow_pickle=False)
        metadata = json.loads(sample[name_field]) if name_field in found else {"name": key}
    except (ValueError, EOFError, RecursionError) as error:
        raise DataError(f"document {key} is damaged ({error})") from error
    if tokens.dtype != dtype or tokens.ndim != 1:
        raise DataError(f"document {key} is no list of {dtype.str} ids")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise DataError(f"document {key} has no name")
    return TokenizedDocument(key, name, tokens)
