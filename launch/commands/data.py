"""``spade data build|inspect|verify``: shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import human_bytes, print_json, printable, say, table
from launch.failures import EXIT_FAILED, CommandError
from launch.progress import ProgressDisplay

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Folder = Annotated[
    Path, typer.Argument(help="Folder of a data set, or of train/ and heldout/.", metavar="DIR")
]
_PARTS = ("train", "heldout")


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Write, describe and verify data sets of webdataset shards.",
        epilog="Example: spade data build --input documents/ --tokenizer tokenizer --out data",
        no_args_is_help=True,
    )
    group.command(
        "build",
        epilog="Example: mpiexec -n 8 spade data build --input documents/ --tokenizer tokenizer "
        "--out data",
    )(build)
    group.command("inspect", epilog="Example: spade data inspect data/train --json")(inspect)
    group.command("verify", epilog="Example: spade data verify data")(verify)
    application.add_typer(group, name="data")


def build(
    inputs: Annotated[
        list[Path],
        typer.Option("--input", help="txt, jsonl, jsonl.gz, parquet, or a folder; repeatable."),
    ],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder for train/, heldout/ and tokenizer/.")],
    heldout_fraction: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of documents never trained on.")
    ] = 0.05,
    text_field: Annotated[str, typer.Option(help="Field of the text in records.")] = "text",
    name_field: Annotated[str, typer.Option(help="Field of the name in records.")] = "id",
    as_json: _Json = False,
) -> None:
    """Tokenize documents into webdataset shards, alone or as MPI ranks.

    The bytes are the same for any number of ranks, and after being stopped and started again:
    finished shards are kept.
    """
    from data_pipeline.build import build_dataset
    from data_pipeline.tokenizer import DocumentTokenizer
    from pretrain.ranks import find_ranks

    first = find_ranks(os.environ).rank == 0
    with ProgressDisplay(silent=not first or as_json) as progress:
        summary = build_dataset(
            inputs,
            DocumentTokenizer.load(tokenizer),
            out,
            heldout_fraction=heldout_fraction,
            text_field=text_field,
            name_field=name_field,
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
        counts = {"written": summary.shards_written, "kept": summary.shards_kept}
        print_json({"out": str(out), **facts, **counts, "quarantined": summary.quarantined})
        return
    for name, part in facts.items():
        say(
            f"{out / name}: {part['documents']:,} documents, {part['tokens']:,} tokens in "
            f"{part['shards']} shards"
        )
    if summary.shards_kept:
        say(f"{summary.shards_kept} of them were there before")
    if summary.quarantined:
        say(
            f"{summary.quarantined} documents are left out; {out / 'quarantine.jsonl'} says which "
            "and why"
        )
    if summary.ignored_files:
        say(f"{summary.ignored_files} files of other kinds in the folders are passed over")


def inspect(folder: _Folder, as_json: _Json = False) -> None:
    """Describe a data set: counts, lengths, source, first documents."""
    from data_pipeline.inspect import describe_dataset

    descriptions = [describe_dataset(part) for part in _parts(folder)]
    if as_json:
        print_json(descriptions[0] if len(descriptions) == 1 else descriptions)
        return
    for description in descriptions:
        rows = []
        for name, value in description.items():
            if name.endswith("_bytes"):
                rows.append((name.removesuffix("_bytes"), human_bytes(value)))
            elif isinstance(value, dict):
                inner = ", ".join(f"{key}: {item}" for key, item in value.items())
                rows.append((name, printable(inner, limit=200)))
            elif isinstance(value, list):
                names = ", ".join(f"{item['name']} ({item['tokens']:,} tokens)" for item in value)
                rows.append((name, printable(names, limit=200)))
            else:
                rows.append((name, f"{value:,}" if isinstance(value, int) else str(value)))
        table("", ("what", "value"), rows)


def verify(folder: _Folder, as_json: _Json = False) -> None:
    """Read every byte of a data set and name what is damaged."""
    from data_pipeline.verify import verify_dataset

    with ProgressDisplay(silent=as_json) as progress:
        reports = [verify_dataset(part, progress) for part in _parts(folder)]
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


def _parts(folder: Path) -> list[Path]:
    """The data set in a folder, or those in its train/ and heldout/."""
    if not folder.is_dir():
        raise CommandError(f"{folder}: no such folder; name one that spade data build wrote")
    if (folder / "manifest.json").exists():
        return [folder]
    return [folder / part for part in _PARTS if (folder / part).is_dir()] or [folder]
