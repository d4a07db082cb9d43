"""``spade tokenizer train|inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launch.console import print_json, printable, say, table
from launch.progress import ProgressDisplay

_FEWEST_PIECES = 512
_SAMPLE_BYTES = 4 * 2**20
_INPUT_HELP = (
    "txt, jsonl, jsonl.gz, jsonl.zst, parquet; a folder, a quoted pattern (docs/**/*.txt), or a "
    "URL (s3, gs, http, https, hf, file); repeatable."
)
_Inputs = Annotated[list[str], typer.Option("--input", help=_INPUT_HELP)]
_Normalization = Annotated[
    str, typer.Option(help="Unicode normal form, as for data build: none, nfc, nfkc.")
]


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Train and examine tokenizers.",
        epilog="Example: spade tokenizer train --input documents/ --out tokenizer",
        no_args_is_help=True,
    )
    group.command(
        "train",
        epilog="Example: spade tokenizer train --input books.jsonl.gz --input notes/ "
        "--vocab-size 32000 --sentinels 256 --out tokenizer",
    )(train)
    group.command(
        "inspect", epilog="Example: spade tokenizer inspect tokenizer --input documents/"
    )(inspect)
    application.add_typer(group, name="tokenizer")


def train(
    inputs: _Inputs,
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
    normalization: _Normalization = "none",
    sample_bytes: Annotated[
        int, typer.Option(min=1, help="Most text to train on, sampled from all documents.")
    ] = _SAMPLE_BYTES,
    equal_inputs: Annotated[
        bool,
        typer.Option(
            "--equal-inputs",
            help="Give every --input the same share of the sample, instead of one by its size.",
        ),
    ] = False,
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
    from data_pipeline.corpora.corpus import is_heldout, iterate_documents
    from data_pipeline.corpora.filters import TextRules
    from data_pipeline.errors import DataError
    from data_pipeline.tokenization.tokenizer import train_tokenizer

    sizes = [vocab_size]
    while allow_smaller and sizes[-1] // 2 >= _FEWEST_PIECES:
        sizes.append(sizes[-1] // 2)
    first_error: DataError | None = None
    for size in sizes:
        documents = (
            document
            for document in iterate_documents(
                inputs,
                text_field=text_field,
                name_field=name_field,
                rules=TextRules(normalization=normalization),
            )
            if not is_heldout(document.name, heldout_fraction)
        )
        try:
            with ProgressDisplay() as progress:
                tokenizer = train_tokenizer(
                    documents,
                    vocab_size=size,
                    sentinels=sentinels,
                    out=out,
                    sample_bytes=sample_bytes,
                    seed=seed,
                    equal_inputs=equal_inputs,
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


def inspect(
    tokenizer: Annotated[Path, typer.Argument(help="Folder of the tokenizer.")],
    inputs: _Inputs,
    text_field: Annotated[str, typer.Option(help="Field of the text in records.")] = "text",
    name_field: Annotated[str, typer.Option(help="Field of the name in records.")] = "id",
    normalization: _Normalization = "none",
    input_bytes: Annotated[int, typer.Option(min=1, help="Text of each input to look at.")] = 16
    * 2**20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how well a tokenizer suits a text: coverage, tokens a word, bytes a token, ids used."""
    from data_pipeline.building.build_record import input_names
    from data_pipeline.corpora.corpus import iterate_documents
    from data_pipeline.corpora.filters import TextRules
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer
    from data_pipeline.tokenization.tokenizer_inspect import inspect_tokenizer

    documents = iterate_documents(
        inputs,
        text_field=text_field,
        name_field=name_field,
        rules=TextRules(normalization=normalization),
    )
    with ProgressDisplay(silent=as_json) as progress:
        rows = inspect_tokenizer(
            DocumentTokenizer.load(tokenizer),
            documents,
            input_names(inputs),
            input_bytes=input_bytes,
            progress=progress,
        )
    if as_json:
        print_json(rows)
        return
    columns = ("input", "documents", "text MB", "tokens", "bytes/token", "tokens/word")
    table("", (*columns, "coverage", "ids used"), [_cells(row) for row in rows])
    uncovered = " ".join(printable(character) for character in rows[-1]["uncovered"])
    if uncovered:
        say(f"characters written as bytes, commonest first: {uncovered}")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        printable(row["input"], limit=60),
        f"{row['documents']:,}",
        f"{row['text_bytes'] / 1e6:.1f}",
        f"{row['tokens']:,}",
        f"{row['bytes_per_token']:.2f}",
        f"{row['tokens_per_word']:.2f}",
        f"{row['coverage']:.4%}",
        f"{row['ids_used']:,} ({row['ids_used_share']:.1%})",
    )
