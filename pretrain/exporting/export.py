"""From a checkpoint to a folder that `transformers` loads, checked before it is called done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from data_pipeline.tokenization.segments import SEGMENT_PATTERN
from data_pipeline.tokenization.tokenizer import MODEL_FILE, DocumentTokenizer
from pretrain.checkpoints.checkpoint_format import (
    checkpoint_facts,
    latest_complete,
    load_run_config,
    verify_checkpoint,
)
from pretrain.config import RunConfig
from pretrain.exporting.curve import CURVE_FILE, draw_curve, read_curve
from pretrain.exporting.errors import ExportError
from pretrain.exporting.export_check import Comparison, compare_in_another_process
from pretrain.exporting.model_card import model_card
from pretrain.exporting.provenance import FORMAT, PROVENANCE, provenance_of
from pretrain.exporting.reference import make_reference
from pretrain.exporting.weights import (
    DEFAULT_SHARD_SIZE,
    CheckpointWeights,
    check_type,
    parse_size,
)
from pretrain.run_folder import RunFolder, write_json


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what was compared before it was called done."""

    path: Path
    """The folder."""
    checkpoint: Path
    """What it was made from."""
    step: int
    tokens_seen: int
    parameters: int
    dtype: str
    """Type of the weights; state-space layers are float32 in any case."""
    size_bytes: int
    """Of all files."""
    files: tuple[str, ...]
    comparison: Comparison
    """What was compared; it has no problems."""


def export(
    source: Path,
    out: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str = DEFAULT_SHARD_SIZE,
) -> ExportReport:
    """Write a checkpoint as a Hugging Face directory.

    The folder appears at `out` only after processes of their own have loaded it from there on the
    disk, one with the folder's own code and one with ours, and found the pretrained model's logits,
    what it generates, and the tokenizer's ids. At no time is more than one copy of the weights in
    memory.

    Args:
        source: A run's folder, whose newest complete checkpoint is taken, or a checkpoint.
        out: Where to write: absent, empty, or an earlier export, which is replaced.
        dtype: Type of the weights outside the state-space layers: float32, bfloat16 or float16.
        max_shard_size: Largest file of weights, such as ``5GB``, ``500MB`` or ``2GiB``.

    Returns:
        What was written and compared.

    Raises:
        ExportError: If `source` is neither, the checkpoint is damaged, the tokenizer is another
            one, `out` holds something else, a type or size is none, the disk refuses, or the folder
            differs from the checkpoint. Nothing is left at `out` then, and an earlier export stays.
        CheckpointError: If the checkpoint cannot be read.
        DataError: If the tokenizer cannot be read.
    """
    kind, max_shard_bytes = check_type(dtype), parse_size(max_shard_size)
    _need_transformers()
    if out.name in ("", ".."):
        out = out.resolve()
    checkpoint = _find_checkpoint(source)
    _check_replaceable(out)
    problems = verify_checkpoint(checkpoint)
    if problems:
        raise ExportError(f"{problems[0]}; export an earlier checkpoint of the run")
    config = load_run_config(checkpoint)
    facts = checkpoint_facts(checkpoint)
    tokenizer = _load_tokenizer(config, facts, checkpoint)
    weights = CheckpointWeights(checkpoint, kind)
    # The model goes as soon as it has spoken.
    reference = make_reference(weights.load_plain_model(config), config.data.input_length_tokens)
    curve = read_curve(RunFolder(checkpoint.parent.parent).metrics_path, facts["step"])
    known = {"parameters": weights.parameters, "dtype": dtype}
    provenance = provenance_of(config, facts, tokenizer, checkpoint.name, curve, known)

    def write(folder: Path) -> Comparison:
        # First, so that what an interruption leaves behind is known to be ours.
        write_json(folder / PROVENANCE, provenance)
        (folder / "README.md").write_text(model_card(provenance), encoding="utf-8")
        draw_curve(curve, folder / CURVE_FILE)
        _write_model(folder, config, weights, max_shard_bytes)
        _write_tokenizer(folder, config, tokenizer)
        return compare_in_another_process(folder, reference, tokenizer)

    comparison = _write_all_or_nothing(out, write)
    files = sorted(out.iterdir())
    return ExportReport(
        path=out,
        checkpoint=checkpoint,
        step=facts["step"],
        tokens_seen=facts["tokens_seen"],
        parameters=weights.parameters,
        dtype=dtype,
        size_bytes=sum(file.stat().st_size for file in files),
        files=tuple(file.name for file in files),
        comparison=comparison,
    )


