"""ROUGE of summaries, by the ``rouge-score`` library: F-measures with Porter's stemmer.

ROUGE-1 and ROUGE-2 count words and pairs of words that two summaries share. ROUGE-Lsum follows the
order of the words within sentences, so that it depends on where sentences end. What is scored here
has its sentences found by one rule (`split_sentences`), be it a reference, a model's text or a
baseline: numbers of one table can be compared, those of other publications only if they split
alike. The library counts letters of English and digits as words and leaves out the rest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

ROUGE: Final = ("rouge1", "rouge2", "rougeLsum")
"""Names of the scores, as the library has them."""

# A line ends a sentence, and so do marks before white space, with the quotes and brackets that
# close behind them.
_ENDS = re.compile(r"""\n+|(?<=[.!?])\s+|(?<=[.!?]["'”’)\]])\s+""")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, without empty ones.

    A sentence ends at a line feed, and at ``.``, ``!`` or ``?`` (behind which one quote or bracket
    may close) where white space follows. Abbreviations end one too: the rule asks for no capital
    letters, which some corpora have lost, and is the same for all that is compared.
    """
    return [part for part in map(str.strip, _ENDS.split(text)) if part]


def score_summary(prediction: str, reference: str) -> dict[str, float]:
    """Return the F-measures of one summary, from 0 to 1, by the names in `ROUGE`."""
    scores = _scorer().score(
        "\n".join(split_sentences(reference)), "\n".join(split_sentences(prediction))
    )
    return {name: float(scores[name].fmeasure) for name in ROUGE}


def score_summaries(
    predictions: Sequence[str], references: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return the F-measures of many summaries.

    Args:
        predictions: One for each document.
        references: Those of the same documents, in the same order.

    Returns:
        For each name in `ROUGE` an array [documents] of values from 0 to 1.

    Raises:
        ValueError: There is not one reference for each prediction.
    """
    scores = [score_summary(*pair) for pair in zip(predictions, references, strict=True)]
    return {name: np.array([score[name] for score in scores], dtype=np.float64) for name in ROUGE}


@functools.cache
def _scorer() -> Any:
    return RougeScorer(list(ROUGE), use_stemmer=True)
