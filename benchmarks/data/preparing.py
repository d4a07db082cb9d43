"""How fast a corpus becomes shards, beside SentencePiece alone and other writers of tars.

Three questions: what a build costs on one core over tokenizing the same text, what a second MPI
rank brings, and what writing shards costs. Everything runs in turn, A B C A B C, and the medians
stand in the tables; on a busy machine only the ratios mean something.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.report import Table
from benchmarks.data.options import Options
from data_pipeline.building.build import build_dataset
from data_pipeline.corpora.corpus import iterate_documents
from data_pipeline.corpora.standard_library import write_standard_library_corpus
from data_pipeline.shards.shard_writer import write_shard
from data_pipeline.tokenization.tokenizer import DocumentTokenizer, train_tokenizer

_MEAN_TOKENS = 1_072
_DTYPE = np.dtype("<u2")
_BUILD_NOTE = (
    "a build reads the corpus twice, finds duplicates, tokenizes, and writes checked shards; "
    "sentencepiece is given the texts in memory"
)

# One rank on a core of its own: how the work divides is asked, not how threads do.
_RANK = """
import json, os, sys, time
from pathlib import Path
rank = int(os.environ.get("PMI_RANK", 0))
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, {cores[rank % len(cores)]})
from mpi4py import MPI
from data_pipeline.building.build import build_dataset
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
corpus, tokenizer, out = map(Path, sys.argv[1:])
loaded = DocumentTokenizer.load(tokenizer)
MPI.COMM_WORLD.Barrier()
started, started_cpu = time.perf_counter(), time.process_time()
build_dataset([corpus], loaded, out, shard_text_bytes=2**20)
seconds = time.perf_counter() - started
cpu_seconds = MPI.COMM_WORLD.gather(time.process_time() - started_cpu)
if rank == 0:
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}))
"""


def preparing_tables(options: Options) -> list[Table]:
    """Ask the three questions."""
    rounds = min(5, options.objective_rounds)
    with tempfile.TemporaryDirectory(prefix="preparing-") as folder:
        scratch = Path(folder)
        corpus, text_bytes = _make_corpus(
            scratch / "corpus", max(3_000_000, options.corpus_bytes // 2)
        )
        tokenizer = train_tokenizer(
            iterate_documents([corpus]),
            vocab_size=options.vocab_size,
            sample_bytes=min(2**22, options.corpus_bytes),
            out=scratch / "tokenizer",
        )
        return [
            _tokenization(corpus, text_bytes, tokenizer, scratch, rounds),
            _ranks(corpus, text_bytes, scratch, rounds),
            _writing(scratch, rounds, documents=options.corpus_bytes // 5_000),
        ]


def _make_corpus(folder: Path, wanted_bytes: int) -> tuple[Path, int]:
    """The standard library again and again, no document quite like another."""
    source = write_standard_library_corpus(folder / "once")
    corpus = folder / "corpus.jsonl"
    text_bytes, copy = 0, 0
    with corpus.open("w", encoding="utf-8") as stream:
        while text_bytes < wanted_bytes:
            for document in iterate_documents([source]):
                text = f"# copy {copy}\n{document.text}"
                text_bytes += len(text.encode())
                record = {"id": f"{copy}/{document.name}", "text": text}
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
                if text_bytes >= wanted_bytes:
                    break
            copy += 1
    return corpus, text_bytes


def alternate(functions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each function returns, called in turn."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(function())
    return {name: statistics.median(values) for name, values in found.items()}


def _cpu_seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def _tokenization(
    corpus: Path, text_bytes: int, tokenizer: DocumentTokenizer, scratch: Path, rounds: int
) -> Table:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(scratch / "tokenizer" / "spiece.model")
    )
    texts = [document.text for document in iterate_documents([corpus])]
    cores = os.sched_getaffinity(0)
    folders = (scratch / f"tokenization-{number}" for number in itertools.count())

    def build() -> None:
        build_dataset([corpus], tokenizer, next(folders))

    cases: dict[str, Callable[[], object]] = {
        "sentencepiece, a text a call, lists": lambda: [processor.encode(t) for t in texts],
        "sentencepiece, a text a call, numpy": lambda: [
            processor.encode(text, return_type="numpy") for text in texts
        ],
        "encode_documents": lambda: tokenizer.encode_documents(texts),
        "spade data build": build,
    }
    # One core, so that a build uses one thread as the others do.
    os.sched_setaffinity(0, {min(cores)})
    try:
        seconds = alternate(
            {name: (lambda case=case: _cpu_seconds(case)) for name, case in cases.items()}, rounds
        )
    finally:
        os.sched_setaffinity(0, cores)
    fastest = min(seconds[name] for name in list(cases)[:2])
    rows = [
        {
            "what": name,
            "text MB/s a core": text_bytes / 1e6 / taken,
            "of sentencepiece": fastest / taken,
        }
        for name, taken in seconds.items()
    ]
    return Table(
        "tokenization",
        f"From {text_bytes / 1e6:.0f} MB of text to ids (CPU time)",
        rows,
        (_BUILD_NOTE,),
    )


def _ranks(corpus: Path, text_bytes: int, scratch: Path, rounds: int) -> Table:
    mpiexec = Path(sys.executable).with_name("mpiexec")
    launcher = str(mpiexec) if mpiexec.exists() else shutil.which("mpiexec")
    if launcher is None or len(os.sched_getaffinity(0)) < 2:
        return Table("ranks", "MPI ranks", [], ("not measured: no mpiexec, or a single core",))

    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(rounds):
        for ranks, measured in found.items():
            out = scratch / "ranks"
            shutil.rmtree(out, ignore_errors=True)
            arguments = [str(corpus), str(scratch / "tokenizer"), str(out)]
            done = subprocess.run(
                [launcher, "-n", str(ranks), sys.executable, "-c", _RANK, *arguments],
                capture_output=True,
                text=True,
                check=True,
            )
            measured.append(json.loads(done.stdout))
    rows = []
    for ranks, measured in found.items():
        seconds = statistics.median(one["seconds"] for one in measured)
        rows.append(
            {
                "ranks": ranks,
                "text MB/s": text_bytes / 1e6 / seconds,
                "of one rank": statistics.median(one["seconds"] for one in found[1]) / seconds,
                "CPU s of all": statistics.median(sum(one["cpu_seconds"]) for one in measured),
                "CPU s of the busiest": statistics.median(
                    max(one["cpu_seconds"]) for one in measured
                ),
            }
        )
    note = "where other programs use the cores, the CPU times say more than the clock does"
    return Table("ranks", "spade data build under MPI, a core a rank", rows, (note,))


def _writing(scratch: Path, rounds: int, documents: int) -> Table:
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(_MEAN_TOKENS) - 0.5, 1.0, documents), 2, 2**16)
    arrays = [
        random.integers(0, 2**16, int(length), dtype=np.uint16).astype(_DTYPE) for length in lengths
    ]
    names = [f"document-{number}" for number in range(documents)]
    payload_bytes = sum(array.nbytes for array in arrays)
    folder = scratch / "writing"
    folder.mkdir()

    def ours() -> None:
        write_shard(folder, 0, zip(names, arrays, strict=True), _DTYPE)

    def python_tarfile() -> None:
        with tarfile.open(folder / "tarfile.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, array in zip(names, arrays, strict=True):
                for suffix, content in ((".tokens.npy", _npy(array)), (".json", _metadata(name))):
                    member = tarfile.TarInfo(name + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def webdataset_writer() -> None:
        import webdataset

        with webdataset.TarWriter(str(folder / "webdataset.tar")) as sink:
            for name, array in zip(names, arrays, strict=True):
                sink.write({"__key__": name, "tokens.npy": array, "json": {"name": name}})

    cases = {
        "spade (checksums of all, flushed to the disk)": (ours, "shard-000000.tar"),
        "Python tarfile, ustar": (python_tarfile, "tarfile.tar"),
        "webdataset TarWriter": (webdataset_writer, "webdataset.tar"),
    }
    seconds = alternate(
        {name: (lambda case=case: _cpu_seconds(case)) for name, (case, _) in cases.items()}, rounds
    )
    rows = [
        {
            "writer": name,
            "payload MB/s a core": payload_bytes / 1e6 / seconds[name],
            "documents/s": documents / seconds[name],
            "bytes of payload in a byte of tar": payload_bytes / (folder / file).stat().st_size,
        }
        for name, (_, file) in cases.items()
    ]
    title = (
        f"Writing {documents:,} documents of {payload_bytes / documents / 2:,.0f} ids (CPU time)"
    )
    return Table("writing", title, rows, ("payload: two bytes an id",))


def _npy(array: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _metadata(name: str) -> bytes:
    return json.dumps({"name": name}).encode()
