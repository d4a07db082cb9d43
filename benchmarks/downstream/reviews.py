"""Whole movie reviews: bytes read by a small encoder, against bags of characters and of words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks.common.report import Table
from benchmarks.downstream.accuracy import accuracy_row, correct_rows
from benchmarks.downstream.arms import Arm, BytesArm, train_all
from benchmarks.downstream.baselines import character_baseline, word_baseline
from benchmarks.downstream.options import Options
from benchmarks.downstream.task_files import review_files
from finetune.classification.tasks import Task

MOST_BYTES = 32_768
"""No review is longer: none is cut."""
BYTES = "SPADE on bytes"


def reviews_tables(options: Options) -> list[Table]:
    """Compare on the reviews that are set aside for it."""
    arms = review_arms(options)
    train_all(list(arms.values()), options.workers)
    files, task = review_files(options), Task(("text",), "label")
    kept = options.folder / "baselines"
    baselines = [
        character_baseline(kept / "reviews-characters.json", files, task),
        word_baseline(kept / "reviews-words.json", files, task),
    ]
    characters = np.array([baselines[0].correct])
    rows: list[dict[str, Any]] = []
    for title, arm in arms.items():
        cells = accuracy_row(correct_rows(arm), characters, "characters")
        rows.append({"model": title, **cells, "CPU-minutes": arm.cpu_minutes})
    for number, found in enumerate(baselines):
        correct = np.array([found.correct])
        cells = accuracy_row(correct, characters if number else None, "characters")
        rows.append({"model": found.name, **cells, "CPU-minutes": found.cpu_minutes})
    settings = options.reviews
    note = (
        f"No review is cut. Bytes: the small network of `spade finetune lra`, not pretrained, "
        f"epochs: {settings.epochs}, rate {settings.learning_rate:g}, one seed."
    )
    return [Table("reviews", "Movie reviews: accuracy on test rows", rows, (note,))]


def review_arms(options: Options) -> dict[str, Arm]:
    """The trainings on bytes."""
    training = dataclasses.replace(options.reviews, precision=options.precision)
    return {
        BYTES: BytesArm(
            name=f"reviews {BYTES}",
            out=options.folder / "arms" / "reviews-0",
            training=training,
            files=review_files(options),
            most_bytes=MOST_BYTES,
        )
    }
