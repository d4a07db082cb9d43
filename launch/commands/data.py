"""``spade data build|index|inspect|verify|repair``: shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.commands import data_index
from launch.commands.data_inspect import inspect, parts_of
from launch.console import print_json, say
from launch.failures import EXIT_FAILED
from launch.progress import ProgressDisplay

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Folder = Annotated[
    Path, typer.Argument(help="Folder of a data set, or of train/ and heldout/.", metavar="DIR")
]


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Write, describe, verify and repair data sets of webdataset shards.",
        epilog="Example: spade data build --input documents/ --tokenizer tokenizer --out data",
        no_args_is_help=True,
    )
    group.command(
        "build",
        epilog="Example: mpiexec -n 8 spade data build --input 'books/**/*.txt' --input "
        "s3://bucket/news/ --tokenizer tokenizer --out data",
    )(build)
    data_index.register(group)
    group.command(
        "inspect", epilog="Example: spade data inspect data --sequence-length 4096 --out report"
    )(inspect)
    group.command("verify", epilog="Example: spade data verify data")(verify)
    group.command("repair", epilog="Example: spade data repair data")(repair)
    application.add_typer(group, name="data")


def build(
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            help="txt, jsonl, jsonl.gz, jsonl.zst, parquet; a folder, a quoted pattern "
            "(docs/**/*.txt), or a URL (s3, gs, http, https, hf, file); repeatable.",
        ),
    ],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder for train/, heldout/ and tokenizer/.")],
    heldout_fraction: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of documents never trained on.")
    ] = 0.05,
    text_field: Annotated[str, typer.Option(help="Field of the text in records.")] = "text",
    name_field: Annotated[
        str, typer.Option("--name-field", "--id-field", help="Field of the name in records.")
    ] = "id",
    normalization: Annotated[
        str, typer.Option(help="Unicode normal form: none (texts as they are), nfc, nfkc.")
    ] = "none",
    min_bytes: Annotated[
        int, typer.Option(min=1, help="Leave out shorter texts (UTF-8, after normalization).")
    ] = 1,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Leave out longer texts.", show_default="no bound")
    ] = None,
    require: Annotated[
        str, typer.Option(help="Leave out texts in which this regular expression does not occur.")
    ] = "",
    keep_duplicates: Annotated[
        bool,
        typer.Option("--keep-duplicates", help="Keep documents whose text has occurred before."),
    ] = False,
    names: Annotated[
        bool,
        typer.Option("--names", help="Put documents' names beside their ids, about 1 kB each."),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Tokenize documents into webdataset shards, alone or as MPI ranks.

    The bytes are the same for any number of ranks, and after being stopped and started again:
    finished shards are kept.
    """
    from data_pipeline.building.build import build_dataset
    from data_pipeline.corpora.filters import TextRules
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer
    from pretrain.ranks import find_ranks

    rules = TextRules(
        normalization=normalization, min_bytes=min_bytes, max_bytes=max_bytes, require=require
    )
    first = find_ranks(os.environ, ask_mpi=False).rank == 0
    with ProgressDisplay(silent=not first or as_json) as progress:
        summary = build_dataset(
            inputs,
            DocumentTokenizer.load(tokenizer),
            out,
            heldout_fraction=heldout_fraction,
            text_field=text_field,
            name_field=name_field,
            rules=rules,
            keep_duplicates=keep_duplicates,
            keep_names=names,
            progress=progress,
        )
    if first:
        _show_build(summary, out, as_json)


def _show_build(summary: Any, out: Path, as_json: bool) -> None:
    """Tells what a build did."""
    parts = {"train": summary.train, "heldout": summary.heldout}
    facts = {
        name: {
            "documents": manifest.documents,
            "tokens": manifest.tokens,
            "shards": len(manifest.shards),
            "fingerprint": manifest.fingerprint,
        }
        for name, manifest in parts.items()
        if manifest is not None
    }
    if as_json:
        print_json(
            {
                "out": str(out),
                **facts,
                "written": summary.shards_written,
                "kept": summary.shards_kept,
                "quarantined": summary.quarantined,
                "duplicates": summary.duplicates,
                "filtered": summary.filtered,
            }
        )
        return
    for name, part in facts.items():
        say(
            f"{out / name}: {part['documents']:,} documents, {part['tokens']:,} tokens in "
            f"{part['shards']} shards"
        )
    if summary.shards_kept:
        say(f"{summary.shards_kept} of them were there before")
    if summary.duplicates:
        say(f"{summary.duplicates:,} documents are left out: their text occurred before")
    for rule, count in summary.filtered.items():
        say(f"{count:,} documents are left out by --{rule.replace('_', '-')}")
    if summary.quarantined:
        say(
            f"{summary.quarantined} documents are left out; {out / 'quarantine.jsonl'} says which "
            "and why"
        )
    if summary.ignored_files:
        say(f"{summary.ignored_files} files of other kinds in the folders are passed over")


def verify(folder: _Folder, as_json: _Json = False) -> None:
    """Read every byte of a data set and name what is damaged."""
    from data_pipeline.inspection.verify import verify_dataset

    with ProgressDisplay(silent=as_json) as progress:
        reports = [verify_dataset(part, progress) for part in parts_of(folder)]
    damages = {str(report.folder): [str(item) for item in report.damages] for report in reports}
    if as_json:
        print_json(damages)
    else:
        for report in reports:
            for damage in report.damages:
                say(f"damaged: {report.folder / str(damage)}")
            if report.is_sound:
                say(
                    f"ok: {report.folder}: {report.shards} shards, {report.documents:,} documents, "
                    f"{report.tokens:,} tokens"
                )
    if any(damages.values()):
        raise typer.Exit(EXIT_FAILED)


def repair(
    folder: Annotated[Path, typer.Argument(help="Folder that data build wrote.", metavar="DIR")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="Where the corpus lies now, in the order of the build; repeatable."
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Make damaged and missing shards again from the source, and no others.

    A shard is put in place only if it is byte for byte the one that the manifest names.
    """
    from data_pipeline.building.repair import repair_dataset

    with ProgressDisplay(silent=as_json) as progress:
        report = repair_dataset(folder, inputs or (), progress)
    if as_json:
        print_json({"shards": report.shards, "repaired": list(report.repaired)})
        return
    for name in report.repaired:
        say(f"made again: {folder / name}")
    if not report.repaired:
        say(f"ok: {folder}: nothing to repair in {report.shards} shards")
