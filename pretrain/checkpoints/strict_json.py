"""JSON from a file that may be damaged or hostile."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_json(text: bytes) -> Any:
    """Parse JSON that means one thing: no NaN, no key twice, no bottomless nesting.

    Raises:
        ValueError: If the text is anything else; the message is one line.
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_table)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key stands twice")
    return table
