"""Saving while training goes on: a thread of each rank writes its copy, all agree on the outcome.

Writing, hashing, flushing and agreeing all happen outside Python's lock, so that training loses the
time of the copy into host memory and little more.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoints.checkpoint_format import (
    FORMAT_VERSION,
    CheckpointKind,
    folder_name,
    list_checkpoints,
    rank_file,
)
from pretrain.checkpoints.retention import point_latest, prune
from pretrain.checkpoints.settings import CheckpointSettings
from pretrain.checkpoints.snapshot import Snapshot
from pretrain.checkpoints.tensor_file import WrittenFile
from pretrain.checkpoints.transaction import commit, partial_folder, write_part
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder

_BEAT_SECONDS = 1.0
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that all ranks have written."""

    step: int
    path: Path
    seconds: float
    """From the start of the writing until it was in force."""
    size_bytes: int
    """Of all ranks' files."""


@dataclass(frozen=True)
class _Job:
    final: Path
    snapshot: Snapshot
    manifest: dict[str, Any]
    """What will stand there but for the files."""
    config_yaml: str


class _NotWritten(Exception):
    """Some rank could not do its part."""


class CheckpointSaver:
    """Writes one checkpoint after another; every rank makes the same calls at the same steps.

    One snapshot is under way at a time. A failure is the same on every rank and final: ``failed``
    turns true, and from then on ``start``, ``wait`` and ``raise_if_failed`` raise.

    The group's collectives are made by the thread alone. Its time-out must exceed the longest
    difference between two ranks' writing: a slow disk makes the others wait that long.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: CheckpointSettings,
        *,
        rank: int,
        world_size: int,
        group: dist.ProcessGroup | None,
        logger: logging.Logger,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Write nothing yet.

        Args:
            run: The run's folder, on a file system that all ranks share.
            settings: What is kept, and whether to write in the background.
            rank: Of this process.
            world_size: Number of ranks.
            group: A gloo group of all ranks that nobody else uses; none for one rank.
            logger: For what is odd but no failure, such as an old checkpoint that cannot be
                removed.
            beat: Called about once a second while :meth:`start` or :meth:`wait` waits, so that a
                watchdog knows that this is no hang.
        """
        self._run = run
        self._settings = settings
        self._rank = rank
        self._world_size = world_size
        self._group = group
        self._logger = logger
        self._beat = beat
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._finished: list[SavedCheckpoint] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: only then may a snapshot's memory be filled again."""
        return self._thread is None or not self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written; costs nothing to ask."""
        return self._problem is not None

    def start(
        self,
        snapshot: Snapshot,
        facts: dict[str, Any],
        config_yaml: str,
        *,
        kind: CheckpointKind,
        heldout_loss: float | None,
    ) -> None:
        """Write a checkpoint, in the background if the settings say so.

        Waits for the one before. The snapshot's memory belongs to the writing until ``idle``.

        Args:
            snapshot: This rank's numbers.
            facts: Plain data for the manifest, the same on every rank: `step`, `sample_index`,
                `tokens_seen`, `updates`, `fingerprints`, `quarantined`, `parameters`, `tied`, and
                whatever else describes the run.
            config_yaml: The resolved configuration.
            kind: Why it is written.
            heldout_loss: Mean held-out loss at this step, where it was evaluated.

        Raises:
            CheckpointError: If this one, or the one before, could not be written; on every rank.
        """
        self.wait()
        snapshot.check()
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "heldout_loss": _finite(heldout_loss),
            "created_unix_seconds": time.time(),
            "world_size": self._world_size,
            # A copy, since the run goes on changing what it knows.
            **json.loads(json.dumps(facts, allow_nan=False)),
        }
        final = self._run.checkpoints / folder_name(manifest["step"])
        job = _Job(final, snapshot, manifest, config_yaml)
        # A daemon: where a rank is lost, the others' threads wait for it, and must not keep their
        # processes from ending.
        self._thread = threading.Thread(
            target=self._save, args=(job,), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not self._settings.in_background:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is under way.

        Raises:
            CheckpointError: If a checkpoint could not be written.
        """
        while self._thread is not None:
            self._thread.join(_BEAT_SECONDS)
            if not self._thread.is_alive():
                self._thread = None
            self._beat()
        self.raise_if_failed()

    def raise_if_failed(self) -> None:
        """Tell a failure of the background.

        Raises:
            CheckpointError: If a checkpoint could not be written.
        """
        if self._problem is not None:
            raise CheckpointError(self._problem)

    def take_finished(self) -> list[SavedCheckpoint]:
        """The checkpoints written since the last call, for the log."""
        finished, self._finished = self._finished, []
        return finished

    def close(self) -> None:
        """Give a save under way a few seconds to end, whatever else has failed; never raises."""
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                self._logger.warning("left a checkpoint unfinished: its writing takes too long")

    def _save(self, job: _Job) -> None:
        """The thread: nothing that happens in it is lost."""
        if self._settings.in_background:
            _let_training_go_first()
        try:
            saved = self._write(job)
            self._finished.append(saved)  # looked up now: `take_finished` swaps the list
        except _NotWritten as error:
            self._fail(job.final, str(error), "free space or mend permissions and ")
        except Exception as error:
            # All that happens on this rank alone is told to the others: this was a collective.
            self._logger.error("agreement on %s: %s", job.final.name, _one_line(error))
            self._fail(job.final, "the connection to a rank broke, whose log may say why", "")

    def _write(self, job: _Job) -> SavedCheckpoint:
        """Take part in one transaction of all ranks.

        Raises:
            _NotWritten: On every rank, if one could not do its part.
            RuntimeError: If a collective fails.
        """
        began = time.perf_counter()
        attempt = secrets.randbits(62)
        ((attempt,), *_) = self._agree(None, attempt)
        partial = partial_folder(job.final, attempt)
        try:
            size_bytes = self._write_and_commit(job, partial)
        except Exception:
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        step = job.manifest["step"]
        if self._rank == 0:
            self._tidy(job.final, step)
        return SavedCheckpoint(step, job.final, time.perf_counter() - began, size_bytes)

    def _write_and_commit(self, job: _Job, partial: Path) -> int:
        """Write this rank's files; when all ranks have, rank 0 brings the checkpoint into force.

        Returns:
            Bytes of all ranks' files.
        """
        written: dict[str, WrittenFile] = {}
        problem = _attempt(
            lambda: written.update(write_part(partial, self._rank, job.snapshot, job.config_yaml))
        )
        own = written.get(rank_file(self._rank), WrittenFile(0, "0" * 32))
        common_bytes = sum(file.size_bytes for file in written.values()) - own.size_bytes
        table = self._agree(problem, own.size_bytes, common_bytes, *_halves(own.checksum))
        problem = None
        if self._rank == 0:
            for rank, (size_bytes, _, *halves) in enumerate(table):
                written[rank_file(rank)] = WrittenFile(size_bytes, _joined(halves))
            files = {name: file._asdict() for name, file in sorted(written.items())}
            problem = _attempt(lambda: commit(partial, job.final, job.manifest | {"files": files}))
        self._agree(problem)
        return sum(own_bytes + common_bytes for own_bytes, common_bytes, *_ in table)

    def _tidy(self, final: Path, step: int) -> None:
        """Move ``latest`` and prune: the checkpoint is in force whatever becomes of these."""
        for action in (
            lambda: point_latest(final),
            lambda: prune(self._run.path, self._settings, in_force=step),
        ):
            problem = _attempt(action)
            if problem is not None:
                self._logger.warning("after %s was written: %s", final.name, problem)

    def _agree(self, problem: str | None, *numbers: int) -> list[list[int]]:
        """Tell all ranks one's numbers, and fail on all of them if one has a problem.

        Returns:
            Each rank's numbers.

        Raises:
            _NotWritten: On every rank, if one has a problem.
            RuntimeError: If the collective fails.
        """
        table = torch.zeros(self._world_size, 1 + len(numbers), dtype=torch.int64)
        table[self._rank] = torch.tensor([problem is not None, *numbers], dtype=torch.int64)
        if self._world_size > 1:
            dist.all_reduce(table, group=self._group)
        failed = [rank for rank, row in enumerate(table.tolist()) if row[0]]
        if failed:
            raise _NotWritten(problem or f"rank {failed[0]} could not write its part")
        return [row[1:] for row in table.tolist()]

    def _fail(self, final: Path, reason: str, remedy: str) -> None:
        try:
            complete = [info for info in list_checkpoints(self._run.path) if info.complete]
            in_force = complete[-1].path.name if complete else "none"
        except OSError:
            in_force = "unknown, as the folder cannot be read"
        self._problem = (
            f"{final}: not written: {reason}; the last complete checkpoint is {in_force}; "
            f"{remedy}start the same command again"
        )
        self._logger.error("%s", self._problem)


def _let_training_go_first() -> None:
    """Take a tenth of a core at most where training wants all of them.

    Linux has priorities of single threads: ten steps weigh 110 to 1024 (sched(7)).
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        lower = min(os.getpriority(os.PRIO_PROCESS, thread) + 10, 19)
        os.setpriority(os.PRIO_PROCESS, thread, lower)


def _attempt(action: Callable[[], object]) -> str | None:
    """The reason in one line if an action fails, so that the others hear of it first."""
    try:
        action()
    except Exception as error:
        return _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def _halves(checksum: str) -> tuple[int, int]:
    """128 bits as two numbers that a tensor can hold."""
    digest = bytes.fromhex(checksum)
    high, low = (int.from_bytes(half, "big", signed=True) for half in (digest[:8], digest[8:]))
    return high, low


def _joined(halves: list[int]) -> str:
    return b"".join(half.to_bytes(8, "big", signed=True) for half in halves).hex()
