"""The tokenizer of weights that are imported: kept as it is, or replaced by one of ours.

Data of ours have a tokenizer of ours, so that weights of others can be pretrained further only
under its vocabulary: rows of the same pieces move, others are drawn.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from spade_model.huggingface.importing.published_files import PublishedFileError, one_line

MATRICES = ("model.shared.weight", "lm_head.weight")
"""What has a row for each id."""


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)


@dataclass(frozen=True)
class Exchange:
    """What became of the rows."""

    state: dict[str, Tensor]
    """With matrices of the new vocabulary."""
    kept: int
    """Rows of pieces that both vocabularies have."""
    drawn: int
    """Rows of the other new ones."""
    dropped: int
    """Rows of the old vocabulary that have no place any more."""


def exchange_vocabulary(
    state: Mapping[str, Tensor], before: Mapping[str, int], now: Mapping[str, int], *, seed: int
) -> Exchange:
    """Give each new id the row of its piece, or one that looks like the others.

    New rows are drawn feature by feature with the mean and deviation of the old ones, so that the
    norms behind them see nothing unusual.

    Args:
        state: Of `SpadeForSeq2Seq`; embedding and head may be one tensor.
        before: Old ids by piece.
        now: New ids by piece, from 0 without gaps.
        seed: Of the rows that are drawn.
    """
    shared = {piece: number for piece, number in now.items() if piece in before}
    targets = torch.tensor(list(shared.values()), dtype=torch.int64)
    sources = torch.tensor([before[piece] for piece in shared], dtype=torch.int64)
    exchanged: dict[int, Tensor] = {}
    result = dict(state)
    for name in MATRICES:
        old = state[name]
        if id(old) not in exchanged:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randn(len(now), old.shape[1], generator=generator)
            rows = rows * old.std(dim=0) + old.mean(dim=0)
            rows[targets] = old[sources]
            exchanged[id(old)] = rows
        result[name] = exchanged[id(old)]
    kept = len(shared)
    return Exchange(result, kept, len(now) - kept, state[MATRICES[0]].shape[0] - kept)


def read_vocabulary(source: Path, rows: int) -> dict[str, int] | None:
    """Return the ids of a source's tokenizer by piece, or None without one.

    Args:
        source: A folder of `transformers`.
        rows: Of the embedding.

    Raises:
        PublishedFileError: The tokenizer cannot be loaded, or has more ids than there are rows.
    """
    if not any((source / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        vocabulary = dict(AutoTokenizer.from_pretrained(source, local_files_only=True).get_vocab())
    except Exception as error:  # whatever a stranger's files make it raise
        raise PublishedFileError(
            f"{source}: its tokenizer cannot be loaded: {one_line(error)}; mend it, or remove "
            f"{', '.join(TOKENIZER_FILES)} to import the weights alone"
        ) from error
    if max(vocabulary.values(), default=0) >= rows:
        raise PublishedFileError(
            f"{source}: its tokenizer has {len(vocabulary)} ids, but its embedding {rows} rows; "
            "give the tokenizer that belongs to the weights"
        )
    return vocabulary


def tokenizer_notes(vocabulary: Mapping[str, int] | None, rows: int) -> list[str]:
    """Say what is to be said of a tokenizer that is kept; arguments as of `read_vocabulary`."""
    if vocabulary is None:
        return ["there is no tokenizer beside the weights, and none in the folder"]
    unused = rows - len(vocabulary)
    return [f"{unused} rows of the embedding belong to no token"] if unused else []


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the source's tokenizer into a folder, as `tokenizer.json` in any case."""
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not present:
        return
    if "tokenizer.json" not in present:
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    for name in present:
        if not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)
