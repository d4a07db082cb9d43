"""The best that any tagger can do who sees only what is near a question, found by simulation.

Whoever knows how texts of far-header recall are drawn, and sees some tokens of one, knows the
probability of every value: votes are independent given the truth, and one that names the true value
is ``TRUE_RATE / FALSE_RATE`` times as likely as one that names another. Noise and other questions
say nothing. The answer of the highest probability is right most often; no training beats it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common.far_header import (
    FALSE_RATE,
    NOISE,
    REGISTERS,
    TRUE_RATE,
    VALUES,
    Texts,
    make_texts,
)

_TEXTS_AT_ONCE = 50


def posteriors(texts: Texts, window_tokens: int) -> Tensor:
    """Return the probability of each value of what is asked, given the tokens near the question.

    Args:
        texts: B texts of Q questions.
        window_tokens: Seen on either side of a question.

    Returns:
        float64 [B, Q, VALUES].
    """
    votes = REGISTERS * VALUES
    length = texts.ids.shape[1]
    kinds = (texts.ids - NOISE).clamp(-1, votes) + 1  # 0: noise; votes + 1: a question.
    before = functional.one_hot(kinds, votes + 2)[..., 1:-1].cumsum(dim=1)
    before = functional.pad(before, (0, 0, 1, 0))  # Of each vote, how many until a token.
    first = (texts.places - window_tokens).clamp(min=0)
    behind = (texts.places + window_tokens + 1).clamp(max=length)
    rows = torch.arange(len(texts.ids))[:, None]
    counts = (before[rows, behind] - before[rows, first]).unflatten(-1, (REGISTERS, VALUES))
    asked = texts.ids.gather(1, texts.places) - NOISE - votes
    index = asked[:, :, None, None].expand(-1, -1, 1, VALUES)
    seen = counts.gather(2, index).squeeze(2).double()
    return torch.softmax(seen * math.log(TRUE_RATE / FALSE_RATE), dim=-1)


@dataclass(frozen=True)
class Ceiling:
    """What the best tagger reaches within a window."""

    window_tokens: int
    expected: float
    """Mean probability of its answers."""
    right: float
    """Share of its answers that were right, ties drawn."""
    error: float
    """Standard error of `expected`, texts being independent of each other."""


def simulate_ceiling(
    window_tokens: int, *, texts: int, length_tokens: int, reach: int, seed: int = 0
) -> Ceiling:
    """Answer the questions of many texts as well as can be.

    Args:
        window_tokens: Seen on either side of a question.
        texts: How many to draw.
        length_tokens: Of each.
        reach: Tokens from the header to the nearest question, less one, as of `make_texts`.
        seed: Decides the texts.
    """
    generator = torch.Generator().manual_seed(seed)
    expected, right = [], []
    for done in range(0, texts, _TEXTS_AT_ONCE):
        drawn = make_texts(
            min(_TEXTS_AT_ONCE, texts - done),
            length_tokens,
            generator,
            trained_length=length_tokens,
            reach=reach,
        )
        probability = posteriors(drawn, window_tokens)
        best = probability.amax(dim=-1)
        equal = (probability == best[..., None]).double()
        answers = torch.multinomial(equal.flatten(0, 1), 1, generator=generator).view_as(best)
        expected.append(best.mean(dim=1))
        right.append((answers == drawn.labels).double().mean(dim=1))
    means, hits = torch.cat(expected), torch.cat(right)
    error = float(means.std()) / math.sqrt(len(means)) if len(means) > 1 else 0.0
    return Ceiling(window_tokens, float(means.mean()), float(hits.mean()), error)
