"""What a classification task is, and GLUE's tasks in the layout of GLUE's own files.

Labels, columns and metrics are those of the benchmark: Wang et al., "GLUE: A Multi-Task Benchmark
and Analysis Platform for Natural Language Understanding" (2018). The words that stand for labels in
text-to-text mode are those of Raffel et al., "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer" (2019), appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from finetune.errors import FinetuneError
from finetune.metrics import OF_LABELS, OF_NUMBERS


@dataclass(frozen=True)
class Task:
    """Columns, labels and metrics.

    Raises:
        FinetuneError: They do not fit together.
    """

    text_columns: tuple[str, ...]
    """One, or two for pairs."""
    label_column: str
    metrics: tuple[str, ...] = ("accuracy",)
    """What is measured; the score is their mean."""
    labels: tuple[str, ...] | None = None
    """As files write them; label 1 is the one that F1 counts. None: those of the training rows, in
    alphabetical order."""
    words: Mapping[str, str] = field(default_factory=dict)
    """What text-to-text mode writes for a label, where that is not the label itself."""
    numbers: bool = False
    """Whether labels are numbers to be estimated."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of TSV files without a header."""
    headless: tuple[str, ...] | None = None
    """The same for files that may have a header or not: GLUE's CoLA has one in its test file."""
    leave_out_short_rows: bool = False
    """Whether rows that lack cells are left out: GLUE's QQP has some."""

    def __post_init__(self) -> None:
        if len(set(self.text_columns)) != len(self.text_columns):
            raise FinetuneError(f"both text columns are {self.text_columns[0]!r}; name two")
        if self.label_column in self.text_columns:
            raise FinetuneError(
                f"the label column {self.label_column!r} is a text column too; name another"
            )
        known = OF_NUMBERS if self.numbers else OF_LABELS
        for name in self.metrics:
            if name not in known:
                kind = "numbers" if self.numbers else "classes"
                raise FinetuneError(f"metric {name!r} is none for {kind}: use {', '.join(known)}")

    @property
    def score(self) -> str:
        """Name of what checkpoints are compared by: the metric, or the mean of several."""
        return self.metrics[0] if len(self.metrics) == 1 else "score"


_PAIR: Final = ("sentence1", "sentence2")
_ENTAILMENT: Final = ("entailment", "not_entailment")

GLUE: Final[dict[str, Task]] = {
    "cola": Task(
        ("sentence",),
        "label",
        ("matthews",),
        ("0", "1"),
        {"0": "unacceptable", "1": "acceptable"},
        headless=("source", "label", "mark", "sentence"),
    ),
    "sst2": Task(
        ("sentence",), "label", ("accuracy",), ("0", "1"), {"0": "negative", "1": "positive"}
    ),
    "mrpc": Task(
        ("#1 String", "#2 String"),
        "Quality",
        ("accuracy", "f1"),
        ("0", "1"),
        {"0": "not_equivalent", "1": "equivalent"},
    ),
    "stsb": Task(_PAIR, "score", ("pearson", "spearman"), numbers=True),
    "qqp": Task(
        ("question1", "question2"),
        "is_duplicate",
        ("accuracy", "f1"),
        ("0", "1"),
        {"0": "not_duplicate", "1": "duplicate"},
        leave_out_short_rows=True,
    ),
    "mnli": Task(_PAIR, "gold_label", ("accuracy",), ("contradiction", "entailment", "neutral")),
    "qnli": Task(("question", "sentence"), "label", ("accuracy",), _ENTAILMENT),
    "rte": Task(_PAIR, "label", ("accuracy",), _ENTAILMENT),
    "wnli": Task(
        _PAIR, "label", ("accuracy",), ("0", "1"), {"0": "not_entailment", "1": "entailment"}
    ),
}
"""By name. MNLI's two validation files are one task: choose by ``dev_matched.tsv`` and have
``dev_mismatched.tsv`` tested."""


def find_task(name: str) -> Task:
    """Return a task of GLUE.

    Raises:
        FinetuneError: There is none of that name.
    """
    key = name.lower().replace("-", "").replace("_", "")
    if key not in GLUE:
        raise FinetuneError(f"task {name!r} is unknown: use {', '.join(GLUE)}")
    return GLUE[key]
