"""``spade tokenizer train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.console import say
from launch.progress import ProgressDisplay

_FEWEST_PIECES = 512


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Train tokenizers.",
        epilog="Example: spade tokenizer train --input documents/ --out tokenizer",
        no_args_is_help=True,
    )
    group.callback()(_group)
    group.command(
        "train",
        epilog="Example: spade tokenizer train --input books.jsonl.gz --input notes/ "
        "--vocab-size 32000 --sentinels 256 --out tokenizer",
    )(train)
    application.add_typer(group, name="tokenizer")


def _group() -> None:
    """Keeps ``train`` a sub-command while it is the only one."""


def train(
    inputs: Annotated[
        list[Path],
        typer.Option("--input", help="txt, jsonl, jsonl.gz, parquet, or a folder; repeatable."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    vocab_size: Annotated[
        int, typer.Option(min=300, help="Pieces of the SentencePiece model.")
    ] = 8192,
    sentinels: Annotated[
        int, typer.Option(min=1, help="Ids that mark masked spans, after the pieces.")
    ] = 128,
    text_field: Annotated[str, typer.Option(help="Field of the text in records.")] = "text",
    name_field: Annotated[str, typer.Option(help="Field of the name in records.")] = "id",
    heldout_fraction: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Documents left out, as data build does.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample that is trained on.")] = 0,
    allow_smaller: Annotated[
        bool,
        typer.Option(
            "--allow-smaller",
            help="Halve the vocabulary, down to 512, while the text is too short for it.",
        ),
    ] = False,
) -> None:
    """Train a SentencePiece unigram tokenizer that decodes back to the very text.

    Sentinels needed: masked spans of the longest sequence, e.g. 227 for 4,096 tokens at density
    0.15 and mean span 3.
    """
    from data_pipeline.corpus import is_heldout, iterate_documents
    from data_pipeline.errors import DataError
    from data_pipeline.tokenizer import train_tokenizer

    sizes = [vocab_size]
    while allow_smaller and sizes[-1] // 2 >= _FEWEST_PIECES:
        sizes.append(sizes[-1] // 2)
    first_error: DataError | None = None
    for size in sizes:
        documents = (
            document
            for document in iterate_documents(inputs, text_field=text_field, name_field=name_field)
            if not is_heldout(document.name, heldout_fraction)
        )
        try:
            with ProgressDisplay() as progress:
                tokenizer = train_tokenizer(
                    documents,
                    vocab_size=size,
                    sentinels=sentinels,
                    out=out,
                    seed=seed,
                    progress=progress,
                )
        except DataError as error:
            first_error = first_error or error
            continue
        if first_error is not None:
            say(f"{first_error}; took {size} pieces")
        say(
            f"wrote {out}: {tokenizer.piece_count} pieces + "
            f"{tokenizer.vocab_size - tokenizer.piece_count} sentinels = {tokenizer.vocab_size} ids"
        )
        return
    assert first_error is not None, "there is at least one size"
    raise first_error
