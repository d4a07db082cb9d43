"""Windows over a stream of tokens: each token is predicted in exactly one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from finetune.errors import FinetuneError
from finetune.language_modelling.text import EncodedText

IGNORED = -100
"""Label of tokens that another window predicts."""


@dataclass(frozen=True)
class Window:
    """Some predictions of a stream, counted from 0: t is of token t + 1 given those before it."""

    start: int
    """The first prediction; nothing before its token is seen."""
    scored_from: int
    """The first one that counts; those before it only give context."""
    stop: int
    """Behind the last one."""


class TokenWindows(Dataset[dict[str, Any]]):
    """Windows of equal length, the last one perhaps shorter, as rows.

    The first window counts whole. Each later one starts `stride_tokens` behind the one before and
    counts what that one did not reach: at most `stride_tokens` predictions, each with at least
    ``length_tokens - stride_tokens`` tokens before it in the window. With a stride of the whole
    length windows do not overlap: rows for training.

    Args:
        text: The stream.
        length_tokens: Of a window.
        stride_tokens: From window to window, at most the length.

    Raises:
        FinetuneError: A length is impossible.
    """

    def __init__(self, text: EncodedText, length_tokens: int, stride_tokens: int) -> None:
        if length_tokens < 1:
            raise FinetuneError(f"length_tokens is {length_tokens}: use 1 or more")
        if not 1 <= stride_tokens <= length_tokens:
            raise FinetuneError(
                f"stride_tokens is {stride_tokens}: use from 1 to length_tokens, {length_tokens}"
            )
        self.text = text
        self._length, self._stride = length_tokens, stride_tokens

    def __len__(self) -> int:
        beyond_first = max(0, self.text.tokens - self._length)
        return 1 + math.ceil(beyond_first / self._stride)

    def window(self, index: int) -> Window:
        """Return one window."""
        start = index * self._stride
        reached = start - self._stride + self._length if index else 0
        return Window(start, reached, min(start + self._length, self.text.tokens))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return ``input_ids`` and ``labels`` [length + 1], as a causal model shifts them."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        window = self.window(index)
        ids = self.text.ids[window.start : window.stop + 1].astype(np.int64)
        labels = ids.copy()
        labels[: window.scored_from - window.start + 1] = IGNORED
        return {"input_ids": ids, "labels": labels}


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Return ``input_ids``, ``attention_mask`` and ``labels`` [B, L], padded behind.

    Args:
        rows: Of `TokenWindows`.
        pad_token_id: Fills up shorter rows.
    """
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), length), pad_token_id, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[index, :size] = torch.from_numpy(row["input_ids"])
        labels[index, :size] = torch.from_numpy(row["labels"])
        mask[index, :size] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
