"""Long documents for denoising pretraining: shards, tokenizer, and the samples of all networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.downstream.corpus import training_documents
from benchmarks.downstream.sources import read_rows
from benchmarks.paper.pretraining_options import DataOptions
from data_pipeline.building.build import build_dataset
from data_pipeline.corpora.corpus import iterate_documents
from data_pipeline.reading.dataset_reader import document_lengths
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import target_unigram
from data_pipeline.remote.dataset_folder import open_dataset_folder
from data_pipeline.tokenization.tokenizer import DocumentTokenizer, train_tokenizer
from pretrain.evaluation.samples import HeldoutSamples, count_samples

_BOOKS = Path("pd_books") / "docs.jsonl.gz"
_DONE = "done.json"
_UNIGRAM_SAMPLES = 500


def make_data(data: Path, folder: Path, options: DataOptions) -> Path:
    """Make tokenizer and shards unless they are there.

    Documents are those of `benchmarks.downstream.corpus.training_documents`, and the books where
    `data` has them.

    Args:
        data: Holds ``sotu``, ``peps``, ``sumpubmed`` and perhaps ``pd_books``.
        folder: Where to make them.
        options: Vocabulary, shortest document and held-out share.

    Returns:
        The folder with ``train``, ``heldout`` and ``tokenizer``, absolute.

    Raises:
        ValueError: They are there, made otherwise.
    """
    made = folder.resolve() / "pretraining-data"
    shards = made / "shards"
    asked = {
        "data": str(data.resolve()),
        "vocab_size": options.vocab_size,
        "sentinels": options.sentinels,
        "shortest_document_bytes": options.shortest_document_bytes,
        "heldout_fraction": options.heldout_fraction,
    }
    if (made / _DONE).exists():
        _check_made(made, asked)
        return shards
    made.mkdir(parents=True, exist_ok=True)
    documents = [document for _, document in training_documents(data)]
    if (data / _BOOKS).exists():
        documents += [{"id": row["id"], "text": row["text"]} for row in read_rows(data / _BOOKS)]
    shortest = options.shortest_document_bytes
    lines = [json.dumps(x) for x in documents if len(x["text"].encode()) >= shortest]
    corpus = made / "documents.jsonl"
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_tokenizer(
        iterate_documents([corpus]),
        vocab_size=options.vocab_size,
        sentinels=options.sentinels,
        out=made / "tokenizer",
        seed=0,
    )
    tokenizer = DocumentTokenizer.load(made / "tokenizer")
    build_dataset([corpus], tokenizer, shards, heldout_fraction=options.heldout_fraction)
    (made / _DONE).write_text(json.dumps(asked) + "\n", encoding="utf-8")
    return shards


def _check_made(made: Path, asked: dict[str, Any]) -> None:
    kept = json.loads((made / _DONE).read_text(encoding="utf-8"))
    for name, value in asked.items():
        if kept.get(name) != value:
            raise ValueError(
                f"{made} was made with {name}={kept.get(name)!r}, not {value!r}; give another "
                "--out, or delete it"
            )


def open_stream(shards: Path, part: str, options: DataOptions, seed: int) -> PretrainingStream:
    """Open samples: windows within single documents, corrupted, in an order and by the seed.

    Args:
        shards: From `make_data`.
        part: ``train`` or ``heldout``.
        options: The objective.
        seed: Of order and corruption; no network has a part in it.
    """
    return PretrainingStream(
        StreamSettings(
            sources={part: shards / part},
            objective=options.objective,
            seed=seed,
            windows="document",
            bucket_samples=1,
        )
    )


def open_heldout(shards: Path, options: DataOptions) -> HeldoutSamples:
    """Open the held-out windows with their corruption, the same for all networks and seeds.

    Raises:
        ValueError: They are too few.
    """
    baseline = target_unigram(open_stream(shards, "train", options, seed=0), _UNIGRAM_SAMPLES)
    heldout = count_samples(
        open_stream(shards, "heldout", options, seed=0),
        samples=options.heldout_windows,
        baseline=baseline,
        text_bytes=DocumentTokenizer.load(shards / "tokenizer").text_bytes,
    )
    if heldout.size < options.heldout_windows:
        raise ValueError(
            f"the held-out documents have {heldout.size} windows, not {options.heldout_windows}; "
            "lower windows or watched_windows, or raise heldout_fraction"
        )
    return heldout


def documents_of(stream: PretrainingStream, samples: int) -> npt.NDArray[np.int64]:
    """Number of the document that each of the first samples was cut from, int64 [samples]."""
    ((name, manifest),) = stream.manifests.items()
    folder = open_dataset_folder(stream.settings.sources[name])
    found = stream.locate(np.arange(samples))
    numbers = np.empty(samples, dtype=np.int64)
    first = 0
    for shard in range(len(manifest.shards)):
        lengths = document_lengths(folder, manifest, shard)
        chosen = found.shards == shard
        ends = np.cumsum(lengths)
        numbers[chosen] = first + np.searchsorted(ends, found.starts[chosen], side="right")
        first += len(lengths)
    folder.close()
    return numbers
