"""Which member of a foreign sample holds its text, and how the text is taken out of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from data_pipeline.errors import DataError

# Of one text: objects made of JSON take some twenty times its length in memory.
MAXIMUM_TEXT_BYTES = 2**25

_SUFFIX = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_KEY_AND_SUFFIX = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)\Z", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


class UnusableText(Exception):
    """A member is there, but no text comes out of it; the message says why."""


@dataclass(frozen=True, kw_only=True)
class TextMember:
    """Where the text of a sample is.

    Attributes:
        suffix: What follows the first dot of the member's name, in lower case; one that ends with
            "json" holds an object, any other the text itself, in UTF-8.
        field: Field of the text in an object.
    """

    suffix: str = "txt"
    field: str = "text"

    def __post_init__(self) -> None:
        if not _SUFFIX.match(self.suffix):
            raise DataError(
                f"text member {self.suffix[:80]!r} is no suffix of a name; write txt or json, "
                "without a dot before it"
            )
        if not 1 <= len(self.field) <= 200:
            raise DataError(f"text field {self.field[:80]!r} is no name of a field")

    @classmethod
    def from_source(cls, source: dict[str, Any]) -> TextMember:
        """The member that a manifest's `source` names.

        Raises:
            DataError: If it names none.
        """
        suffix, field = source.get("text_member"), source.get("text_field")
        if not isinstance(suffix, str) or not isinstance(field, str):
            raise DataError('the manifest does not say where its texts are; run "spade data index"')
        return cls(suffix=suffix, field=field)

    def key_of(self, name: str) -> str | None:
        """Key of the sample whose text member has this name; None for any other member.

        Samples are told apart as `webdataset` does it.
        """
        match = _KEY_AND_SUFFIX.match(name)
        if match is None or _META.match(name) or match[2].lower() != self.suffix:
            return None
        return match[1]

    def text_of(self, content: bytes) -> str:
        """The text in a member's content.

        Raises:
            UnusableText: If there is none.
        """
        if len(content) > MAXIMUM_TEXT_BYTES:
            raise UnusableText(f"longer than {MAXIMUM_TEXT_BYTES} bytes")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            raise UnusableText("no UTF-8") from None
        if self.suffix.endswith("json"):
            text = self._field_of(text)
        if not text.strip():
            raise UnusableText("empty")
        return text

    def _field_of(self, text: str) -> str:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            raise UnusableText("no JSON") from None
        value = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(value, str):
            raise UnusableText(f"no text in field {self.field!r}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UnusableText("a lone surrogate") from None
        return value
