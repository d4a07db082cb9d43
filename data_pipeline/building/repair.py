"""Making damaged or missing shards again, byte for byte, from the source of the data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.building.build_record import TOKENIZER_FOLDER, BuildFolder, BuildRecord
from data_pipeline.building.plan import HELDOUT, PART_NAMES, TRAIN, CorpusChangedError, PlanReader
from data_pipeline.building.shard_building import ShardMaker
from data_pipeline.corpora.corpus import find_files
from data_pipeline.corpora.corpus_files import CorpusFile
from data_pipeline.corpora.corpus_locations import Location
from data_pipeline.errors import DataError
from data_pipeline.files import explaining, make_folder, synchronize_folder
from data_pipeline.inspection.verify import verify_dataset
from data_pipeline.progress import Progress, ProgressCallback, Work
from data_pipeline.shards.manifest import Manifest, ShardInfo
from data_pipeline.shards.tar_format import shard_stem
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

_REPAIR_FOLDER = "repair"


@dataclass(frozen=True)
class RepairReport:
    """What a repair found and did.

    Attributes:
        folder: The data set.
        shards: Shards in it.
        repaired: Names of the shards made again, as PART/FILE.
    """

    folder: Path
    shards: int
    repaired: tuple[str, ...]


def repair_dataset(
    out: Path,
    inputs: Sequence[Location] = (),
    progress: ProgressCallback | None = None,
) -> RepairReport:
    """Finds all damaged or missing shards and makes exactly those again.

    A shard is put in place only if it is the one that the manifest names, byte for byte.

    Args:
        out: Folder that a build wrote.
        inputs: Where the corpus lies now, in the order of the build; by default where it lay then.
        progress: Told of the checking and of the making.

    Raises:
        DataError: If `out` holds no complete build, or the source is not what it was.
    """
    folder = BuildFolder(Path(out))
    record = folder.read_record()
    has_heldout = record.options.heldout_fraction > 0
    manifests = {
        part: Manifest.load(folder.part(part)) for part in (TRAIN, HELDOUT)[: 1 + has_heldout]
    }
    num_shards = sum(len(manifest.shards) for manifest in manifests.values())
    with folder.locked(inputs):
        try:
            wanted = [
                (part, info)
                for part, manifest in manifests.items()
                for info in _damaged(folder.part(part), manifest, progress)
            ]
            if wanted:
                _remake(folder, record, manifests[TRAIN], wanted, inputs, progress)
        finally:
            folder.remove_work()
    names = tuple(_name(part, info) for part, info in wanted)
    return RepairReport(folder.out, num_shards, names)


def _damaged(
    folder: Path, manifest: Manifest, progress: ProgressCallback | None
) -> list[ShardInfo]:
    damaged = {damage.shard for damage in verify_dataset(folder, progress).damages}
    return [info for info in manifest.shards if info.file in damaged]


def _remake(
    folder: BuildFolder,
    record: BuildRecord,
    manifest: Manifest,
    wanted: Sequence[tuple[int, ShardInfo]],
    inputs: Sequence[Location],
    progress: ProgressCallback | None,
) -> None:
    tokenizer = DocumentTokenizer.load(folder.out / TOKENIZER_FOLDER)
    manifest.check_tokenizer(tokenizer)
    plans = {(shard.part, f"{shard_stem(shard.number)}.tar"): shard for shard in record.shards}
    files = _recorded_files(record, inputs or record.locations)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    maker = ShardMaker(
        PlanReader(files, record.options.reading),
        tokenizer,
        num_threads=cores or 1,
        keep_names=record.options.keeps_names,
    )
    shards = [plans[part, info.file] for part, info in wanted]
    total_bytes = sum(shard.text_bytes for shard in shards)
    done = Work()

    def report(work: Work) -> None:
        nonlocal done
        done = done.plus(work)
        if progress is not None:
            progress(
                Progress(
                    "make shards again",
                    done.size_bytes,
                    total_bytes,
                    "bytes",
                    done.documents,
                    done.tokens,
                )
            )

    scratch = folder.work / _REPAIR_FOLDER
    make_folder(scratch)
    for shard, (part, info) in zip(shards, wanted, strict=True):
        try:
            made = maker.make(shard, scratch, report, lambda _: None)
        except CorpusChangedError as error:
            raise DataError(
                f"the source has changed: {_name(part, info)} cannot be made again from it; "
                "restore the source, or name where it lies now with --input"
            ) from error
        if made != info:
            raise DataError(
                f"{_name(part, info)} comes out otherwise than it was (another version of "
                "sentencepiece?): build the data set again"
            )
        _put_in_place(scratch, folder.part(shard.part), info)


def _name(part: int, info: ShardInfo) -> str:
    return f"{PART_NAMES[part]}/{info.file}"


def _put_in_place(scratch: Path, folder: Path, info: ShardInfo) -> None:
    make_folder(folder)
    with explaining("write", folder / info.file):
        (scratch / info.index_file).replace(folder / info.index_file)
        (scratch / info.file).replace(folder / info.file)
        synchronize_folder(folder)


def _recorded_files(record: BuildRecord, inputs: Sequence[Location]) -> list[CorpusFile]:
    """The corpus files of the build, in its order.

    Raises:
        DataError: If one is not there any more.
    """
    try:
        found, _ = find_files(inputs)
    except DataError as error:
        raise DataError(
            f"the source cannot be found: {error}; name where it lies now with --input"
        ) from error
    files = {(file.source, file.name): file for file in found}
    if len({source for source, _ in record.files}) == 1 == len(inputs):
        # One file may have another name now.
        files.update({record.files[0]: found[0]} if len(record.files) == len(found) == 1 else {})
    missing = [name for source, name in record.files if (source, name) not in files]
    if missing:
        raise DataError(
            f"the source has changed: {missing[0]} and {len(missing) - 1} more of its files are "
            "missing; name where it lies now with --input"
        )
    return [files[key] for key in record.files]
