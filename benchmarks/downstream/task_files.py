"""Files of the tasks, as the recipes read them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.downstream.options import Options
from benchmarks.downstream.sources import source_folder

_EVERY = 10
"""Of MRPC's training rows, which has no others to validate, one of so many is set aside."""
_REVIEWS_TO_LEARN, _REVIEWS_TO_VALIDATE = 800, 100
"""Of each class, in the order of their names; the rest is for the test."""


class Files(NamedTuple):
    """To learn, to validate, to test."""

    training: Path
    validation: Path
    test: Path


def sst2_files(options: Options) -> Files:
    """SST-2's own split: two columns without a header."""
    folder = source_folder(options) / "sst2"
    return Files(folder / "train.tsv", folder / "dev.tsv", folder / "test.tsv")


def mrpc_files(options: Options) -> Files:
    """MRPC's test rows, and its training rows but for every tenth, which validates."""
    folder = source_folder(options) / "mrpc"
    header, *rows = _lines(folder / "msr_paraphrase_train.txt")
    return _write(
        options,
        "mrpc",
        {
            "train": [header, *(row for i, row in enumerate(rows) if i % _EVERY)],
            "validation": [header, *rows[::_EVERY]],
            "test": _lines(folder / "msr_paraphrase_test.txt"),
        },
    )


def sumpubmed_files(options: Options) -> Files:
    """SumPubMed's own split."""
    folder = source_folder(options) / "sumpubmed"
    return Files(*(folder / f"{name}.jsonl.gz" for name in ("train", "val", "test")))


def review_files(options: Options) -> Files:
    """Movie reviews: of each class the first 800, then 100, then the rest."""
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    with zipfile.ZipFile(source_folder(options) / "movie_reviews" / "movie_reviews.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        for name in names:
            path = Path(name)
            number = int(path.name[2:].partition("_")[0])
            part = "test"
            if number < _REVIEWS_TO_LEARN + _REVIEWS_TO_VALIDATE:
                part = "train" if number < _REVIEWS_TO_LEARN else "validation"
            row = {
                "text": archive.read(name).decode("utf-8", errors="replace"),
                "label": path.parent.name,
            }
            parts[part].append(json.dumps(row))
    return _write(options, "reviews", parts, ".jsonl")


def _lines(path: Path) -> list[str]:
    # Not splitlines(): sentences may hold other characters that it takes for ends.
    text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    return [line.rstrip("\r") for line in text.split("\n")]


def _write(
    options: Options, task: str, parts: Mapping[str, Iterable[str]], suffix: str = ".tsv"
) -> Files:
    folder = options.folder / "tasks" / task
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in parts.items():
        (folder / f"{name}{suffix}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Files(*(folder / f"{name}{suffix}" for name in ("train", "validation", "test")))
