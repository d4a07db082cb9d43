"""The recipe ``classify``: encoder with a head, or text to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from finetune.class_predictions import write_records
from finetune.classification.answers import Answers
from finetune.classification.examples import (
    EncodedRows,
    Examples,
    collate,
    encode,
    find_labels,
    read_examples,
    targets_of,
)
from finetune.classification.label_words import LabelWordTrainer, encode_words
from finetune.classification.tasks import Task
from finetune.errors import FinetuneError
from finetune.exported import check_folder, file_digest, fingerprint, load_tokenizer
from finetune.naming import name_tests
from finetune.recipe import Recipe
from finetune.training import VALIDATION
from spade_model.huggingface import SpadeForConditionalGeneration, SpadeForSequenceClassification

Mode = Literal["head", "text"]

GRADES_OF_ONE = 5
"""Numbers are written to the nearest fifth in text-to-text mode, as Raffel et al. do for STS-B."""
MOST_GRADES = 64


class Classification(Recipe):
    """A classification task with its data.

    Args:
        model: Exported folder.
        task: Columns, labels and metrics.
        training: File with labels.
        validation: File with labels.
        tests: Files to predict; they are measured as well where they have labels.
        mode: ``head``: a linear layer on the mean of the encoder's outputs; ``text``: the decoder
            writes a word for the label.
        max_length_tokens: Where to cut texts; None: nowhere.
        say: Takes lines on the data.

    Raises:
        FinetuneError: A file or the folder is not what it should be.
        OSError: A file cannot be read.
    """

    name = "classify"

    def __init__(
        self,
        model: Path,
        task: Task,
        training: Path,
        validation: Path,
        tests: Sequence[Path] = (),
        *,
        mode: Mode = "head",
        max_length_tokens: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        config = check_folder(model)
        if mode not in get_args(Mode):
            raise FinetuneError(f"mode is {mode!r}: use head or text")
        if mode == "text" and not (config.get("num_encoder_layers") and _has_decoder(config)):
            raise FinetuneError(f"{model}: is no encoder-decoder; use --mode head")
        self.folder, self._mode, self._max_length_tokens = model, mode, max_length_tokens
        self._tokenizer = load_tokenizer(model)
        names = name_tests(tests)
        self._files = {"training": training, VALIDATION: validation, **names}
        learned = read_examples(training, task, labelled=True)
        self._task = find_labels(task, learned)
        self._grades = self._find_grades(learned) if mode == "text" and task.numbers else None
        self._words = encode_words(self._label_words(), self._tokenizer) if mode == "text" else None
        self.score = self._task.score
        self.training = self._encode("training", learned, say)
        self.validation = self._encode(
            VALIDATION, read_examples(validation, self._task, labelled=True), say
        )
        self.tests = {
            name: self._encode(name, read_examples(path, self._task, labelled=False), say)
            for name, path in names.items()
        }

    def _encode(self, name: str, examples: Examples, say: Callable[[str], None]) -> EncodedRows:
        rows = encode(
            examples, targets_of(self._task, examples), self._tokenizer, self._max_length_tokens
        )
        line = f"{name}: {len(rows):,} rows of {examples.path}"
        if rows.cut_rows:
            line += f", {rows.cut_rows:,} cut to {self._max_length_tokens:,} tokens"
        if examples.short_rows:
            line += f", {examples.short_rows:,} left out because they lack cells"
        say(line + ("" if examples.labels is not None else ", without labels"))
        return rows

    def _find_grades(self, learned: Examples) -> NDArray[np.float64]:
        """The numbers [C] that text-to-text mode can write."""
        values = targets_of(self._task, learned)
        assert values is not None, "training rows have labels"
        grades = np.unique(np.round(values.astype(np.float64) * GRADES_OF_ONE)) / GRADES_OF_ONE
        if not 2 <= len(grades) <= MOST_GRADES:
            raise FinetuneError(
                f"{learned.path}: rounded to fifths there are {len(grades)} different labels, and "
                f"--mode text needs 2 to {MOST_GRADES}; use --mode head"
            )
        return grades

    def _label_words(self) -> list[str]:
        if self._grades is not None:
            return [f"{grade:.1f}" for grade in self._grades]
        assert self._task.labels is not None, "found by find_labels"
        return [self._task.words.get(label, label) for label in self._task.labels]

    def describe(self) -> dict[str, Any]:
        """Return model, task, mode and data."""
        return {
            "model": fingerprint(self.folder),
            "mode": self._mode,
            "text_columns": self._task.text_columns,
            "label_column": self._task.label_column,
            "labels": self._task.labels,
            "metrics": self._task.metrics,
            "max_length_tokens": self._max_length_tokens,
            "data": {name: file_digest(path) for name, path in self._files.items()},
        }

    def make_model(self, dropout: float | None) -> PreTrainedModel:
        """Load the model with a new head, or with its decoder."""
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
        if dropout is not None:
            options["dropout"] = dropout
        if self._words is not None:
            model = SpadeForConditionalGeneration.from_pretrained(self.folder, **options)
            longest = model.config.max_target_length_tokens
            if self._words.shape[1] > longest:
                raise FinetuneError(
                    f"a label has {self._words.shape[1]} tokens and the decoder takes {longest}; "
                    "shorten the labels or use --mode head"
                )
            return model
        labels = self._task.labels
        if labels is None:
            options |= {"num_labels": 1, "problem_type": "regression"}
        else:
            options["problem_type"] = "single_label_classification"
            options["id2label"] = dict(enumerate(labels))
            options["label2id"] = {label: index for index, label in enumerate(labels)}
        return SpadeForSequenceClassification.from_pretrained(self.folder, **options)

    def make_trainer(self, **common: Any) -> Trainer:
        """Return the Trainer of the mode."""
        if self._words is None:
            return Trainer(**common)
        return LabelWordTrainer(self._words, **common)

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return a batch; in text-to-text mode numbers become the nearest grade's index."""
        batch = collate(rows, self._tokenizer.pad_token_id)
        if self._grades is not None and "labels" in batch:
            distances = (batch["labels"][:, None] - torch.from_numpy(self._grades)).abs()
            batch["labels"] = distances.argmin(dim=1)
        return batch

    def measure(self, rows: Any, outputs: Any) -> dict[str, float]:
        """Return the task's metrics, and their mean as ``score`` where there are several."""
        return self._answers.measure(rows, outputs)

    def write_predictions(self, folder: Path, name: str, rows: Any, outputs: Any) -> None:
        """Write ``predictions-NAME.tsv`` as GLUE takes it, and ``.jsonl`` with all that is known.

        Lines of the latter: ``index``, ``prediction``, ``probabilities`` by label, and ``label``.
        """
        write_records(folder, name, self._answers.records(rows, outputs))

    @property
    def _answers(self) -> Answers:
        return Answers(self._task, self._grades)


def _has_decoder(config: dict[str, Any]) -> bool:
    return bool(config.get("num_decoder_layers"))
