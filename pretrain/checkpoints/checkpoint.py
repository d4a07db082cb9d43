"""Writing a checkpoint as one transaction of all ranks, and loading the newest sound one.

All ranks write into ``step-N.partial/``, flush to disk and hash; when all have succeeded, rank 0
writes the manifest, renames the folder, and moves ``latest``. Whatever dies at whatever moment, the
previous checkpoint stays in force.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from pretrain.checkpoints.checkpoint_format import (
    CONFIG,
    FORMAT_VERSION,
    MANIFEST,
    PARTIAL_SUFFIX,
    WHOLE,
    CheckpointInfo,
    CheckpointReader,
    file_checksum,
    folder_name,
    latest_complete,
    list_checkpoints,
    load_run_config,
    load_weights,
    rank_file,
    read_manifest,
    verify_checkpoint,
)
from pretrain.config import RunConfig
from pretrain.engine.training_state import fragments, optimizer_steps, restore, whole_tensors
from pretrain.errors import CheckpointError
from pretrain.hardware import code_version
from pretrain.run_folder import RunFolder, write_json

__all__ = [
    "CheckpointInfo",
    "Position",
    "find_resumable",
    "latest_complete",
    "list_checkpoints",
    "load_checkpoint",
    "load_run_config",
    "load_weights",
    "save_checkpoint",
    "verify_checkpoint",
]


@dataclass(frozen=True)
class Position:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps made."""
    sample_index: int = 0
    """Samples consumed, and so the next sample: the whole state of the data."""
    tokens_seen: int = 0
    """Tokens of the windows consumed, before masking."""


def save_checkpoint(
    engine: Any,
    config: RunConfig,
    position: Position,
    fingerprints: dict[str, str],
    quarantined: list[dict[str, Any]],
) -> Path:
    """Write a checkpoint; every rank must call this at the same step.

    Args:
        engine: The DeepSpeed engine.
        config: The resolved configuration.
        position: How far the run has come.
        fingerprints: Of the data sets and the tokenizer.
        quarantined: Damaged places of the data, so that a resumed run goes around the same ones.

    Returns:
        The complete checkpoint's folder.

    Raises:
        CheckpointError: On every rank alike, if any rank could not write. Nothing is left behind
            and the previous checkpoint stays in force.
    """
    rank = dist.get_rank()
    checkpoints = RunFolder(config.run_path).checkpoints
    final = checkpoints / folder_name(position.step)
    partial = final.with_name(final.name + PARTIAL_SUFFIX)

    problem = _attempt(lambda: _prepare(final, partial)) if rank == 0 else None
    _agree(problem, partial, final)
    problem = _attempt(lambda: _write_rank_file(engine, partial / rank_file(rank)))
    if rank == 0 and problem is None:
        problem = _attempt(lambda: _write_common_files(engine, config, partial))
    _agree(problem, partial, final)
    problem = None
    if rank == 0:
        manifest = {
            "format_version": FORMAT_VERSION,
            "step": position.step,
            "sample_index": position.sample_index,
            "tokens_seen": position.tokens_seen,
            "optimizer_steps": optimizer_steps(engine),
            "world_size": dist.get_world_size(),
            "zero_stage": config.deepspeed.zero_stage,
            "precision": config.train.precision,
            "seed": config.train.seed,
            "fingerprints": fingerprints,
            "quarantined": quarantined,
            "code_version": code_version(),
            "parameters": {
                name: list(parameter.shape)
                for name, parameter in engine.module.named_parameters()
                if parameter.requires_grad
            },
            "tied": _tied_names(engine.module),
        }
        problem = _attempt(lambda: _commit(manifest, partial, final, config.checkpoint.keep_last))
    _agree(problem, partial, final)
    return final


