"""The steps by which one rank's part, and then the whole checkpoint, come to lie on the disk.

All ranks write into a folder that no reader looks at; when all have succeeded, the manifest is
written there and the folder gets its name. Whatever dies at whatever moment, the checkpoints before
stay in force. The folder's name holds a number drawn for this one attempt, so that a rank of an
earlier start that was taken for dead cannot write among this one's files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.checkpoints.checkpoint_format import (
    CONFIG,
    MANIFEST,
    PARTIAL_SUFFIX,
    REPLACED_SUFFIX,
    WHOLE,
    manifest_problem,
    rank_file,
)
from pretrain.checkpoints.reader import FRAGMENTS
from pretrain.checkpoints.snapshot import Snapshot
from pretrain.checkpoints.tensor_file import WrittenFile, write_tensors, write_text
from pretrain.run_folder import flush_folder, write_json


def partial_folder(final: Path, attempt: int) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return final.with_name(f"{final.name}-{attempt:016x}{PARTIAL_SUFFIX}")


def write_part(
    partial: Path, rank: int, snapshot: Snapshot, config_yaml: str
) -> dict[str, WrittenFile]:
    """Write one rank's files to the disk.

    Args:
        partial: The folder; made here as well, since another host may not see it yet.
        rank: Rank 0 also writes what belongs to no rank.
        snapshot: What to write.
        config_yaml: The resolved configuration.

    Returns:
        What was written, by file name.

    Raises:
        OSError: If something cannot be written.
    """
    partial.mkdir(parents=True, exist_ok=True)
    own = rank_file(rank)
    places = {FRAGMENTS: json.dumps(snapshot.places)}
    written = {own: write_tensors(partial / own, snapshot.tensors, places)}
    if rank == 0:
        written[WHOLE] = write_tensors(partial / WHOLE, snapshot.whole, {"format": "pt"})
        written[CONFIG] = write_text(partial / CONFIG, config_yaml)
    flush_folder(partial)
    return written


def commit(partial: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """From written to in force: manifest, then the name.

    A checkpoint of the same step, left by a run that has rolled back or was damaged, steps aside
    under a name by which :func:`pretrain.checkpoints.retention.clean_up` can put it back.

    Raises:
        OSError: If something cannot be written.
    """
    problem = manifest_problem(json.loads(json.dumps(manifest)))
    assert problem is None, problem
    write_json(partial / MANIFEST, manifest)
    flush_folder(partial)
    replaced = final.with_name(final.name + REPLACED_SUFFIX)
    if final.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        final.rename(replaced)
    partial.rename(final)
    flush_folder(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)
