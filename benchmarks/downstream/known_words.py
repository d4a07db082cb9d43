"""How much of a task's words pretraining has seen: without them it has nothing to tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.common.report import Table
from benchmarks.downstream.corpus import make_data, training_documents
from benchmarks.downstream.options import Options
from benchmarks.downstream.sources import source_folder
from finetune.classification.examples import read_examples
from finetune.classification.tasks import Task

OFTEN = 100
_WORD = re.compile(r"[a-z]+")


def known_words_table(options: Options, tasks: Mapping[str, tuple[Task, Path]]) -> Table:
    """Count how many of the words of test rows were seen often, and how tokens cut them.

    Args:
        options: Where the documents of pretraining are.
        tasks: Task and test file by name.
    """
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer

    seen = _count(document["text"] for _, document in training_documents(source_folder(options)))
    tokenizer = DocumentTokenizer.load(make_data(options) / "tokenizer")
    rows = []
    for name, (task, path) in tasks.items():
        texts = [" ".join(row) for row in read_examples(path, task, labelled=False).texts]
        words = _count(texts)
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        often = sum(count for word, count in words.items() if seen[word] >= OFTEN)
        rare = sum(seen[word] < OFTEN for word in words)
        rows.append(
            {
                "test rows of": name,
                "words": words.total(),
                f"seen {OFTEN} times in pretraining": f"{often / words.total():.1%}",
                "different words": len(words),
                "of these not": f"{rare / len(words):.1%}",
                "tokens a word": tokens / words.total(),
            }
        )
    return Table("known words", "Words of the tasks that pretraining has seen", rows)


def _count(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text.lower()))
    return counts
