"""From a checkpoint to a folder that `transformers` loads, checked before it is called done."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from pretrain.checkpoints.reader import load_weights
from pretrain.config import RunConfig
from pretrain.exporting.export_check import compare_in_another_process
from pretrain.exporting.model_card import model_card
from pretrain.run_folder import RunFolder, write_json
from pretrain.telemetry.metrics import read_metrics
from spade_model import SpadeForSeq2Seq

PROVENANCE = "provenance.json"
FORMAT = "spade-export"


class ExportError(ValueError):
    """A checkpoint that cannot be exported, or an export that is not what it should be."""


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
    logit_difference: float
    """Largest absolute difference from the pretrained model's logits, in float32."""
    cache_difference: float
    """Largest absolute difference between logits decoded with a cache and without."""
    texts: int
    """Texts whose ids were compared with SentencePiece's."""
    ties: int
    """Texts in which a segmentation of equal score was chosen."""


def export(
    source: Path, out: Path, *, dtype: Literal["float32", "bfloat16"] = "float32"
) -> ExportReport:
    """Write a checkpoint as a Hugging Face directory.

    The folder appears at `out` only after a process of its own has loaded it from there on the
    disk and found the pretrained model's logits and the tokenizer's ids.

    Args:
        source: A run's folder, whose newest complete checkpoint is taken, or a checkpoint.
        out: Where to write: absent, empty, or an earlier export, which is replaced.
        dtype: Type of the weights outside the state-space layers.

    Returns:
        What was written and compared.

    Raises:
        ExportError: If `source` is neither, the checkpoint is damaged, the tokenizer is another
            one, `out` holds something else, the disk refuses, or the folder differs from the
            checkpoint. Nothing is left at `out` then, and an earlier export stays.
        CheckpointError: If the checkpoint cannot be read.
        DataError: If the tokenizer cannot be read.
    """
    _need_transformers()
    if out.name in ("", ".."):
        out = out.resolve()
    if dtype not in ("float32", "bfloat16"):
        raise ExportError(f"dtype {dtype!r} is unknown; use float32 or bfloat16")
    checkpoint = _find_checkpoint(source)
    _check_replaceable(out)
    problems = verify_checkpoint(checkpoint)
    if problems:
        raise ExportError(f"{problems[0]}; export an earlier checkpoint of the run")
    config = load_run_config(checkpoint)
    facts = checkpoint_facts(checkpoint)
    tokenizer = _load_tokenizer(config, facts, checkpoint)
    plain = _load_plain_model(config, checkpoint, dtype)

    partial, replaced = (out.with_name(out.name + end) for end in (".partial", ".replaced"))
    _check_replaceable(partial)
    _check_replaceable(replaced)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        provenance = _provenance(config, facts, tokenizer, checkpoint, plain, dtype)
        # First, so that what an interruption leaves behind is known to be ours.
        write_json(partial / PROVENANCE, provenance)
        (partial / "README.md").write_text(model_card(provenance), encoding="utf-8")
        _write_model(partial, config, plain, dtype)
        _write_tokenizer(partial, config, tokenizer)
        comparison = compare_in_another_process(partial, config, tokenizer, plain)
        if comparison.problems:
            raise ExportError(f"{out}: not written: {'; '.join(comparison.problems)}")
        files = sorted(partial.iterdir())
        size_bytes = sum(file.stat().st_size for file in files)
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
    return ExportReport(
        path=out,
        checkpoint=checkpoint,
        step=facts["step"],
        tokens_seen=facts["tokens_seen"],
        parameters=provenance["parameters"],
        dtype=dtype,
        size_bytes=size_bytes,
        files=tuple(file.name for file in files),
        logit_difference=comparison.logit_difference,
        cache_difference=comparison.cache_difference,
        texts=comparison.texts,
        ties=comparison.ties,
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


def _load_plain_model(config: RunConfig, checkpoint: Path, dtype: str) -> SpadeForSeq2Seq:
    """The pretrained network in float32, its weights rounded to what the export will hold."""
    plain = SpadeForSeq2Seq(config.model)
    weights = load_weights(checkpoint)
    if dtype == "bfloat16":
        weights = {
            name: value if ".state_space." in name else value.to(torch.bfloat16).float()
            for name, value in weights.items()
        }
    try:
        plain.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ExportError(f"{checkpoint}: its weights do not fit its model: {reason}") from error
    plain.lm_head.weight = plain.model.shared.weight
    return plain.eval()


def _provenance(
    config: RunConfig,
    facts: dict[str, Any],
    tokenizer: DocumentTokenizer,
    checkpoint: Path,
    plain: SpadeForSeq2Seq,
    dtype: str,
) -> dict[str, Any]:
    """Everything known about the checkpoint. No paths: the folder is made to be given away."""
    settings = config.to_dict()
    objective = config.data.make_objective()
    return {
        "format": FORMAT,
        "format_version": 1,
        "run": config.name,
        "checkpoint": checkpoint.name,
        "step": facts["step"],
        "sample_index": facts["sample_index"],
        "tokens_seen": facts["tokens_seen"],
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "dtype": dtype,
        "code_version": facts["code_version"],
        "fingerprints": facts["fingerprints"],
        "heldout": _heldout_losses(checkpoint, facts["step"]),
        "tokenizer": {
            name: getattr(tokenizer, name)
            for name in (
                "vocab_size",
                "piece_count",
                "sentinel_count",
                "pad_token_id",
                "eos_token_id",
                "unk_token_id",
            )
        }
        | {"segment_pattern": SEGMENT_PATTERN},
        "objective": {
            "input_length_tokens": objective.input_length_tokens,
            "target_length_tokens": objective.target_length_tokens,
            **settings["data"]["objective"],
        },
        "model": config.model.to_dict(),
        "training": settings["train"],
        "optimizer": settings["optimizer"],
        "schedule": settings["schedule"],
    }


def _heldout_losses(checkpoint: Path, step: int) -> dict[str, Any] | None:
    """The evaluation made at a checkpoint's step, if its run's metrics are still beside it."""
    folder = RunFolder(checkpoint.parent.parent)
    for line in reversed(read_metrics(folder.metrics_path)):
        if line.get("step") == step and "eval/heldout/loss" in line:
            return {key: value for key, value in line.items() if key.startswith("eval/")} | {
                "step": step
            }
    return None


def _write_model(partial: Path, config: RunConfig, plain: SpadeForSeq2Seq, dtype: str) -> None:
    from spade_model.huggingface.saving import save_seq2seq

    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    save_seq2seq(partial, config.model, plain.state_dict(), kind)


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
