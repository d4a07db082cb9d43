"""Bags of words and of characters with logistic regression, by scikit-learn; kept when made."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.downstream.task_files import Files
from finetune.classification.examples import find_labels, read_examples, targets_of
from finetune.classification.tasks import Task

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularization; the one with the best validation accuracy is taken."""

Texts = list[tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What a baseline got right."""

    name: str
    correct: list[float]
    """1 or 0 for each test row."""
    most_frequent: list[float]
    """1 where the most frequent class of the training rows is right."""
    cpu_minutes: float


def word_baseline(kept: Path, files: Files, task: Task) -> Outcome:
    """TF-IDF of words and pairs of words."""
    return _kept(kept, "TF-IDF, words 1-2", files, task, _features("word", (1, 2)))


def character_baseline(kept: Path, files: Files, task: Task) -> Outcome:
    """TF-IDF of runs of one to five characters."""
    return _kept(kept, "TF-IDF, characters 1-5", files, task, _features("char", (1, 5)))


def pair_baseline(kept: Path, files: Files, task: Task) -> Outcome:
    """Of a pair what both texts have, and what one of them has."""
    return _kept(kept, "TF-IDF, both and one", files, task, _pair_features())


def _features(analyzer: str, lengths: tuple[int, int]) -> Callable[[list[Texts]], list[Any]]:
    def make(parts: list[Texts]) -> list[Any]:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            analyzer=analyzer,
            ngram_range=lengths,
            sublinear_tf=True,
            min_df=2,
            token_pattern=r"\S+" if analyzer == "word" else None,
        )
        vectorizer.fit([text for (text,) in parts[0]])
        return [vectorizer.transform([text for (text,) in part]) for part in parts]

    return make


def _pair_features() -> Callable[[list[Texts]], list[Any]]:
    def make(parts: list[Texts]) -> list[Any]:
        from scipy.sparse import hstack
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        vectorizer.fit([text for pair in parts[0] for text in pair])
        found = []
        for part in parts:
            one = vectorizer.transform([pair[0] for pair in part])
            other = vectorizer.transform([pair[1] for pair in part])
            cosine = one.multiply(other).sum(axis=1)
            found.append(hstack([one.multiply(other), abs(one - other), cosine]).tocsr())
        return found

    return make


def _kept(
    path: Path,
    name: str,
    files: Files,
    task: Task,
    features: Callable[[list[Texts]], list[Any]],
) -> Outcome:
    if path.exists():
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    outcome = _measure(name, files, task, features)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")
    return outcome


def _measure(
    name: str, files: Files, task: Task, features: Callable[[list[Texts]], list[Any]]
) -> Outcome:
    from sklearn.linear_model import LogisticRegression

    started = time.process_time()
    examples = [read_examples(path, task, labelled=True) for path in files]
    task = find_labels(task, examples[0])
    targets = [np.asarray(targets_of(task, part), dtype=np.int64) for part in examples]
    learn, validate, test = features([part.texts for part in examples])
    models = [LogisticRegression(C=c, max_iter=1000).fit(learn, targets[0]) for c in STRENGTHS]
    chosen = max(models, key=lambda model: model.score(validate, targets[1]))
    most_frequent = np.bincount(targets[0]).argmax()
    return Outcome(
        name,
        (chosen.predict(test) == targets[2]).astype(float).tolist(),
        (targets[2] == most_frequent).astype(float).tolist(),
        (time.process_time() - started) / 60,
    )