def is_export(folder: Path) -> bool:
    """Whether a folder was written by `export`."""
    try:
        content = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def _need_transformers() -> None:
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise ExportError(
            "transformers is not installed, which writes and checks the export; install it with "
            'pip install "spade-pretrain[hf]"'
        )


def _find_checkpoint(source: Path) -> Path:
    if RunFolder(source).checkpoints.is_dir():
        return latest_complete(source)
    if not source.is_dir():
        raise ExportError(f"{source}: no such folder; name a run or one of its checkpoints")
    if not (source / "manifest.json").is_file():
        raise ExportError(
            f"{source}: neither a run (no checkpoints/) nor a checkpoint (no manifest.json); name "
            "a folder such as runs/NAME"
        )
    return source.resolve()


def _check_replaceable(out: Path) -> None:
    """Only what `export` wrote is ever removed."""
    if out.is_dir() and not out.is_symlink():
        if is_export(out) or not any(out.iterdir()):
            return
        raise ExportError(
            f"{out}: already holds something that is no earlier export; choose another --out or "
            "remove it"
        )
    if out.exists() or out.is_symlink():
        raise ExportError(f"{out}: is no folder; choose another --out or remove it")


def _load_tokenizer(
    config: RunConfig, facts: dict[str, Any], checkpoint: Path
) -> DocumentTokenizer:
    tokenizer = DocumentTokenizer.load(config.data.tokenizer)
    expected = facts["fingerprints"].get("tokenizer")
    if tokenizer.fingerprint != expected:
        raise ExportError(
            f"{config.data.tokenizer}: has fingerprint {tokenizer.fingerprint}, but {checkpoint} "
            f"was trained with {expected}; restore the tokenizer of the data set"
        )
    if tokenizer.vocab_size != config.model.vocab_size:
        raise ExportError(
            f"{config.data.tokenizer}: has {tokenizer.vocab_size} ids, but the model of "
            f"{checkpoint} has {config.model.vocab_size}; restore the tokenizer of the data set"
        )
    return tokenizer


def _write_all_or_nothing(out: Path, write: Callable[[Path], Comparison]) -> Comparison:
    """Have a folder written beside `out` and put it there if it is what it should be.

    Raises:
        ExportError: If it is not, or the disk refuses.
    """
    partial, replaced = (out.with_name(out.name + end) for end in (".partial", ".replaced"))
    _check_replaceable(partial)
    _check_replaceable(replaced)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        comparison = write(partial)
        if comparison.problems:
            raise ExportError(f"{out}: not written: {'; '.join(comparison.problems)}")
        _put_in_place(partial, out, replaced)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ExportError(
            f"{out}: not written: {reason}; free space or mend permissions"
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return comparison


def _write_model(
    folder: Path, config: RunConfig, weights: CheckpointWeights, max_shard_bytes: int
) -> None:
    from spade_model.huggingface.saving import save_settings

    save_settings(folder, config.model, getattr(torch, weights.dtype))
    weights.write(folder, max_shard_bytes)


def _write_tokenizer(partial: Path, config: RunConfig, tokenizer: DocumentTokenizer) -> None:
    from spade_model.huggingface import SpadeTokenizer

    converted = SpadeTokenizer.from_sentencepiece(
        config.data.tokenizer / MODEL_FILE,
        sentinels=tokenizer.sentinel_count,
        segment_pattern=SEGMENT_PATTERN,
        model_max_length=config.data.input_length_tokens,
    )
    try:
        converted.save_pretrained(partial)
    except OSError:
        raise
    except Exception as error:  # tokenizers knows no other class for a full disk
        raise OSError(str(error)) from error


def _put_in_place(partial: Path, out: Path, replaced: Path) -> None:
    """Rename; an earlier export gives way only now, and comes back if that fails."""
    if not out.exists():
        partial.rename(out)
        return
    shutil.rmtree(replaced, ignore_errors=True)
    out.rename(replaced)
    try:
        partial.rename(out)
    except OSError:
        replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
