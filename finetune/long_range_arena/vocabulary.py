"""What the ids of each task stand for: bytes of texts, pixels, words of ListOps.

All tasks count as ByT5 does (arXiv 2105.13626): id 0 pads, 1 ends a text, 2 stands for what is not
known and does not occur, and the symbols follow from 3 on. So the ids of a text are those of
`transformers.ByT5Tokenizer`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from finetune.errors import FinetuneError

PAD_ID: Final = 0
END_ID: Final = 1
FIRST_ID: Final = 3
"""Id of byte 0, of a black pixel, and of the digit 0 in ListOps."""

Ids = NDArray[np.int16]

OPERATORS: Final = ("[MIN", "[MAX", "[MED", "[SM")
"""Smallest, largest, median (rounded down), and sum modulo 10 of what follows."""
LISTOPS_WORDS: Final = (*"0123456789", *OPERATORS, "]")
_LISTOPS_IDS: Final = {word: FIRST_ID + place for place, word in enumerate(LISTOPS_WORDS)}
_GROUPING: Final = frozenset("()")
"""Published files show the tree of binary applications as well, which says nothing more."""

VOCABULARY_SIZES: Final = {
    "listops": FIRST_ID + len(LISTOPS_WORDS),
    "text": FIRST_ID + 256,
    "retrieval": FIRST_ID + 256,
    "image": FIRST_ID + 256,
    "pathfinder": FIRST_ID + 256,
}
"""Number of ids by task."""


def text_ids(text: str) -> Ids:
    """Return the bytes of a text in UTF-8, and an end."""
    # JSON may hold halves of characters, which no UTF-8 has.
    data = np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8)
    ids: Ids = np.append(data.astype(np.int16) + np.int16(FIRST_ID), np.int16(END_ID))
    return ids


def cut(ids: Ids, most: int) -> Ids:
    """Return the first ids; a text that has an end keeps it, as the last of them."""
    if len(ids) <= most:
        return ids
    shortened: Ids = ids[:most].copy()
    if ids[-1] == END_ID:
        shortened[-1] = END_ID
    return shortened


def text_of(ids: Ids) -> str:
    """Return the text of ids, without ends and padding; broken characters become a mark."""
    data = (ids[ids >= FIRST_ID] - FIRST_ID).astype(np.uint8)
    return data.tobytes().decode("utf-8", errors="replace")


def pixel_ids(pixels: NDArray[np.uint8]) -> Ids:
    """Return ids of intensities, of any shape."""
    ids: Ids = pixels.astype(np.int16) + np.int16(FIRST_ID)
    return ids


def listops_ids(expression: str, place: str) -> Ids:
    """Return the ids of an expression; parentheses are passed over.

    Args:
        expression: Words with spaces between them.
        place: Where it stands, for the message.

    Raises:
        FinetuneError: A word is none of ListOps.
    """
    words = [word for word in expression.split() if word not in _GROUPING]
    try:
        return np.array([_LISTOPS_IDS[word] for word in words], dtype=np.int16)
    except KeyError as error:
        known = " ".join(LISTOPS_WORDS)
        raise FinetuneError(
            f"{place}: {error.args[0][:40]!r} is no word of ListOps; known are {known}"
        ) from error


def listops_text(ids: Ids) -> str:
    """Return the expression of ids, words with spaces between them."""
    return " ".join([LISTOPS_WORDS[index] for index in (ids - FIRST_ID).tolist()])
