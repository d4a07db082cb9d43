"""``spade data index``: webdataset tars that others made become a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import print_json, printable, say
from launch.progress import ProgressDisplay


def register(group: typer.Typer) -> None:
    """Adds the command to the group ``data``."""
    group.command(
        "index",
        epilog="Example: spade data index webdataset/ --tokenizer tokenizer --text-member json",
    )(index)


def index(
    folder: Annotated[str, typer.Argument(help="Folder of uncompressed tars.", metavar="DIR")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    text_member: Annotated[
        str, typer.Option(help="Suffix of the members that hold texts: txt, json, ...")
    ] = "txt",
    text_field: Annotated[str, typer.Option(help="Field of the text in json members.")] = "text",
    processes: Annotated[int, typer.Option(min=1, help="Tars worked on at the same time.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a manifest and indexes beside webdataset tars made by others.

    The tars stay as they are; their texts are tokenized when they are read. Members of other kinds
    are passed over. What an interrupted run has finished is kept.
    """
    from data_pipeline.foreign.dataset import index_dataset
    from data_pipeline.foreign.text_member import TextMember

    with ProgressDisplay(silent=as_json) as progress:
        summary = index_dataset(
            folder,
            tokenizer,
            TextMember(suffix=text_member, field=text_field),
            processes=processes,
            progress=progress,
        )
    if as_json:
        print_json(vars(summary) | {"folder": str(summary.folder)})
        return
    say(
        f"{summary.folder}: {summary.documents:,} texts, {summary.tokens:,} tokens in "
        f"{summary.tars} tars"
    )
    if summary.passed_over:
        kinds = ", ".join(f"{count:,} .{suffix}" for suffix, count in summary.passed_over.items())
        say(printable(f"passed over: {kinds}", limit=300))
    for reason, count in summary.left_out.items():
        say(printable(f"left out: {count:,} texts ({reason})", limit=300))
    for name in summary.left_out_names:
        say(printable(f"  {name}", limit=300))
