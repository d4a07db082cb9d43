"""Files of documents with their summaries, as rows of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from finetune.errors import FinetuneError
from finetune.tables import Row, read_table

IGNORED = -100
"""Label of positions behind the end of a summary."""
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Columns:
    """Names of the columns.

    Raises:
        FinetuneError: Two are the same.
    """

    document: str = "document"
    summary: str = "summary"
    identifier: str = "id"
    """Rows of a file without it are called by their number, from 0."""

    def __post_init__(self) -> None:
        names = (self.document, self.summary, self.identifier)
        if len(set(names)) < len(names):
            raise FinetuneError(
                f"the columns are {', '.join(map(repr, names))}: document, summary and id must be "
                "three different ones"
            )


@dataclass(frozen=True)
class Pairs:
    """What a file holds."""

    path: Path
    identifiers: list[str]
    documents: list[str]
    summaries: list[str] | None
    """None where the file has none."""


def read_pairs(path: Path, columns: Columns, *, with_summaries: bool) -> Pairs:
    """Read a file.

    Args:
        path: JSON lines or TSV; see `finetune.tables`.
        columns: Which.
        with_summaries: Whether there must be summaries.

    Raises:
        FinetuneError: A column is missing, a text is empty, or a line is damaged; with its number.
        OSError: The file cannot be read.
    """
    required = [columns.document, *([columns.summary] if with_summaries else [])]
    table = read_table(path, required, (columns.summary, columns.identifier))
    summaries = None
    if columns.summary in table.columns:
        summaries = [_text(path, row, columns.summary) for row in table.rows]
    if columns.identifier in table.columns:
        identifiers = [row.cells[columns.identifier] for row in table.rows]
    else:
        identifiers = [str(index) for index in range(len(table.rows))]
    documents = [_text(path, row, columns.document) for row in table.rows]
    return Pairs(path, identifiers, documents, summaries)


def _text(path: Path, row: Row, column: str) -> str:
    text = row.cells[column]
    if not text.strip():
        raise FinetuneError(
            f"{path}, line {row.line}: column {column!r} is empty; write text or remove the row"
        )
    return text


class SummaryRows(Dataset[dict[str, Any]]):
    """Token ids of documents, and of their summaries where they are known.

    Attributes:
        pairs: The texts.
        inputs: Ids of each document, with prefix and end of text.
        targets: Ids of each summary with its end of text, or None.
        longest_input_tokens: Before anything was cut.
        cut_inputs: How many documents were longer than allowed.
        cut_targets: How many summaries were longer than the decoder takes; these have no end.
        always_written: Whether summaries are written at each validation.
        written_in_the_end: Whether they are written with the best checkpoint.
    """

    def __init__(
        self,
        pairs: Pairs,
        inputs: list[NDArray[np.int32]],
        targets: list[NDArray[np.int32]] | None,
        *,
        longest_input_tokens: int,
        cut_inputs: int,
        cut_targets: int,
    ) -> None:
        self.pairs = pairs
        self.inputs = inputs
        self.targets = targets
        self.longest_input_tokens = longest_input_tokens
        self.cut_inputs = cut_inputs
        self.cut_targets = cut_targets
        self.always_written = False
        self.written_in_the_end = False

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {"input_ids": self.inputs[index]}
        return row if self.targets is None else {**row, "labels": self.targets[index]}


def encode(
    pairs: Pairs,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix: str,
    max_input_tokens: int | None,
    max_target_tokens: int,
) -> SummaryRows:
    """Return rows of token ids.

    Args:
        pairs: Texts.
        tokenizer: Of the model.
        prefix: Stands before each document.
        max_input_tokens: Where to cut documents, prefix and end of text included; None: nowhere.
        max_target_tokens: Where to cut summaries. A cut one loses its end of text: the model shall
            not learn to end there.
    """
    inputs = _tokens(tokenizer, [prefix + document for document in pairs.documents])
    longest, cut_inputs = max(map(len, inputs)), 0
    if max_input_tokens is not None:
        cut_inputs = sum(len(row) > max_input_tokens for row in inputs)
        inputs = [_cut(row, max_input_tokens) for row in inputs]
    targets, cut_targets = None, 0
    if pairs.summaries is not None:
        targets = _tokens(tokenizer, pairs.summaries)
        cut_targets = sum(len(row) > max_target_tokens for row in targets)
        targets = [row[:max_target_tokens] for row in targets]
    return SummaryRows(
        pairs,
        inputs,
        targets,
        longest_input_tokens=longest,
        cut_inputs=cut_inputs,
        cut_targets=cut_targets,
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    rows: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        found = tokenizer(list(texts[start : start + _TEXTS_AT_ONCE]), truncation=False).input_ids
        rows.extend(np.array(row, dtype=np.int32) for row in found)
    return rows


def _cut(row: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """Shorten a document, but for its end of text."""
    if len(row) <= most:
        return row
    return np.concatenate([row[: most - 1], row[-1:]])


def pad_inputs(
    inputs: Sequence[NDArray[np.int32]], pad_token_id: int, least_tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """Return ids int64 [B, L] and attention mask [B, L], L not below the least."""
    length = max(least_tokens, *map(len, inputs))
    ids = torch.full((len(inputs), length), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(inputs), length), dtype=torch.int64)
    for index, tokens in enumerate(inputs):
        ids[index, : len(tokens)] = torch.from_numpy(tokens)
        mask[index, : len(tokens)] = 1
    return ids, mask


def pad_targets(targets: Sequence[NDArray[np.int32]]) -> Tensor:
    """Return labels int64 [B, T], -100 behind the end of each."""
    labels = torch.full((len(targets), max(map(len, targets))), IGNORED, dtype=torch.int64)
    for index, tokens in enumerate(targets):
        labels[index, : len(tokens)] = torch.from_numpy(tokens)
    return labels


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Tensor]:
    """Return ``input_ids`` [B, L], ``attention_mask`` [B, L] and ``labels`` [B, T].

    Args:
        rows: Of `SummaryRows` with summaries.
        pad_token_id: Fills up shorter documents.
    """
    ids, mask = pad_inputs([row["input_ids"] for row in rows], pad_token_id)
    labels = pad_targets([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
