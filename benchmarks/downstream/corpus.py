"""The documents of pretraining, their tokenizer, and their shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.downstream.options import Options
from benchmarks.downstream.sources import read_rows, source_folder
from benchmarks.downstream.task_files import review_files

SENTINELS = 256
HELDOUT_FRACTION = 0.02
_DONE = "done"


def training_documents(data: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield source and document, without anything that a task tests or validates on.

    Of PubMed these are the articles of the training split, without their abstracts. PEPs whose
    abstracts are to be written in validation or test are left out.
    """
    asked = {
        row["id"]
        for split in ("val", "test")
        for row in read_rows(data / "peps" / f"sum_{split}.jsonl.gz")
    }
    for source in ("sotu", "peps"):
        for row in read_rows(data / source / "docs.jsonl.gz"):
            if row["id"] not in asked:
                yield source, {"id": row["id"], "text": row["text"]}
    for row in read_rows(data / "sumpubmed" / "train.jsonl.gz"):
        yield "sumpubmed", {"id": row["id"], "text": row["document"]}


def make_data(options: Options) -> Path:
    """Make shards and their tokenizer unless they are there; return the folder of both."""
    from data_pipeline.corpora.corpus import iterate_documents
    from data_pipeline.tokenization.tokenizer import train_tokenizer

    made = options.folder / "pretraining-data"
    if (made / _DONE).exists():
        return made
    made.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {}
    for source, document in training_documents(source_folder(options)):
        texts.setdefault(source, []).append(json.dumps(document))
    corpora = [made / f"{source}.jsonl" for source in texts]
    for path, lines in zip(corpora, texts.values(), strict=True):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_tokenizer(
        iterate_documents(corpora),
        vocab_size=options.vocab_size,
        sentinels=SENTINELS,
        out=made / "tokenizer",
        seed=0,
    )
    _build(made, corpora, made / "tokenizer")
    return made


def make_review_data(options: Options) -> Path:
    """Make shards of the movie reviews that may be learned, without their labels."""
    made = options.folder / "review-data"
    if (made / _DONE).exists():
        return made
    made.mkdir(parents=True, exist_ok=True)
    with review_files(options).training.open(encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    corpus = made / "reviews.jsonl"
    lines = [json.dumps({"id": f"review-{i}", "text": text}) for i, text in enumerate(texts)]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    _build(made, [corpus], make_data(options) / "tokenizer")
    return made


def _build(made: Path, corpora: list[Path], tokenizer: Path) -> None:
    from data_pipeline.building.build import build_dataset
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer

    build_dataset(
        corpora,
        DocumentTokenizer.load(tokenizer),
        made / "shards",
        heldout_fraction=HELDOUT_FRACTION,
    )
    (made / _DONE).touch()
