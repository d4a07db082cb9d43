"""LEAD: the beginning of a document as its summary, which many trained models do not beat."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable

_WORD = re.compile(r"\S+")


def lead(document: str, words: int) -> str:
    """Return a document's first words, with the white space between them as it is.

    Args:
        document: Any text.
        words: How many; what stands between white space is a word.
    """
    end = 0
    for match in itertools.islice(_WORD.finditer(document), words):
        end = match.end()
    return document[:end]


def median_words(summaries: Iterable[str]) -> int:
    """Return the median of the summaries' numbers of words, at least 1.

    Raises:
        statistics.StatisticsError: There are no summaries.
    """
    return max(1, round(statistics.median(len(summary.split()) for summary in summaries)))
