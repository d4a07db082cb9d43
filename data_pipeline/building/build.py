"""From a corpus and a tokenizer to a data set, alone or under MPI.

Rank 0 plans; every rank writes shards; rank 0 writes the manifests last. A shard under its final
name is complete, so a build that was interrupted in any way goes on when it is started again, and
the bytes are the same as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.building.build_record import TOKENIZER_FOLDER, BuildFolder, BuildOptions
from data_pipeline.building.plan import HELDOUT, PART_NAMES, TRAIN, Planner, PlanReader, ShardPlan
from data_pipeline.building.scan_together import scan_corpus
from data_pipeline.building.shard_building import Failure, ShardMaker, tokens_by_source
from data_pipeline.building.team import Report, Team, joined_team
from data_pipeline.corpora.corpus import Problem, find_files, is_heldout, no_usable_documents
from data_pipeline.corpora.corpus_files import CorpusFile
from data_pipeline.corpora.corpus_locations import Location
from data_pipeline.corpora.corpus_scan import UnitScan, corpus_fingerprint
from data_pipeline.corpora.deduplication import find_duplicates
from data_pipeline.corpora.filters import TextRules
from data_pipeline.errors import DataError
from data_pipeline.files import canonical_json, explaining, readable_json
from data_pipeline.progress import Progress, ProgressCallback, Work
from data_pipeline.remote.locations import check_location
from data_pipeline.shards.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, ShardInfo
from data_pipeline.shards.shard_index import ShardIndex
from data_pipeline.shards.shard_writer import finished_shard
from data_pipeline.shards.tar_format import shard_stem
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

# Checking a finished shard costs this little beside writing it.
_CHECKING_IS_CHEAPER = 32


@dataclass(frozen=True)
class BuildSummary:
    """What a build did; the same on every rank.

    Attributes:
        out: The folder.
        train: Manifest of `out/train`.
        heldout: Manifest of `out/heldout`, or None if nothing is held out.
        quarantined: Documents left out for a fault, listed in `out/quarantine.jsonl`.
        duplicates: Documents left out because their text occurred before.
        filtered: Rule -> documents that it left out.
        ignored_files: Files of other kinds in the corpus folders.
        shards_written: Shards written now.
        shards_kept: Shards found finished.
        already_complete: Whether the whole data set was there before.
    """

    out: Path
    train: Manifest
    heldout: Manifest | None
    quarantined: int
    duplicates: int
    filtered: dict[str, int]
    ignored_files: int
    shards_written: int
    shards_kept: int
    already_complete: bool


def build_dataset(
    inputs: Sequence[Location],
    tokenizer: DocumentTokenizer,
    out: Path,
    *,
    heldout_fraction: float = 0.05,
    shard_text_bytes: int | None = None,
    text_field: str = "text",
    name_field: str = "id",
    rules: TextRules | None = None,
    keep_duplicates: bool = False,
    keep_names: bool = False,
    progress: ProgressCallback | None = None,
) -> BuildSummary:
    """Writes `out/train`, `out/heldout`, and a copy of the tokenizer in `out/tokenizer`.

    Under an MPI launcher every rank calls this with the same arguments. If any rank fails, all of
    them end.

    Args:
        inputs: `.txt`, `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet` files, folders, patterns
            (`docs/**/*.txt`), or URLs of those.
        tokenizer: Makes the ids.
        out: Folder to write: a new or empty one, or that of the same build.
        heldout_fraction: Share of documents held out, chosen by a hash of their names.
        shard_text_bytes: Text in a shard; by default a 64th of the corpus within 4 to 256 MiB.
        text_field: JSON field or parquet column with the text.
        name_field: JSON field or parquet column with the name.
        rules: Normalisation and filters; by default the texts are taken as they are.
        keep_duplicates: Keep documents whose text has occurred before.
        keep_names: Put documents' names beside their ids, about a kilobyte for each.
        progress: Called on rank 0.

    Raises:
        DataError: If options, corpus or `out` are unusable, or `out` holds another build.
    """
    is_heldout("", heldout_fraction)
    if shard_text_bytes is not None and shard_text_bytes < 1:
        raise DataError(f"shard_text_bytes must be at least 1, not {shard_text_bytes}")
    options = BuildOptions(
        text_field=text_field,
        name_field=name_field,
        rules=rules or TextRules(),
        heldout_fraction=heldout_fraction,
        keeps_duplicates=keep_duplicates,
        keeps_names=keep_names,
        shard_text_bytes=shard_text_bytes,
    )
    folder = BuildFolder(Path(out))
    with (
        joined_team() as team,
        folder.locked(inputs) if team.is_first else contextlib.nullcontext(),
    ):
        return _Build(team, tokenizer, folder, options, progress).run(inputs)


class _Build:
    def __init__(
        self,
        team: Team,
        tokenizer: DocumentTokenizer,
        folder: BuildFolder,
        options: BuildOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self._team = team
        self._tokenizer = tokenizer
        self._folder = folder
        self._options = options
        self._progress = progress

    def run(self, inputs: Sequence[Location]) -> BuildSummary:
        found = find_files(inputs) if self._team.is_first else ([], 0)
        files = self._shared_files(found[0])
        # Files may be compressed: how much text they hold is not known before.
        tell = self._tell("read corpus", None)
        scans = scan_corpus(self._team, files, self._options.reading, self._folder.scan_table, tell)
        shards, finished, failures, source = self._team.broadcast(
            self._prepare(inputs, files, scans) if self._team.is_first else None
        )
        shards = [ShardPlan.from_json(shard) for shard in shards]
        written = self._write(files, shards, finished, failures)
        result = self._team.broadcast(
            self._finish(shards, written, scans, source) if self._team.is_first else None
        )
        heldout = result["parts"][HELDOUT]
        return BuildSummary(
            out=self._folder.out,
            train=Manifest.from_dict(result["parts"][TRAIN]),
            heldout=None if heldout is None else Manifest.from_dict(heldout),
            quarantined=result["quarantined"],
            duplicates=source["duplicates"]["documents"],
            filtered=source["filtered"],
            ignored_files=self._team.broadcast(found[1]),
            shards_written=result["written"],
            shards_kept=len(shards) - result["written"],
            already_complete=result["already_complete"],
        )

    def _shared_files(self, found: Sequence[CorpusFile]) -> list[CorpusFile]:
        """The files as rank 0 has found them."""
        shared = self._team.broadcast(
            [
                [str(file.location), file.name, file.source, file.size_bytes, file.version]
                for file in found
            ]
        )
        if self._team.is_first:
            return list(found)
        return [CorpusFile(check_location(location), *rest) for location, *rest in shared]

    def _tell(self, stage: str, total: int | None) -> Callable[[Work], None]:
        def tell(work: Work) -> None:
            if self._progress is not None:
                self._progress(
                    Progress(stage, work.size_bytes, total, "bytes", work.documents, work.tokens)
                )

        return tell

    def _prepare(
        self,
        inputs: Sequence[Location],
        files: Sequence[CorpusFile],
        scans: Sequence[UnitScan],
    ) -> list[Any]:
        """Plans, makes sure that `out` belongs to this plan, and says what is finished in it."""
        options = self._options
        tables = [self._folder.scan_table(number) for number in range(len(scans))]
        documents = sum(scan.documents for scan in scans)
        filtered = _summed(scan.filtered for scan in scans)
        doubles = None
        if not options.keeps_duplicates:
            doubles = find_duplicates(tables, documents, self._folder.work)
        sources = [file.source for file in files]
        planner = Planner(tables, documents, sources, options.heldout_fraction, doubles)
        shards = planner.shards(options.shard_text_bytes)
        problems = [Problem(*problem) for scan in scans for problem in scan.problems]
        if not shards:
            raise no_usable_documents(len(files), problems[0] if problems else None, filtered)
        _check_parts(shards, options.heldout_fraction)
        source: dict[str, Any] = {
            "files": len(files),
            "documents": sum(shard.documents for shard in shards),
            "duplicates": {
                "documents": planner.double_documents,
                "text_bytes": planner.double_text_bytes,
            },
            "filtered": filtered,
            "fingerprint": corpus_fingerprint(tables, scans),
            "heldout_fraction": options.heldout_fraction,
            "normalization": options.rules.normalization,
            "rules": options.rules.to_json(),
        }
        identity = {
            "format_version": FORMAT_VERSION,
            "corpus_fingerprint": source["fingerprint"],
            "tokenizer_fingerprint": self._tokenizer.fingerprint,
            "heldout_fraction": options.heldout_fraction,
            "keeps_duplicates": options.keeps_duplicates,
            "keeps_names": options.keeps_names,
            "rules": options.rules.to_json(),
            # The plan stands for the shard size and for the fields, as far as they matter. Its
            # positions do not matter: they change when the same documents lie in other files.
            "plan_fingerprint": hashlib.sha256(canonical_json(_essence(shards))).hexdigest(),
        }
        source["inputs"] = self._folder.claim(identity, inputs, options, files, shards)
        finished = [
            (self._folder.part(shard.part) / f"{shard_stem(shard.number)}.tar").exists()
            for shard in shards
        ]
        return [shards, finished, self._folder.known_failures(), source]

    def _write(
        self,
        files: Sequence[CorpusFile],
        shards: Sequence[ShardPlan],
        finished: Sequence[bool],
        known_failures: dict[str, list[Failure]],
    ) -> list[Any]:
        """Makes every shard that is not finished.

        Returns:
            On rank 0 of each shard its `ShardInfo`, failures, tokens by source, and whether it
            was written now.
        """
        reader = PlanReader(files, self._options.reading)
        maker = ShardMaker(
            reader,
            self._tokenizer,
            num_threads=self._team.threads(),
            keep_names=self._options.keeps_names,
        )

        def write(task: int, report: Report) -> Any:
            shard = shards[task]
            folder = self._folder.part(shard.part)
            failures = list(known_failures.get(shard.name, []))
            info = finished_shard(folder, shard.number) if finished[task] else None
            is_kept = info is not None and info.documents + len(failures) == shard.documents
            if info is not None and is_kept:
                report(Work(shard.text_bytes, info.documents, info.tokens))
            else:
                failures.clear()

                def keep(found: Sequence[Failure]) -> None:
                    self._folder.save_failures(shard, found)
                    failures.extend(found)

                info = maker.make(shard, folder, report, keep)
            index = ShardIndex.from_bytes((folder / info.index_file).read_bytes())
            amounts = tokens_by_source(shard, index.lengths_tokens, failures)
            return [vars(info), failures, amounts, not is_kept]

        costs = [
            shard.text_bytes // (_CHECKING_IS_CHEAPER if is_finished else 1)
            for shard, is_finished in zip(shards, finished, strict=True)
        ]
        total_bytes = sum(shard.text_bytes for shard in shards)
        return self._team.run(write, costs, self._tell("write shards", total_bytes))

    def _finish(
        self,
        shards: Sequence[ShardPlan],
        written: Sequence[Any],
        scans: Sequence[UnitScan],
        source: dict[str, Any],
    ) -> dict[str, Any]:
        """Writes what is common to all shards, the manifest of the training part last."""
        problems = [problem for scan in scans for problem in scan.problems]
        failures = {
            shard.name: [(position, name, why) for position, name, why in item[1]]
            for shard, item in zip(shards, written, strict=True)
            if item[1]
        }
        quarantined = len(problems) + sum(map(len, failures.values()))
        self._folder.save_quarantine(problems, failures)
        self._tokenizer.save(self._folder.out / TOKENIZER_FOLDER)
        num_written = sum(is_new for *_, is_new in written)
        already_complete = num_written == 0
        parts: list[dict[str, Any] | None] = [None, None]
        for part in (HELDOUT, TRAIN):
            mine = [index for index, shard in enumerate(shards) if shard.part == part]
            if not mine:
                continue
            facts = {
                **source,
                "part": PART_NAMES[part],
                "quarantined": quarantined,
                "text_bytes": sum(shards[index].text_bytes for index in mine),
                "sources": _sources(source["inputs"], [written[index][2] for index in mine]),
            }
            infos = (ShardInfo(**written[index][0]) for index in mine)
            # A shard all of whose documents failed stays, so that it is not tried again and again.
            manifest = self._manifest(tuple(info for info in infos if info.documents), facts)
            path = self._folder.part(part) / MANIFEST_FILE
            with explaining("read", path):
                existing = path.read_bytes() if path.is_file() else b""
            if existing != readable_json(manifest.to_dict()):
                already_complete = False
                manifest.save(self._folder.part(part))
            parts[part] = manifest.to_dict()
        self._folder.remove_work()
        return {
            "parts": parts,
            "written": num_written,
            "quarantined": quarantined,
            "already_complete": already_complete,
        }

    def _manifest(self, shards: tuple[ShardInfo, ...], source: dict[str, Any]) -> Manifest:
        if not shards:
            raise DataError(
                f"no document of the {source['part']} part can be tokenized: "
                f"{self._folder.out / 'quarantine.jsonl'} says why"
            )
        return Manifest.of_shards(shards, self._tokenizer, source)


def _summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for some in counts:
        for name, count in some.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _essence(shards: Sequence[ShardPlan]) -> list[list[Any]]:
    return [[s.part, s.number, s.documents, s.text_bytes, s.checksum] for s in shards]


def _check_parts(shards: Sequence[ShardPlan], fraction: float) -> None:
    documents = [
        sum(shard.documents for shard in shards if shard.part == part) for part in (TRAIN, HELDOUT)
    ]
    if documents[TRAIN] == 0 or (documents[HELDOUT] == 0 and fraction > 0):
        empty = TRAIN if documents[TRAIN] == 0 else HELDOUT
        raise DataError(
            f"heldout_fraction {fraction} leaves the {PART_NAMES[empty]} part of "
            f"{sum(documents)} documents empty: add documents, change the fraction, or hold "
            "nothing out with 0"
        )


def _sources(names: Sequence[str], amounts: Sequence[Any]) -> list[dict[str, Any]]:
    totals = [[0, 0] for _ in names]
    for shard in amounts:
        for source, documents, tokens in shard:
            totals[source][0] += documents
            totals[source][1] += tokens
    return [
        {"input": name, "documents": documents, "tokens": tokens}
        for name, (documents, tokens) in zip(names, totals, strict=True)
    ]
