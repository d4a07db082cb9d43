"""From a corpus and a tokenizer to a data set, alone or under MPI.

Rank 0 plans; every rank writes its own shards; rank 0 writes the manifests last. A shard under its
final name is complete, so a build that was interrupted in any way goes on when it is started again,
and the bytes are the same as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.corpus import Problem, find_files, is_heldout, no_usable_documents
from data_pipeline.corpus_files import CorpusFile
from data_pipeline.errors import DataError
from data_pipeline.files import (
    PARTIAL_SUFFIX,
    canonical_json,
    explaining,
    make_folder,
    read_json_object,
    readable_json,
    remove_partial_files,
    write_atomically,
)
from data_pipeline.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, ShardInfo
from data_pipeline.plan import (
    HELDOUT,
    PART_NAMES,
    TRAIN,
    FileScan,
    PlanReader,
    ReadingOptions,
    ShardPlan,
    block_text_bytes,
    corpus_fingerprint,
    plan_shards,
    scan_file,
)
from data_pipeline.progress import Progress, ProgressCallback
from data_pipeline.shard_writer import finished_shard, write_shard
from data_pipeline.tar_format import shard_stem
from data_pipeline.team import Report, Team, joined_team, split_by_cost
from data_pipeline.tokenizer import DocumentTokenizer

BUILD_FILE = "build.json"
QUARANTINE_FILE = "quarantine.jsonl"
TOKENIZER_FOLDER = "tokenizer"

_LOCK_FILE = "build.lock"
# Checking a finished shard costs this little beside writing it.
_CHECKING_IS_CHEAPER = 32


@dataclass(frozen=True)
class BuildSummary:
    """What a build did; the same on every rank.

    Attributes:
        out: The folder.
        train: Manifest of `out/train`.
        heldout: Manifest of `out/heldout`, or None if nothing is held out.
        quarantined: Documents left out, listed in `out/quarantine.jsonl`.
        ignored_files: Files of other kinds in the corpus folders.
        shards_written: Shards written now.
        shards_kept: Shards found finished.
        already_complete: Whether the whole data set was there before.
    """

    out: Path
    train: Manifest
    heldout: Manifest | None
    quarantined: int
    ignored_files: int
    shards_written: int
    shards_kept: int
    already_complete: bool


def build_dataset(
    inputs: Sequence[Path],
    tokenizer: DocumentTokenizer,
    out: Path,
    *,
    heldout_fraction: float = 0.05,
    shard_text_bytes: int | None = None,
    text_field: str = "text",
    name_field: str = "id",
    progress: ProgressCallback | None = None,
) -> BuildSummary:
    """Writes `out/train`, `out/heldout`, and a copy of the tokenizer in `out/tokenizer`.

    Under an MPI launcher every rank calls this with the same arguments. If any rank fails, all of
    them end.

    Args:
        inputs: `.txt`, `.jsonl`, `.jsonl.gz`, `.parquet` files, or folders of those.
        tokenizer: Makes the ids.
        out: Folder to write: a new or empty one, or that of the same build.
        heldout_fraction: Share of documents held out, chosen by a hash of their names.
        shard_text_bytes: Text in a shard; by default a 64th of the corpus within 4 to 256 MiB.
        text_field: JSON field or parquet column with the text.
        name_field: JSON field or parquet column with the name.
        progress: Called on rank 0.

    Raises:
        DataError: If options, corpus or `out` are unusable, or `out` holds another build.
    """
    is_heldout("", heldout_fraction)
    if shard_text_bytes is not None and shard_text_bytes < 1:
        raise DataError(f"shard_text_bytes must be at least 1, not {shard_text_bytes}")
    options = ReadingOptions(text_field, name_field, heldout_fraction)
    with joined_team() as team, _locked(team, Path(out), inputs):
        build = _Build(team, tokenizer, Path(out), options, shard_text_bytes, progress)
        return build.run(inputs)


class _Build:
    def __init__(
        self,
        team: Team,
        tokenizer: DocumentTokenizer,
        out: Path,
        options: ReadingOptions,
        shard_text_bytes: int | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._team = team
        self._tokenizer = tokenizer
        self._out = out
        self._options = options
        self._shard_text_bytes = shard_text_bytes
        self._progress = progress

    def run(self, inputs: Sequence[Path]) -> BuildSummary:
        found = find_files(inputs) if self._team.is_first else ([], 0)
        named = self._team.broadcast([[str(file.path), file.name] for file in found[0]])
        files = [CorpusFile(Path(path), name) for path, name in named]
        scans = self._scan(files)
        shards, finished, source = self._team.broadcast(
            self._prepare(inputs, files, scans) if self._team.is_first else None
        )
        shards = [ShardPlan.from_json(shard) for shard in shards]
        infos = self._write(files, shards, finished)
        result = self._team.broadcast(
            self._finish(shards, infos, scans, source) if self._team.is_first else None
        )
        heldout = result["parts"][HELDOUT]
        return BuildSummary(
            out=self._out,
            train=Manifest.from_dict(result["parts"][TRAIN]),
            heldout=None if heldout is None else Manifest.from_dict(heldout),
            quarantined=source["quarantined"],
            ignored_files=self._team.broadcast(found[1]),
            shards_written=result["written"],
            shards_kept=len(shards) - result["written"],
            already_complete=result["already_complete"],
        )

    def _tell(self, stage: str, total: int | None, unit: str) -> Callable[[int], None]:
        def tell(done: int) -> None:
            if self._progress is not None:
                self._progress(Progress(stage, done, total, unit))

        return tell

    def _scan(self, files: Sequence[CorpusFile]) -> list[FileScan]:
        block_bytes = block_text_bytes(self._shard_text_bytes)
        sizes_bytes = []
        for file in files:
            with explaining("read", file.path):
                sizes_bytes.append(file.path.stat().st_size)

        def scan(number: int, report: Report) -> Any:
            return scan_file(files, number, self._options, block_bytes, report).to_json()

        owners = split_by_cost(sizes_bytes, self._team.size)
        # Files may be compressed: how much text they hold is not known before.
        tell = self._tell("read corpus", None, "bytes")
        return [FileScan.from_json(value) for value in self._team.run(scan, owners, tell)]

    def _prepare(
        self, inputs: Sequence[Path], files: Sequence[CorpusFile], scans: Sequence[FileScan]
    ) -> list[Any]:
        """Plans, makes sure that `out` belongs to this plan, and says what is finished in it."""
        problems = [Problem(*problem) for scan in scans for problem in scan.problems]
        shards = plan_shards(scans, self._shard_text_bytes)
        if not shards:
            raise no_usable_documents(len(files), problems[0] if problems else None)
        fraction = self._options.heldout_fraction
        documents = [
            sum(shard.documents for shard in shards if shard.part == part)
            for part in (TRAIN, HELDOUT)
        ]
        if documents[TRAIN] == 0 or (documents[HELDOUT] == 0 and fraction > 0):
            empty = TRAIN if documents[TRAIN] == 0 else HELDOUT
            raise DataError(
                f"heldout_fraction {fraction} leaves the {PART_NAMES[empty]} part of "
                f"{sum(documents)} documents empty: add documents, change the fraction, or hold "
                "nothing out with 0"
            )
        source: dict[str, Any] = {
            "files": len(files),
            "documents": sum(documents),
            "quarantined": len(problems),
            "fingerprint": corpus_fingerprint(scans),
            "heldout_fraction": fraction,
        }
        identity = {
            "format_version": FORMAT_VERSION,
            "corpus_fingerprint": source["fingerprint"],
            "tokenizer_fingerprint": self._tokenizer.fingerprint,
            "heldout_fraction": fraction,
            # The plan stands for the shard size and for the fields, as far as they matter.
            "plan_fingerprint": hashlib.sha256(canonical_json(shards)).hexdigest(),
        }
        source["inputs"] = self._claim_folder(identity, [Path(path).name for path in inputs])
        finished = [
            (self._folder(shard.part) / f"{shard_stem(shard.number)}.tar").exists()
            for shard in shards
        ]
        return [shards, finished, source]

    def _folder(self, part: int) -> Path:
        return self._out / PART_NAMES[part]

    def _claim_folder(self, identity: dict[str, Any], inputs: list[str]) -> list[str]:
        """Makes `out` ready for this build and returns the input names first given for it."""
        path = self._out / BUILD_FILE
        if path.exists():
            remedy = f"choose another folder, or remove {self._out} first"
            recorded = read_json_object(path, "the record of a build", remedy)
            differing = sorted(key for key in identity if recorded.get(key) != identity[key])
            if differing:
                raise DataError(
                    f"{self._out} holds a build from something else (differing: "
                    f"{', '.join(differing)}): {remedy}"
                )
            inputs = list(recorded.get("inputs", inputs))
        else:
            strangers = sorted(
                entry.name
                for entry in self._out.iterdir()
                if entry.name != _LOCK_FILE and not entry.name.endswith(PARTIAL_SUFFIX)
            )
            if strangers:
                raise DataError(
                    f"{self._out} is not empty (it holds {strangers[0]!r}) and holds no build: "
                    "choose a new folder"
                )
            write_atomically(path, readable_json({**identity, "inputs": inputs}))
        folders = [self._folder(TRAIN), self._out / TOKENIZER_FOLDER]
        if self._options.heldout_fraction > 0:
            folders.append(self._folder(HELDOUT))
        for folder in folders:
            make_folder(folder)
            remove_partial_files(folder)
        remove_partial_files(self._out)
        return inputs

    def _write(
        self, files: Sequence[CorpusFile], shards: Sequence[ShardPlan], finished: Sequence[bool]
    ) -> list[Any]:
        reader = PlanReader(files, self._options)
        num_threads = self._team.threads()
        dtype = self._tokenizer.token_dtype

        def write(task: int, report: Report) -> Any:
            shard = shards[task]
            folder = self._folder(shard.part)
            kept = finished_shard(folder, shard.number) if finished[task] else None
            if kept is not None and kept.documents == shard.documents:
                report(shard.text_bytes)
                return [vars(kept), False]
            documents = self._tokenized(reader, shard, num_threads, report)
            info = write_shard(folder, shard.number, documents, dtype)
            return [vars(info), True]

        costs = [
            shard.text_bytes // (_CHECKING_IS_CHEAPER if is_finished else 1)
            for shard, is_finished in zip(shards, finished, strict=True)
        ]
        total_bytes = sum(shard.text_bytes for shard in shards)
        owners = split_by_cost(costs, self._team.size)
        return self._team.run(write, owners, self._tell("write shards", total_bytes, "bytes"))

    def _tokenized(
        self, reader: PlanReader, shard: ShardPlan, num_threads: int, report: Report
    ) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[Any]]]]:
        reported_bytes = 0
        for number, document in enumerate(reader.read(shard), start=1):
            tokens = self._tokenizer.encode(document.text, num_threads=num_threads)
            yield (
                document.name,
                np.append(tokens, np.array(self._tokenizer.eos_token_id, tokens.dtype)),
            )
            # By documents, so that the sum is the planned one without measuring texts again.
            now_bytes = shard.text_bytes * number // shard.documents
            report(now_bytes - reported_bytes)
            reported_bytes = now_bytes

    def _finish(
        self,
        shards: Sequence[ShardPlan],
        infos: Sequence[Any],
        scans: Sequence[FileScan],
        source: dict[str, Any],
    ) -> dict[str, Any]:
        """Writes what is common to all shards, the manifest of the training part last."""
        problems = [problem for scan in scans for problem in scan.problems]
        if problems:
            lines = (
                canonical_json({"name": name, "reason": reason}) + b"\n"
                for name, reason in problems
            )
            write_atomically(self._out / QUARANTINE_FILE, b"".join(lines))
        self._tokenizer.save(self._out / TOKENIZER_FOLDER)
        written = sum(is_written for _, is_written in infos)
        already_complete = written == 0
        parts: list[dict[str, Any] | None] = [None, None]
        for part in (HELDOUT, TRAIN):
            mine = [index for index, shard in enumerate(shards) if shard.part == part]
            if not mine:
                continue
            manifest = self._manifest(
                tuple(ShardInfo(**infos[index][0]) for index in mine),
                {
                    **source,
                    "part": PART_NAMES[part],
                    "text_bytes": sum(shards[index].text_bytes for index in mine),
                },
            )
            path = self._folder(part) / MANIFEST_FILE
            with explaining("read", path):
                existing = path.read_bytes() if path.is_file() else b""
            if existing != readable_json(manifest.to_dict()):
                already_complete = False
                manifest.save(self._folder(part))
            parts[part] = manifest.to_dict()
        return {"parts": parts, "written": written, "already_complete": already_complete}

    def _manifest(self, shards: tuple[ShardInfo, ...], source: dict[str, Any]) -> Manifest:
        tokenizer = self._tokenizer
        return Manifest(
            format_version=FORMAT_VERSION,
            dtype=tokenizer.token_dtype.str,
            vocab_size=tokenizer.vocab_size,
            piece_count=tokenizer.piece_count,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tokenizer_fingerprint=tokenizer.fingerprint,
            documents=sum(shard.documents for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            shards=shards,
            source=source,
        )


@contextlib.contextmanager
def _locked(team: Team, out: Path, inputs: Sequence[Path]) -> Iterator[None]:
    """Keeps a second build away from `out`; the lock falls with the process, however it ends."""
    if not team.is_first:
        yield
        return
    for path in map(Path, inputs):
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"{out} lies within the corpus folder {path}, so its files would become part of "
                "the corpus: choose a folder outside"
            )
    make_folder(out)
    with contextlib.ExitStack() as stack:
        with explaining("write", out / _LOCK_FILE):
            lock = stack.enter_context((out / _LOCK_FILE).open("ab"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"another build is writing {out}: wait for it to end, or stop it"
            ) from error
        except OSError:
            # A file system without locks: what keeps two builds apart is then the user.
            pass
        yield
