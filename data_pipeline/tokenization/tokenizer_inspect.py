"""How well a tokenizer suits a text: what it covers, and how many ids it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.corpora.corpus import Document
from data_pipeline.corpora.utf8 import utf8_length
from data_pipeline.errors import DataError
from data_pipeline.progress import Progress, ProgressCallback
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

DEFAULT_INPUT_BYTES = 16 * 2**20
_LISTED_CHARACTERS = 12


@dataclass
class _Count:
    documents: int = 0
    text_bytes: int = 0
    words: int = 0
    tokens: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    ids: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def inspect_tokenizer(
    tokenizer: DocumentTokenizer,
    documents: Iterable[Document],
    input_names: Sequence[str],
    *,
    input_bytes: int = DEFAULT_INPUT_BYTES,
    progress: ProgressCallback | None = None,
) -> list[dict[str, Any]]:
    """Tokenizes text and counts.

    Args:
        tokenizer: The tokenizer.
        documents: The text, in the order of the inputs.
        input_names: [inputs] names for the rows.
        input_bytes: Text of each input after which the rest of it is passed by.
        progress: Told of the bytes tokenized.

    Returns:
        A row for each input, and one for all where there are several: documents, text_bytes,
        tokens, bytes_per_token, tokens_per_word (fertility; words are what white space parts),
        coverage (share of the characters that need no byte fallback; line ends, which are always
        the byte that they are, count as covered), uncovered (the commonest characters that are
        not), ids_used and ids_used_share (of the pieces).

    Raises:
        DataError: If there is no text.
    """
    counts = [_Count(ids=np.zeros(tokenizer.piece_count, np.int64)) for _ in input_names]
    done_bytes = 0
    for document in documents:
        count = counts[document.source]
        if count.text_bytes >= input_bytes:
            continue
        _add(count, tokenizer, document.text)
        done_bytes += utf8_length(document.text)
        if progress is not None:
            progress(Progress("tokenize", done_bytes, None, "bytes"))
    if done_bytes == 0:
        raise DataError("there is no text to tokenize: name other inputs")
    if len(counts) > 1:
        counts.append(_total(counts))
    names = [*input_names, "all"][: len(counts)]
    return [_row(name, count, tokenizer) for name, count in zip(names, counts, strict=True)]


def _add(count: _Count, tokenizer: DocumentTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    count.documents += 1
    count.text_bytes += utf8_length(text)
    count.words += len(text.split())
    count.tokens += len(ids)
    count.characters.update(text)
    count.ids += np.bincount(ids, minlength=len(count.ids))


def _total(counts: Sequence[_Count]) -> _Count:
    total = _Count(ids=np.zeros_like(counts[0].ids))
    for count in counts:
        total.documents += count.documents
        total.text_bytes += count.text_bytes
        total.words += count.words
        total.tokens += count.tokens
        total.characters += count.characters
        total.ids = total.ids + count.ids
    return total


def _row(name: str, count: _Count, tokenizer: DocumentTokenizer) -> dict[str, Any]:
    uncovered = Counter(
        {
            character: number
            for character, number in count.characters.items()
            if character != "\n" and not tokenizer.covers(character)
        }
    )
    characters = count.characters.total()
    ids_used = int(np.count_nonzero(count.ids))
    return {
        "input": name,
        "documents": count.documents,
        "text_bytes": count.text_bytes,
        "tokens": count.tokens,
        "bytes_per_token": count.text_bytes / max(1, count.tokens),
        "tokens_per_word": count.tokens / max(1, count.words),
        "coverage": 1 - uncovered.total() / max(1, characters),
        "uncovered": [character for character, _ in uncovered.most_common(_LISTED_CHARACTERS)],
        "ids_used": ids_used,
        "ids_used_share": ids_used / len(count.ids),
    }
