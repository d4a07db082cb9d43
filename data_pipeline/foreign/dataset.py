"""`spade data index`: a manifest for webdataset tars that others made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.files import read_json_object
from data_pipeline.foreign.indexing import TarFacts, index_tars
from data_pipeline.foreign.text_member import TextMember
from data_pipeline.progress import ProgressCallback
from data_pipeline.remote.locations import check_location
from data_pipeline.shards.manifest import MANIFEST_FILE, Manifest
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

_NAMED_TEXTS = 10
_MOST_SUFFIXES = 20


@dataclass(frozen=True)
class IndexSummary:
    """What was indexed.

    Attributes:
        folder: The data set.
        tars: Tars in it.
        documents: Texts that can be used.
        tokens: Ids they become, each with an end-of-sequence id.
        passed_over: Members of other kinds, by suffix.
        left_out: Text members without a usable text, by reason.
        left_out_names: The first of those.
    """

    folder: Path
    tars: int
    documents: int
    tokens: int
    passed_over: dict[str, int]
    left_out: dict[str, int]
    left_out_names: list[str]


def index_dataset(
    location: Path | str,
    tokenizer: Path,
    member: TextMember | None = None,
    *,
    processes: int = 1,
    progress: ProgressCallback | None = None,
) -> IndexSummary:
    """Makes a folder of webdataset tars a data set: writes indexes and, last, the manifest.

    Args:
        location: The folder with the tars.
        tokenizer: Folder of the tokenizer.
        member: Where texts are; by default in members `KEY.txt`.
        processes: Tars worked on at the same time; what is written does not depend on it.
        progress: Told of the bytes of the tars.

    Raises:
        DataError: If the folder is none or holds another data set, a tar is damaged or refused, or
            no text is found.
    """
    folder = check_location(location)
    if not isinstance(folder, Path):
        raise DataError(
            f"{location}: only a folder of this machine can be indexed, since the index is written "
            "beside the tars; index a copy, then put manifest.json and the .idx files beside the "
            "tars: reading takes URLs"
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name one with webdataset tars")
    member = member or TextMember()
    _check_no_other_dataset(folder)
    loaded = DocumentTokenizer.load(tokenizer)
    facts = index_tars(folder, tokenizer, member, processes=processes, progress=progress)
    return _finish(folder, loaded, member, facts)


def _check_no_other_dataset(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    if not path.exists():
        return
    remedy = "name a folder of foreign tars, or move the manifest elsewhere"
    if read_json_object(path, "a manifest", remedy).get("kind") != "text":
        raise DataError(f"{path} belongs to a data set of another kind; {remedy}")


def _finish(
    folder: Path, tokenizer: DocumentTokenizer, member: TextMember, facts: list[TarFacts]
) -> IndexSummary:
    passed_over, left_out = _sum([fact.passed_over for fact in facts]), Counter[str]()
    for fact in facts:
        left_out += fact.left_out
    names = [name for fact in facts for name in fact.left_out_names][:_NAMED_TEXTS]
    shards = [fact.info for fact in facts if fact.info is not None]
    if not shards:
        found = ", ".join(f"{count} .{suffix}" for suffix, count in passed_over.most_common(5))
        raise DataError(
            f"{folder}: no member .{member.suffix} with a usable text (found: {found or 'nothing'}"
            f"{''.join(f'; {name}' for name in names[:1])}); name another with --text-member"
        )
    source: dict[str, Any] = {
        "text_member": member.suffix,
        "text_field": member.field,
        "passed_over": dict(passed_over),
        "left_out": dict(left_out),
        "left_out_names": names,
        "tars_without_text": len(facts) - len(shards),
    }
    manifest = Manifest.of_shards(tuple(shards), tokenizer, source, kind="text")
    manifest.save(folder)
    return IndexSummary(
        folder=folder,
        tars=len(facts),
        documents=manifest.documents,
        tokens=manifest.tokens,
        passed_over=dict(passed_over),
        left_out=dict(left_out),
        left_out_names=names,
    )


def _sum(counters: list[Counter[str]]) -> Counter[str]:
    """Adds up; beyond the most common kinds, the rest is counted together."""
    total: Counter[str] = sum(counters, Counter())
    common = Counter(dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))))
    kept = Counter(dict(list(common.items())[:_MOST_SUFFIXES]))
    rest = total.total() - kept.total()
    if rest:
        kept["(others)"] += rest
    return kept
