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
    dtype: Annotated[
        str,
        typer.Option(
            help="Type of the weights: float32, bfloat16 or float16; the state-space part is "
            "float32 in any case."
        ),
    ] = "float32",
    max_shard_size: Annotated[
        str, typer.Option(help="Largest file of weights, such as 500MB, 5GB or 2GiB.")
    ] = "5GB",
    as_json: _Json = False,
) -> None:
    """Write a Hugging Face directory from a checkpoint.

    Of a run, the newest complete one is taken; neither its GPUs nor as many processes are needed.
    It is done only after processes of their own, with our package and without it, have loaded it
    and found the same logits, generated the same tokens and read texts as the same ids.
    """
    if not source.exists():
        raise CommandError(f"{source}: no such folder; name a run or one of its checkpoints")
    _quiet_transformers()
    from pretrain.exporting.export import export as write

    report = write(source, out, dtype=dtype, max_shard_size=max_shard_size)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    say(
        f"{report.path}: step {report.step}, {report.parameters:,} parameters as {report.dtype}, "
        f"{human_bytes(report.size_bytes)} in {len(report.files)} files"
    )
    found = report.comparison
    say(
        "loaded by transformers in other processes, with our package and with the folder's own "
        f"code: logits differ by {found.logit_difference:.1e} at most, by "
        f"{found.cache_difference:.1e} with the cache; {found.greedy_tokens} tokens of greedy "
        f"decoding and {found.beam_tokens} of beam search are the pretrained model's, with the "
        f"cache and without; ids of {found.texts} texts as SentencePiece's ({found.ties} with a "
        "tie broken otherwise)"
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
