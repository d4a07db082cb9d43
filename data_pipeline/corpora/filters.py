"""What is done to a text before anything else: normalisation, then filters, each counted."""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from data_pipeline.corpora.utf8 import utf8_length
from data_pipeline.errors import DataError

NORMALIZATIONS = ("none", "nfc", "nfkc")


class RuledText(NamedTuple):
    """What the rules make of one text.

    Attributes:
        text: The normalised text, or None where a filter leaves it out.
        size_bytes: Its length in UTF-8, also where it is left out.
        filtered_by: Name of the rule that leaves it out, or an empty string.
    """

    text: str | None
    size_bytes: int
    filtered_by: str


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """Normalisation and filters of a corpus.

    Nothing is normalised unless asked for: what the model reads back is then what was written, and
    NFKC takes distinctions away (a superscript becomes a digit) that code and formulas need.

    Attributes:
        normalization: "none", or the Unicode normal form "nfc" or "nfkc".
        min_bytes: Shortest text kept, in UTF-8 bytes after normalisation.
        max_bytes: Longest text kept, or None.
        require: Regular expression that must occur in a text; empty for none.
    """

    normalization: str = "none"
    min_bytes: int = 1
    max_bytes: int | None = None
    require: str = ""

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise DataError(
                f"normalization must be one of {', '.join(NORMALIZATIONS)}, not "
                f"{self.normalization!r}"
            )
        if self.min_bytes < 1 or (self.max_bytes is not None and self.max_bytes < self.min_bytes):
            raise DataError(
                f"min_bytes {self.min_bytes} and max_bytes {self.max_bytes} leave nothing: "
                "0 < min_bytes <= max_bytes must hold"
            )
        try:
            re.compile(self.require)
        except re.error as error:
            raise DataError(
                f"require {self.require!r} is no regular expression ({error})"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """The rules as JSON types, for records of what was done."""
        return dataclasses.asdict(self)

    def apply(self, text: str, size_bytes: int | None = None) -> RuledText:
        """Normalises a text and passes it through the filters.

        Args:
            text: Valid Unicode.
            size_bytes: Its length in UTF-8, where the caller knows it.
        """
        form: Literal["NFC", "NFKC"] | None = {"nfc": "NFC", "nfkc": "NFKC"}.get(  # type: ignore[assignment]
            self.normalization
        )
        if form is not None and not text.isascii():
            text, size_bytes = unicodedata.normalize(form, text), None
        if size_bytes is None:
            size_bytes = utf8_length(text)
        filtered_by = ""
        if size_bytes < self.min_bytes:
            filtered_by = "min_bytes"
        elif self.max_bytes is not None and size_bytes > self.max_bytes:
            filtered_by = "max_bytes"
        elif self.require and not _compiled(self.require).search(text):
            filtered_by = "require"
        return RuledText(None if filtered_by else text, size_bytes, filtered_by)


@functools.lru_cache(maxsize=8)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
