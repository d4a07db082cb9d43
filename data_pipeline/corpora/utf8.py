"""How long a text is in UTF-8, without making it."""

from __future__ import annotations

_CHARACTERS_AT_A_TIME = 2**20


def utf8_bytes(text: str) -> int | None:
    """Length of `text` in UTF-8, or None where it holds a lone surrogate; in bounded memory."""
    if text.isascii():
        return len(text)
    total_bytes = 0
    for start in range(0, len(text), _CHARACTERS_AT_A_TIME):
        try:
            total_bytes += len(text[start : start + _CHARACTERS_AT_A_TIME].encode())
        except UnicodeEncodeError:
            return None
    return total_bytes


def utf8_length(text: str) -> int:
    """Length of valid Unicode in UTF-8; in bounded memory."""
    size_bytes = utf8_bytes(text)
    assert size_bytes is not None, "the caller knows that there is no lone surrogate"
    return size_bytes
