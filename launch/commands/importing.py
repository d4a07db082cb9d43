"""``spade import``: checkpoints of other formats into our Hugging Face folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from launch.console import human_bytes, print_json, say
from launch.failures import CommandError

_EXAMPLE = (
    "Example: spade import msrlongt5 --weights weights.safetensors --config config.json "
    "--out spade-hf"
)


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Make a Hugging Face directory of somebody else's checkpoint.",
        epilog=_EXAMPLE,
        no_args_is_help=True,
    )
    # A group of one command would otherwise be that command.
    group.callback()(lambda: None)
    group.command("msrlongt5", epilog=_EXAMPLE)(msrlongt5)
    application.add_typer(group, name="import")


def msrlongt5(
    weights: Annotated[Path, typer.Option(help="Published weights, a safetensors file.")],
    config: Annotated[Path, typer.Option(help="Published config.json.")],
    out: Annotated[Path, typer.Option(help="Folder to write; absent or empty.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Import a published SPADE encoder-decoder (msrlongt5 of mt-dnn).

    It is done only after the folder was loaded again and gave the same logits. The tokenizer is not
    part of it.
    """
    for path in (weights, config):
        if not path.is_file():
            raise CommandError(f"{path}: no such file; name the published weights and config.json")
    import importlib.util
    import os

    if importlib.util.find_spec("transformers") is None:
        raise CommandError(
            "transformers is not installed, which writes and checks the folder; install it with "
            'pip install "spade-pretrain[hf]"'
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from spade_model.huggingface.importing import import_msrlongt5

    report = import_msrlongt5(weights, config, out)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    say(
        f"{report.path}: {report.parameters:,} parameters, {human_bytes(report.size_bytes)} in "
        f"{len(report.files)} files"
    )
    lengths = sorted(set(report.kernel_lengths) - {0})
    if lengths:
        say(f"output matrices of the state spaces restored from L = {', '.join(map(str, lengths))}")
    if report.ignored:
        say(f"ignored, as repeated or unused: {', '.join(report.ignored)}")
    say(f"loaded by transformers: logits differ by {report.logit_difference:.1e} at most")
