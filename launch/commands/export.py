"""``spade export`` and ``spade generate``: a Hugging Face directory, and what it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from launch.console import human_bytes, print_json, printable, say
from launch.failures import CommandError

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(application: typer.Typer) -> None:
    """Adds both commands."""
    application.command("export", epilog="Example: spade export runs/base --out base-hf")(export)
    application.command(
        "generate",
        epilog="Example: spade generate base-hf --text 'The capital of France is <extra_id_0>.'",
    )(generate)


def export(
    source: Annotated[
        Path, typer.Argument(help="Run folder or checkpoint.", metavar="RUN_OR_CHECKPOINT")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32 or bfloat16.")] = (
        "float32"
    ),
    as_json: _Json = False,
) -> None:
    """Write a Hugging Face directory from a checkpoint.

    Of a run, the newest complete one is taken. It is done only after a process of its own has
    loaded it and found the same logits and ids.
    """
    if dtype not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"--dtype {dtype}: use float32 or bfloat16")
    if not source.exists():
        raise CommandError(f"{source}: no such folder; name a run or one of its checkpoints")
    _quiet_transformers()
    from pretrain.exporting.export import export as write

    report = write(source, out, dtype="bfloat16" if dtype == "bfloat16" else "float32")
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    say(
        f"{report.path}: step {report.step}, {report.parameters:,} parameters as {report.dtype}, "
        f"{human_bytes(report.size_bytes)} in {len(report.files)} files"
    )
    say(
        f"loaded by transformers in another process: logits differ by {report.logit_difference:.1e}"
        f" at most, by {report.cache_difference:.1e} with the cache; ids of {report.texts} texts "
        f"as SentencePiece's ({report.ties} with a tie broken otherwise)"
    )


def generate(
    model: Annotated[Path, typer.Argument(help="Exported folder.", metavar="DIR")],
    text: Annotated[
        str | None, typer.Option(help="Input; <extra_id_0>, <extra_id_1>, … are gaps to fill.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Corpus file: mask spans of each document and fill them.")
    ] = None,
    spans: Annotated[int, typer.Option(min=1, help="With --mask: gaps in each document.")] = 5,
    context_tokens: Annotated[
        int, typer.Option(min=16, help="With --mask: longest part of a document.")
    ] = 160,
    seed: Annotated[int, typer.Option(min=0, help="With --mask: chooses part and gaps.")] = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="With --text: longest answer; by default all the model can."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Let an exported model fill gaps.

    Either in a text with marked gaps, or in documents of which spans are masked here.
    """
    if (text is None) == (mask is None):
        raise typer.BadParameter("give either --text or --mask")
    if not model.is_dir():
        raise CommandError(f"{model}: no such folder; make one with spade export")
    _quiet_transformers()
    from pretrain.exporting.fill import fill_spans, generate_text

    if text is not None:
        answer = generate_text(model, text, max_new_tokens)
        if as_json:
            print_json({"text": text, "generated": answer})
        else:
            say(printable(answer))
        return
    from data_pipeline.corpora.corpus import iterate_documents

    assert mask is not None, "one of the two is given"
    documents = list(iterate_documents([mask]))
    fills = fill_spans(
        model,
        [document.text for document in documents],
        spans=spans,
        seed=seed,
        names=[document.name for document in documents],
        context_tokens=context_tokens,
    )
    plain = [dataclasses.asdict(fill) for fill in fills]
    if as_json:
        print_json({"fills": plain})
    else:
        from launch.quickstart_summary import show_fills

        show_fills(plain)


def _quiet_transformers() -> None:
    """Keeps the libraries from the network and from the user's terminal."""
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
