"""Which checkpoints a run keeps, and how the others leave so that none is ever half there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from pretrain.checkpoints.checkpoint_format import (
    PARTIAL_SUFFIX,
    REMOVED_SUFFIX,
    REPLACED_SUFFIX,
    CheckpointInfo,
    list_checkpoints,
    step_of,
)
from pretrain.checkpoints.settings import CheckpointSettings
from pretrain.run_folder import RunFolder


def doomed(
    infos: Iterable[CheckpointInfo], settings: CheckpointSettings, in_force: int | None
) -> list[CheckpointInfo]:
    """The checkpoints that no rule keeps, oldest first.

    Damaged ones are left alone: they count for no rule, and what they still hold may be wanted.

    Args:
        infos: Checkpoints of a run.
        settings: The rules.
        in_force: Step of a checkpoint that is kept whatever the rules say, such as the one just
            written.
    """
    complete = sorted((info for info in infos if info.complete), key=lambda info: info.step)
    newest = complete[-settings.keep_last :]
    kept = {info.step for info in newest} | {in_force}
    if settings.keep_every_steps is not None:
        kept |= {info.step for info in complete if info.step % settings.keep_every_steps == 0}
    evaluated = [
        (info.heldout_loss, -info.step) for info in complete if info.heldout_loss is not None
    ]
    kept |= {-step for _, step in sorted(evaluated)[: settings.keep_best]}
    stopped = [info.step for info in complete[: -settings.keep_last] if info.kind == "stop"]
    kept |= set(stopped[max(0, len(stopped) - settings.keep_stopped) :])
    return [info for info in complete if info.step not in kept]


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint so that no part of it ever passes for one: its name goes first.

    Raises:
        OSError: If it cannot be renamed or removed.
    """
    leaving = path.with_name(path.name + REMOVED_SUFFIX)
    if leaving.exists():
        shutil.rmtree(leaving)
    try:
        path.rename(leaving)
    except FileNotFoundError:
        return  # the run itself, or another `spade checkpoint prune`, was quicker
    shutil.rmtree(leaving)


def prune(run: Path, settings: CheckpointSettings, *, in_force: int) -> None:
    """Remove the checkpoints that no rule keeps.

    Raises:
        OSError: If one cannot be removed; those after it stay for the next time.
    """
    for info in doomed(list_checkpoints(run), settings, in_force):
        remove_checkpoint(info.path)


def remove_newer(run: Path, step: int) -> list[Path]:
    """Remove the checkpoints after a step: a run that rolls back has left that way.

    The newest goes first: whatever interrupts this, no gap is left between those that remain.

    Returns:
        What was removed.

    Raises:
        OSError: If one cannot be removed.
    """
    newer = [info.path for info in reversed(list_checkpoints(run)) if info.step > step]
    for path in newer:
        remove_checkpoint(path)
    return newer


def clean_up(run: Path) -> list[str]:
    """Tidy what an interrupted run left in its checkpoints; for one process, before it looks there.

    Half-written and half-removed folders go. A checkpoint that was about to be replaced by another
    one of its step comes back, unless the other one took its place.

    Returns:
        What was done, one line each.

    Raises:
        OSError: If something cannot be removed.
    """
    folder = RunFolder(run).checkpoints
    if not folder.is_dir():
        return []
    done = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(("step-", "latest")):
            continue  # not ours
        if path.name.endswith(REPLACED_SUFFIX):
            final = path.with_name(path.name.removesuffix(REPLACED_SUFFIX))
            if step_of(final.name) is not None and not final.exists():
                path.rename(final)
                done.append(f"{final}: put back, as the one to replace it was not finished")
                continue
        if path.name.endswith((PARTIAL_SUFFIX, REMOVED_SUFFIX, REPLACED_SUFFIX)):
            _remove(path)
            done.append(f"{path}: left by an interrupted run, removed")
    return done


def point_latest(final: Path) -> None:
    """Swap the ``latest`` link in one step.

    Raises:
        OSError: If the file system has no links, or cannot be written.
    """
    temporary = final.with_name(f"latest{PARTIAL_SUFFIX}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(final.name)
    temporary.replace(final.with_name("latest"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
