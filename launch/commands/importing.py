"""``spade import``: weights of other formats into our folders, our folders into a new run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.console import human_bytes, print_json, say
from launch.failures import CommandError

if TYPE_CHECKING:
    from spade_model.huggingface.importing.folder import WrittenFolder
    from spade_model.huggingface.tokenization import SpadeTokenizer

_EXAMPLES = {
    "msrlongt5": "Example: spade import msrlongt5 --weights weights.safetensors "
    "--config config.json --out spade-hf",
    "fairseq-lm": "Example: spade import fairseq-lm --weights weights.safetensors "
    "--config config.json --out spade-lm-hf",
    "t5": "Example: spade import t5 long-t5-local-base --out warm-hf state_space_layers=2",
    "pretraining": "Example: spade import pretraining base-hf --data shards/train "
    "--heldout shards/heldout --tokenizer shards/tokenizer --out continued.yaml",
}

_Out = Annotated[Path, typer.Option(help="Folder to write; absent or empty.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Start from weights that are there: published ones, T5's, or your own.",
        epilog=_EXAMPLES["msrlongt5"],
        no_args_is_help=True,
    )
    group.command("msrlongt5", epilog=_EXAMPLES["msrlongt5"])(msrlongt5)
    group.command("fairseq-lm", epilog=_EXAMPLES["fairseq-lm"])(fairseq_lm)
    group.command("t5", epilog=_EXAMPLES["t5"])(t5)
    group.command("pretraining", epilog=_EXAMPLES["pretraining"])(pretraining)
    application.add_typer(group, name="import")


def msrlongt5(
    weights: Annotated[Path, typer.Option(help="Published weights, a safetensors file.")],
    config: Annotated[Path, typer.Option(help="Published config.json.")],
    out: _Out,
    as_json: _Json = False,
) -> None:
    """Import a published SPADE encoder-decoder (msrlongt5 of mt-dnn).

    It is done only after the folder was loaded again and gave the same logits. The tokenizer is not
    part of it.
    """
    _check_files(weights, config)
    _prepare_transformers()
    from spade_model.huggingface.importing.msrlongt5 import import_msrlongt5

    report = import_msrlongt5(weights, config, out)
    if not _told(report, as_json):
        _say_kernels(report.kernel_lengths, report.ignored)


def fairseq_lm(
    weights: Annotated[Path, typer.Option(help="State dict of the model, a safetensors file.")],
    config: Annotated[Path, typer.Option(help="Arguments of the model as JSON.")],
    out: _Out,
    as_json: _Json = False,
) -> None:
    """Import a published SPADE language model (a fairseq checkpoint, converted).

    A checkpoint of fairseq is a pickle and is not opened; give it as --weights to be told what
    converts it. The dictionary is not part of it. Adaptive softmax cannot be imported.
    """
    _check_files(weights, config)
    _prepare_transformers()
    from spade_model.huggingface.importing.fairseq_lm import import_fairseq_lm

    report = import_fairseq_lm(weights, config, out)
    if _told(report, as_json):
        return
    _say_kernels(report.kernel_lengths, report.ignored)
    if report.embedding_scale != 1.0:
        kept = "" if report.tied else ", so that head and embedding are two matrices now"
        say(f"the embedding was scaled by {report.embedding_scale:g}: now part of it{kept}")


def t5(
    source: Annotated[Path, typer.Argument(help="Folder of a T5 or LongT5.", metavar="DIR")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Fields of the model that T5 leaves open.", metavar="field=value …"),
    ] = None,
    *,
    out: _Out,
    tie_head: Annotated[
        bool,
        typer.Option("--tie-head", help="Leave out a head of its own, which pretraining lacks."),
    ] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer of ours in place of the source's, for pretraining."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is new.")] = 0,
    as_json: _Json = False,
) -> None:
    """Make a SPADE of T5 or LongT5, as a warm start.

    Everything that SPADE computes as well is copied and compared; state spaces are new. What is
    new and what is left out is told by name. The tokenizer comes along, or one of ours takes its
    place: rows of pieces that both have are kept, and spade import pretraining can go on.
    """
    if not source.is_dir():
        raise CommandError(f"{source}: no such folder; name one with config.json and safetensors")
    own = _fields(settings or ())
    _prepare_transformers()
    from spade_model.huggingface.importing.t5 import import_t5

    replaced = None if tokenizer is None else _tokenizer(tokenizer)
    report = import_t5(source, out, own, tie_head=tie_head, tokenizer=replaced, seed=seed)
    if _told(report, as_json):
        return
    say(
        "the copied weights give the source's logits without state spaces: they differ by "
        f"{report.source_logit_difference:.1e} at most"
    )
    for what, tensors in (("new", report.new), ("left out", report.left_out)):
        say(f"{what}: {sum(tensors.values()):,} numbers in {len(tensors)} tensors")
        for name, numbers in tensors.items():
            say(f"  {name} {numbers:,}")
    for note in report.notes:
        say(note)


def pretraining(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder of ours.", metavar="DIR")],
    data: Annotated[Path, typer.Option(help="Data set to train on.")],
    heldout: Annotated[Path, typer.Option(help="Data set that is never trained on.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer of both.")],
    out: Annotated[Path, typer.Option(help="Configuration to write; absent.")],
    name: Annotated[str, typer.Option(help="Name of the run.")] = "continued",
    as_json: _Json = False,
) -> None:
    """Write the configuration of a new pretraining run that starts from a folder's weights.

    Settings are those of the folder's pretraining, where it tells them. Its model, weights and
    tokenizer are checked against the data.
    """
    from pretrain.continuation import write_continuation

    report = write_continuation(
        source, out, name=name, data=data, heldout=heldout, tokenizer=tokenizer
    )
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    say(f"{report.path}: starts from {report.parameters:,} parameters of {source}")
    for line in report.lost:
        say(f"lost: {line}")
    say(f"look at train, optimizer and schedule, then: spade pretrain {report.path}")


def _check_files(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise CommandError(f"{path}: no such file; name the published weights and config.json")


def _fields(words: Sequence[str]) -> dict[str, Any]:
    """Read ``field=value`` words, values as YAML."""
    from pretrain.yaml_text import parse_yaml

    fields = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or not name:
            raise typer.BadParameter(f"{word!r} is not of the form field=value")
        fields[name] = parse_yaml(text, name)
    return fields


def _tokenizer(folder: Path) -> SpadeTokenizer:
    """Loads a tokenizer of ours as `transformers` knows it."""
    from data_pipeline.tokenization.segments import SEGMENT_PATTERN
    from data_pipeline.tokenization.tokenizer import MODEL_FILE, DocumentTokenizer
    from spade_model.huggingface.tokenization import SpadeTokenizer

    known = DocumentTokenizer.load(folder)
    return SpadeTokenizer.from_sentencepiece(
        folder / MODEL_FILE, sentinels=known.sentinel_count, segment_pattern=SEGMENT_PATTERN
    )


def _prepare_transformers() -> None:
    """Makes sure that it is there, and keeps it from the network and from the user's terminal."""
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


def _told(report: WrittenFolder, as_json: bool) -> bool:
    """Says what every import says; returns whether that was all, because JSON was asked for."""
    if as_json:
        print_json(dataclasses.asdict(report))
        return True
    say(
        f"{report.path}: {report.parameters:,} parameters, {human_bytes(report.size_bytes)} in "
        f"{len(report.files)} files"
    )
    say(f"loaded by transformers: logits differ by {report.logit_difference:.1e} at most")
    return False


def _say_kernels(lengths: Sequence[int], ignored: Sequence[str]) -> None:
    undone = sorted(set(lengths) - {0})
    if undone:
        say(f"output matrices of the state spaces restored from L = {', '.join(map(str, undone))}")
    if ignored:
        say(f"ignored, as repeated or unused: {', '.join(ignored)}")
