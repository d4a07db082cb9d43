"""Predicted classes with their probabilities, and the files of predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Probabilities [N, C] of scores [N, C]."""
    weights = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def class_records(scores: NDArray[np.floating[Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return ``index``, ``prediction``, and ``probabilities`` by label, for each row.

    Args:
        scores: [N, C].
        labels: Names of the C classes.
    """
    records: list[dict[str, Any]] = []
    for index, row in enumerate(softmax(scores)):
        shares = {label: round(float(p), 6) for label, p in zip(labels, row, strict=True)}
        prediction = labels[int(row.argmax())]
        records.append({"index": index, "prediction": prediction, "probabilities": shares})
    return records


def write_records(folder: Path, name: str, records: Sequence[dict[str, Any]]) -> None:
    """Write ``predictions-NAME.tsv`` with index and prediction as GLUE takes it, ``.jsonl`` all."""
    lines = ["index\tprediction", *(f"{r['index']}\t{r['prediction']}" for r in records)]
    path = folder / f"predictions-{name}.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with path.with_suffix(".jsonl").open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
