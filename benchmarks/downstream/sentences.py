"""SST-2 and MRPC: pretrained, from scratch, and TF-IDF."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks.common.report import Table
from benchmarks.downstream.accuracy import accuracy_row, correct_rows
from benchmarks.downstream.arms import Arm, ClassifierArm, train_all
from benchmarks.downstream.baselines import pair_baseline, word_baseline
from benchmarks.downstream.known_words import known_words_table
from benchmarks.downstream.options import Options
from benchmarks.downstream.pretraining import CONTINUED, SPADE, pretrained
from benchmarks.downstream.task_files import Files, mrpc_files, sst2_files
from finetune.classification.tasks import Task, find_task

PRETRAINED, CONTINUED_TOO, SCRATCH = "pretrained", "pretrained, then reviews", "from scratch"
_STARTS = {PRETRAINED: SPADE, CONTINUED_TOO: CONTINUED, SCRATCH: SPADE}
"""Whose folder each arm takes; from scratch its architecture alone."""


def sentences_tables(options: Options) -> list[Table]:
    """Compare on both tasks."""
    tasks = _tasks(options)
    arms = {name: sentence_arms(options, name) for name in tasks}
    train_all([arm for found in arms.values() for arm in found.values()], options.workers)
    rows = [row for name in tasks for row in _rows(options, name, arms[name])]
    settings = options.sentences
    note = (
        f"Encoder with a linear layer on the mean, epochs: {settings.epochs}, rate "
        f"{settings.learning_rate:g}, best checkpoint by validation. Brackets: 95 % over drawn "
        "test rows, each scored by the mean over the seeds."
    )
    return [
        Table("sentences", "SST-2 and MRPC: accuracy on test rows", rows, (note,)),
        known_words_table(
            options, {name: (task, files.test) for name, (task, files) in tasks.items()}
        ),
    ]


def _tasks(options: Options) -> dict[str, tuple[Task, Files]]:
    # GLUE's files of SST-2 have a header, these have none.
    sst2 = dataclasses.replace(find_task("sst2"), columns=("sentence", "label"))
    return {"sst2": (sst2, sst2_files(options)), "mrpc": (find_task("mrpc"), mrpc_files(options))}


def sentence_arms(options: Options, name: str) -> dict[str, Arm]:
    """The trainings of a task; reviews can tell of sentiment alone."""
    task, files = _tasks(options)[name]
    return {
        title: ClassifierArm(
            name=f"{name} {title}",
            out=options.folder / "arms" / f"{name}-{number}",
            training=dataclasses.replace(options.sentences, precision=options.precision),
            files=files,
            folder=pretrained(options, _STARTS[title]),
            task=task,
            from_scratch=title == SCRATCH,
        )
        for number, title in enumerate(_STARTS)
        if title != CONTINUED_TOO or name == "sst2"
    }


def _rows(options: Options, name: str, arms: dict[str, Arm]) -> list[dict[str, Any]]:
    task, files = _tasks(options)[name]
    measure = pair_baseline if len(task.text_columns) == 2 else word_baseline
    baseline = measure(options.folder / "baselines" / f"{name}.json", files, task)
    scratch = correct_rows(arms[SCRATCH])
    rows = []
    for title, arm in arms.items():
        row = accuracy_row(correct_rows(arm), None if arm is arms[SCRATCH] else scratch, SCRATCH)
        rows.append({"task": name, "model": title, **row, "CPU-minutes": arm.cpu_minutes})
    correct = np.array([baseline.correct])
    row = accuracy_row(correct, scratch, SCRATCH)
    rows.append({"task": name, "model": baseline.name, **row, "CPU-minutes": baseline.cpu_minutes})
    majority = accuracy_row(np.array([baseline.most_frequent]), scratch, SCRATCH)
    rows.append({"task": name, "model": "most frequent class", **majority})
    return rows
