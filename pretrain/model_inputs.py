"""From a batch of stored ids to what the model takes, widened on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_pipeline.objectives.batch import Batch

IGNORED_LABEL = -100
"""Label of a position that has no target."""


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """Arguments of `SpadeForSeq2Seq.forward`.

    Ids travel in the two or four bytes they are stored in and become int64 where they are used.

    Args:
        batch: n samples, or parts of n, of which the labels are whole.
        device: Where the model is.

    Returns:
        `input_ids` int64 [n, input length] and `labels` int64 [n, target length]; where rows are
        padded `attention_mask` bool [n, input length], and where documents are told apart
        `segment_ids` int64 [n, input length].
    """
    input_ids = _ids(batch.input_ids, device)
    labels = _ids(batch.labels, device)
    inputs = {"input_ids": input_ids, "labels": labels}
    if batch.label_lengths is not None:
        behind = ~_within(batch.label_lengths, labels)
        inputs["labels"] = labels.masked_fill(behind, IGNORED_LABEL)
    if batch.input_lengths is not None:
        first = 0 if batch.part is None else batch.part.part.columns(batch.part.input_columns).start
        inputs["attention_mask"] = _within(batch.input_lengths - first, input_ids)
    if batch.input_segment_ids is not None:
        inputs["segment_ids"] = _ids(batch.input_segment_ids, device)
    return inputs


def _ids(array: np.ndarray, device: torch.device) -> Tensor:
    # Workers hand out views of memory that is read once; torch warns of memory it may not write.
    tensor = torch.from_numpy(np.require(array, requirements="W"))
    return tensor.to(device, non_blocking=True).to(torch.int64)


def _within(lengths: np.ndarray, ids: Tensor) -> Tensor:
    """Which columns lie within their rows' lengths, bool of the shape of `ids`."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    return columns < torch.from_numpy(lengths).to(ids.device)[:, None]
