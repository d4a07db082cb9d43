"""``spade data inspect``: what is in a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import human_bytes, print_json, printable, say, table
from launch.failures import CommandError

_PARTS = ("train", "heldout")
_BAR_CHARACTERS = 30


def inspect(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a data set, or of train/ and heldout/.", metavar="DIR")
    ],
    sequence_length: Annotated[
        int | None,
        typer.Option(min=1, help="Also say what an epoch of windows of so many tokens is."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of the tokenizer; by default the one beside the data set."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write lengths.png and inspect.html into this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a data set: counts, lengths, inputs, an epoch, first documents."""
    from data_pipeline.inspection.inspect import describe_dataset
    from data_pipeline.inspection.inspect_report import write_inspection
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer

    loaded = None if tokenizer is None else DocumentTokenizer.load(tokenizer)
    descriptions = [
        describe_dataset(part, sequence_length_tokens=sequence_length, tokenizer=loaded)
        for part in parts_of(folder)
    ]
    written = () if out is None else write_inspection(descriptions, out)
    if as_json:
        print_json(descriptions[0] if len(descriptions) == 1 else descriptions)
        return
    for description in descriptions:
        _show(description)
    for path in written:
        say(f"wrote {path}")


def _show(description: Mapping[str, Any]) -> None:
    """Prints one data set."""
    rows = []
    for name, value in description.items():
        if name.endswith("_bytes"):
            rows.append((name.removesuffix("_bytes"), human_bytes(value)))
        elif isinstance(value, int):
            rows.append((name, f"{value:,}"))
        elif isinstance(value, str):
            rows.append((name, value))
    for name, value in description["source"].items():
        if name != "sources":
            rows.append((f"source: {name}", printable(_plain(value), limit=200)))
    table("", ("what", "value"), rows)
    classes = description["document_tokens_histogram"]
    most = max(item["documents"] for item in classes)
    lengths = [
        (
            f"{item['from']:,} to {item['below'] - 1:,}",
            f"{item['documents']:,}",
            f"{item['tokens']:,}",
            "#" * round(_BAR_CHARACTERS * item["documents"] / most),
        )
        for item in classes
    ]
    table("lengths", ("tokens of a document", "documents", "tokens", ""), lengths)
    percentiles = description["document_tokens_percentiles"]
    table("", [f"{name} %" for name in percentiles], [[f"{n:,}" for n in percentiles.values()]])
    inputs = [
        (printable(item["input"], limit=60), f"{item['documents']:,}", f"{item['tokens']:,}")
        for item in description["source"].get("sources", [])
    ]
    if inputs:
        table("inputs", ("input", "documents", "tokens"), inputs)
    epoch = description.get("epoch", {})
    if epoch:
        windows = [
            (mode, f"{item['windows']:,}", f"{item['tokens_left_out']:,}", f"{item['full']:.2%}")
            for mode, item in epoch.items()
        ]
        title = f"an epoch of windows of {epoch['concat']['window_tokens']:,} tokens"
        table(title, ("windows", "number", "tokens left out", "full"), windows)
    for document in description["first_documents"]:
        text = document.get("text", _plain(document["first_ids"]))
        shown = printable(text, limit=160)
        say(f"{printable(document['name'], limit=80)} ({document['tokens']:,} tokens): {shown}")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def parts_of(folder: Path) -> list[Path]:
    """The data set in a folder, or those in its train/ and heldout/."""
    if not folder.is_dir():
        raise CommandError(f"{folder}: no such folder; name one that spade data build wrote")
    if (folder / "manifest.json").exists():
        return [folder]
    return [folder / part for part in _PARTS if (folder / part).is_dir()] or [folder]