def find_resumable(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every byte is as written.

    Returns:
        Its path, or none; and what was wrong with newer ones that were passed over.
    """
    passed_over: list[str] = []
    for info in reversed(list_checkpoints(run)):
        problems = [info.problem] if info.problem else verify_checkpoint(info.path)
        if not problems:
            return info.path, passed_over
        passed_over.append(problems[0])
    return None, passed_over


def load_checkpoint(engine: Any, path: Path) -> Position:
    """Fill a fresh engine from a checkpoint of any number of ranks.

    Args:
        engine: A DeepSpeed engine around the same model.
        path: A verified checkpoint.

    Raises:
        CheckpointError: If the checkpoint lacks a tensor of this model.
    """
    with CheckpointReader(path) as reader:
        manifest = reader.manifest
        restore(engine, reader.read_full, reader.read_slice, manifest["optimizer_steps"])
    return Position(manifest["step"], manifest["sample_index"], manifest["tokens_seen"])


def _prepare(final: Path, partial: Path) -> None:
    """Make room: leftovers of interrupted saves go, and so does a damaged folder of this step."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(f"*{PARTIAL_SUFFIX}"):
        _remove(leftover)
    if final.exists():
        _remove(final)
    partial.mkdir()


def _write_rank_file(engine: Any, path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    places: dict[str, tuple[int, int]] = {}
    for fragment in fragments(engine):
        places[fragment.name] = (fragment.start, fragment.length)
        for kind, values in fragment.values.items():
            # A copy: fragments are views of one flat vector, which safetensors refuses.
            tensors[f"{kind}/{fragment.name}"] = values.detach().cpu().clone()
    save_file(tensors, path, metadata={"fragments": json.dumps(places)})
    _flush(path)


def _write_common_files(engine: Any, config: RunConfig, partial: Path) -> None:
    whole = {
        name: value.detach().cpu().contiguous()
        for name, value in whole_tensors(engine.module).items()
    }
    save_file(whole, partial / WHOLE, metadata={"format": "pt"})
    (partial / CONFIG).write_text(config.to_yaml(), encoding="utf-8")
    _flush(partial / WHOLE)
    _flush(partial / CONFIG)


def _commit(manifest: dict[str, Any], partial: Path, final: Path, keep_last: int) -> None:
    """From written to in force: checksums, manifest, rename, pointer, pruning."""
    manifest["files"] = {
        file.name: {"size_bytes": file.stat().st_size, "checksum": file_checksum(file)}
        for file in sorted(partial.iterdir())
    }
    write_json(partial / MANIFEST, manifest)
    _flush(partial)
    partial.rename(final)
    _point_latest(final)
    _flush(final.parent)
    complete = [info for info in list_checkpoints(final.parent.parent) if info.complete]
    for info in complete[:-keep_last]:
        _remove(info.path)


def _point_latest(final: Path) -> None:
    """Swap the ``latest`` link in one step."""
    temporary = final.with_name(f"latest{PARTIAL_SUFFIX}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(final.name)
    temporary.replace(final.with_name("latest"))


def _remove(path: Path) -> None:
    """Remove a folder so that a part of it never passes for complete: its manifest goes first."""
    if path.is_dir() and not path.is_symlink():
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tied_names(module: torch.nn.Module) -> dict[str, str]:
    """Second names of shared parameters: ``{"lm_head.weight": "model.shared.weight"}``."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        original = first.setdefault(id(parameter), name)
        if original != name:
            tied[name] = original
    return tied


def _attempt(action: Any) -> str | None:
    """Run an action on the file system; the reason in one line if it fails."""
    try:
        action()
    except (OSError, SafetensorError) as error:
        return " ".join(str(error).split())
    return None


def _agree(problem: str | None, partial: Path, final: Path) -> None:
    """Fail on every rank if one failed, so that nobody waits for a rank that gave up."""
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    failed = torch.tensor([problem is not None], dtype=torch.int64, device=device)
    dist.all_reduce(failed)
    if not failed.item():
        return
    if dist.get_rank() == 0 and partial.exists():
        shutil.rmtree(partial, ignore_errors=True)
    reason = problem or "another rank could not write its part"
    previous = [info for info in list_checkpoints(final.parent.parent) if info.complete]
    in_force = previous[-1].path.name if previous else "none"
    raise CheckpointError(
        f"{final}: not written: {reason}; the last complete checkpoint is {in_force}; "
        "free space or mend permissions and start the same command again"
    )


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest without the list of tensors: what a model card states.

    Raises:
        CheckpointError: If the manifest is missing or damaged.
    """
    manifest = read_manifest(path)
    return {key: value for key, value in manifest.items() if key not in ("parameters", "files")}
