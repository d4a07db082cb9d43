"""Span corruption as the usual collators do it: one row at a time, a draw for every token.

Written after the description in Raffel et al., 2020, section 3.1.4, and the shape that collators
for T5 have had since: draw a mask for each row by shuffling, number its spans with cumulative sums,
drop what is masked, one 64-bit id a token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class UsualCollator:
    """Corrupts a batch of equally long rows."""

    def __init__(
        self, vocab_size: int, eos_token_id: int, density: float, mean_span_tokens: float, seed: int
    ) -> None:
        self.vocab_size, self.eos_token_id = vocab_size, eos_token_id
        self.density, self.mean_span_tokens = density, mean_span_tokens
        self.random = np.random.default_rng(seed)

    def __call__(self, rows: list[Array]) -> tuple[Array, Array]:
        """Return inputs and labels, int64."""
        ids = np.stack(rows).astype(np.int64)
        is_noise = np.stack([self._mask(ids.shape[1]) for _ in rows])
        return self._corrupted(ids, is_noise), self._corrupted(ids, ~is_noise)

    def _mask(self, length: int) -> Array:
        noise = min(max(round(length * self.density), 1), length - 1)
        spans = max(round(noise / self.mean_span_tokens), 1)
        noise_lengths, kept_lengths = self._cut(noise, spans), self._cut(length - noise, spans)
        both = np.stack([kept_lengths, noise_lengths], axis=1).reshape(-1)
        begins = np.zeros(length, dtype=np.int8)
        begins[np.cumsum(both)[:-1]] = 1
        mask: Array = np.cumsum(begins) % 2 == 1
        return mask

    def _cut(self, total: int, parts: int) -> Array:
        begins = (np.arange(total - 1) < parts - 1).astype(np.int64)
        self.random.shuffle(begins)
        numbers = np.cumsum(np.concatenate([[0], begins]))
        return np.unique(numbers, return_counts=True)[1]

    def _corrupted(self, ids: Array, mask: Array) -> Array:
        first = mask & ~np.roll(mask, 1, axis=1)
        first[:, 0] = mask[:, 0]
        sentinels = np.where(first, self.vocab_size - np.cumsum(first, axis=1), 0)
        replaced = np.where(first, sentinels, ids)
        kept = replaced[first | ~mask].reshape(len(ids), -1)
        ends = np.full((len(ids), 1), self.eos_token_id, dtype=np.int64)
        return np.concatenate([kept, ends], axis=1)
