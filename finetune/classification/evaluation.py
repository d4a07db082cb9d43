"""A fine-tuned classifier measured on files, without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune import processes
from finetune.class_predictions import write_records
from finetune.classification.answers import Answers
from finetune.classification.examples import (
    EncodedRows,
    collate,
    encode,
    read_examples,
    targets_of,
)
from finetune.classification.tasks import Task
from finetune.errors import FinetuneError
from finetune.exported import check_folder, load_tokenizer
from finetune.intervals import bootstrap_interval
from finetune.measuring import MeasuringSettings, join_processes, predict
from finetune.naming import name_tests
from spade_model.huggingface import SpadeForSequenceClassification


def estimates_numbers(folder: Path) -> bool:
    """Whether a folder's classifier estimates numbers.

    Raises:
        FinetuneError: It holds no classifier.
    """
    config = check_folder(folder)
    kind = SpadeForSequenceClassification.__name__
    if config.get("architectures") != [kind]:
        found = ", ".join(map(str, config.get("architectures") or ["none"]))
        raise FinetuneError(
            f"{folder}: architectures is {found}, not {kind}; give seed-N/model of a run of spade "
            "finetune classify --mode head"
        )
    return bool(config.get("problem_type") == "regression")


def evaluate_classifier(
    folder: Path,
    task: Task,
    files: Sequence[Path],
    settings: MeasuringSettings,
    *,
    max_length_tokens: int | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Predict the rows of files, and measure where they have labels.

    Args:
        folder: Of a classifier; its labels are those of the model.
        task: Columns and metrics.
        files: Rows to predict.
        settings: How the model is run.
        max_length_tokens: Where to cut texts; None: nowhere.
        out: Folder for the predictions; None: they are not written.
        say: Takes lines on the data.

    Returns:
        By the name of the file ``rows``, ``cut_rows``, ``metrics``, and for accuracy
        ``accuracy_interval`` of 95 %, by the bootstrap over rows.

    Raises:
        FinetuneError: A file or the folder is not what it should be, or the labels differ.
        OSError: A file cannot be read or written.
    """
    join_processes()
    numbers = estimates_numbers(folder)
    tokenizer = load_tokenizer(folder)
    model = SpadeForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    )
    labels = None if numbers else _labels(model)
    answers = Answers(_with_labels(task, labels, folder))
    rows = {}
    for name, path in name_tests(files).items():
        examples = read_examples(path, answers.task, labelled=False)
        targets = targets_of(answers.task, examples)
        rows[name] = encode(examples, targets, tokenizer, max_length_tokens)
        say(f"{name}: {len(rows[name]):,} rows of {path}")
    if out is not None and processes.is_first():
        out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, encoded in rows.items():
        outputs = predict(
            model, encoded, lambda some: collate(some, tokenizer.pad_token_id), settings
        )
        if labels is not None and answers.task.labels is not None:
            # In the task's order, which says what F1 counts.
            outputs = outputs[:, [labels.index(label) for label in answers.task.labels]]
        results[name] = _result(answers, encoded, outputs)
        if out is not None and processes.is_first():
            write_records(out, name, answers.records(encoded, outputs))
    return results


def _labels(model: SpadeForSequenceClassification) -> tuple[str, ...]:
    return tuple(model.config.id2label[index] for index in range(model.config.num_labels))


def _with_labels(task: Task, labels: tuple[str, ...] | None, folder: Path) -> Task:
    """The task with a model's labels, where it names none; they must be the same otherwise.

    Args:
        task: Of the user.
        labels: Of the model; None where it estimates numbers.
        folder: Of the model.
    """
    if task.numbers != (labels is None):
        kinds = ("classes", "numbers")
        raise FinetuneError(
            f"{folder}: predicts {kinds[labels is None]} and the task has {kinds[task.numbers]}; "
            "name the task that it was trained on"
        )
    if labels is None:
        return task
    if task.labels is None:
        return dataclasses.replace(task, labels=labels)
    if set(task.labels) != set(labels):
        raise FinetuneError(
            f"{folder}: its labels are {', '.join(map(repr, labels))} and those of the task "
            f"{', '.join(map(repr, task.labels))}; name the task that it was trained on"
        )
    return task


def _result(answers: Answers, rows: EncodedRows, outputs: Any) -> dict[str, Any]:
    found = answers.measure(rows, outputs)
    result: dict[str, Any] = {"rows": len(rows), "cut_rows": rows.cut_rows, "metrics": found}
    if "accuracy" in found:
        hits = (outputs.argmax(axis=1) == rows.targets).astype(np.float64)
        result["accuracy_interval"] = list(bootstrap_interval(hits))
    return result
