"""What a model's outputs mean for a task: metrics, and the records of predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.class_predictions import class_records, softmax
from finetune.classification.examples import EncodedRows
from finetune.classification.tasks import Task
from finetune.metrics import OF_LABELS, OF_NUMBERS


@dataclass(frozen=True)
class Answers:
    """Reads outputs: scores [N, C] of classes or of grades, or numbers [N, 1]."""

    task: Task
    """With its labels, if it has classes."""
    grades: NDArray[np.float64] | None = None
    """The numbers [C] that text-to-text mode can write."""

    def measure(self, rows: EncodedRows, outputs: NDArray[np.floating[Any]]) -> dict[str, float]:
        """Return the task's metrics, and their mean as ``score`` where there are several.

        Args:
            rows: Without targets there are no metrics.
            outputs: In their order.
        """
        if rows.targets is None:
            return {}
        if self.task.numbers:
            values = self._values(outputs)
            found = {name: OF_NUMBERS[name](values, rows.targets) for name in self.task.metrics}
        else:
            classes = outputs.argmax(axis=1)
            found = {name: OF_LABELS[name](classes, rows.targets) for name in self.task.metrics}
        if len(found) > 1:
            found["score"] = sum(found.values()) / len(found)
        return found

    def records(
        self, rows: EncodedRows, outputs: NDArray[np.floating[Any]]
    ) -> list[dict[str, Any]]:
        """Return ``index``, ``prediction``, ``probabilities`` by label, and ``label``.

        Numbers have no probabilities, and rows without targets no labels.

        Args:
            rows: What was predicted.
            outputs: In their order.
        """
        labels = self.task.labels
        if labels is None:
            records: list[dict[str, Any]] = [
                {"index": index, "prediction": round(float(value), 4)}
                for index, value in enumerate(self._values(outputs))
            ]
        else:
            records = class_records(outputs, labels)
        if rows.targets is not None:
            for record, target in zip(records, rows.targets, strict=True):
                record["label"] = float(target) if labels is None else labels[target]
        return records

    def _values(self, outputs: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Estimated numbers [N]: the head's, or the mean of the grades by their probability."""
        if self.grades is None:
            return outputs[:, 0].astype(np.float64)
        return softmax(outputs) @ self.grades
