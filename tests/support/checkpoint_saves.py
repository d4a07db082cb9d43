"""Small checkpoints for tests, and a program that saves them in forked ranks and kills these.

``python checkpoint_saves.py FOLDER WORLD_SIZE-VICTIM-STEP…`` makes FOLDER/WORLD_SIZE-VICTIM-STEP/N
for N = 0, 1, … In each, step 1 is saved with values from 1, then STEP with those from 10 STEP by
several ranks, of which the victim is killed as by ``kill -9`` right before its N-th operation on
the file system; the last folder is the first in which it came through. It prints the exit codes of
the ranks for each folder, as JSON.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.checkpoints.finding import agree_on_resumable
from pretrain.checkpoints.saver import CheckpointSaver
from pretrain.checkpoints.settings import CheckpointSettings
from pretrain.checkpoints.snapshot import Snapshot
from pretrain.errors import CheckpointError
from pretrain.run_folder import RunFolder

PARAMETERS = {"layer.weight": [7, 5], "layer.bias": [11], "scale": [1]}
NOT_SAVED = 7
"""Exit code of a rank that was told that its checkpoint was not written."""
_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}


def expected(value: float) -> dict[str, torch.Tensor]:
    """The weights that :func:`snapshot_of` cuts into parts."""
    return {
        name: torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) + value
        for name, shape in PARAMETERS.items()
    } | {"mask": torch.tensor([True, False])}


def snapshot_of(value: float, rank: int = 0, world_size: int = 1) -> Snapshot:
    """One rank's part: all parameters one after another, cut evenly."""
    snapshot = Snapshot(whole={"mask": torch.tensor([True, False])} if rank == 0 else {})
    total = sum(math.prod(shape) for shape in PARAMETERS.values())
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    begin = 0
    for name in PARAMETERS:
        flat = expected(value)[name].reshape(-1)
        start, stop = max(first - begin, 0), min(last - begin, len(flat))
        if start < stop:
            snapshot.places[name] = (start, stop - start)
            snapshot.tensors[f"weight/{name}"] = flat[start:stop].clone()
            snapshot.tensors[f"exp_avg/{name}"] = -flat[start:stop]
        begin += len(flat)
    return snapshot


def facts_of(step: int) -> dict[str, Any]:
    """What a run tells of itself."""
    return {
        "step": step,
        "sample_index": 8 * step,
        "tokens_seen": 512 * step,
        "updates": step,
        "fingerprints": {"train": "a", "heldout": "b", "tokenizer": "c"},
        "quarantined": [],
        "parameters": PARAMETERS,
        "tied": {"head": "layer.weight"},
    }


def saver_of(
    run: Path,
    settings: CheckpointSettings | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    beat: Callable[[], None] = lambda: None,
) -> CheckpointSaver:
    """A saver of the default group."""
    return CheckpointSaver(
        RunFolder(run),
        settings or CheckpointSettings(),
        rank=rank,
        world_size=world_size,
        group=dist.group.WORLD if world_size > 1 else None,
        logger=logging.getLogger("test"),
        beat=beat,
    )


def save(
    saver: CheckpointSaver,
    step: int,
    snapshot: Snapshot,
    *,
    config_yaml: str = "name: test\n",
    heldout_loss: float | None = None,
) -> None:
    """Start a save of plain facts."""
    saver.start(snapshot, facts_of(step), config_yaml, kind="scheduled", heldout_loss=heldout_loss)


def newest_sound(run: Path) -> tuple[Path | None, list[str]]:
    """Where a run of one rank would go on, and what it would pass over."""
    return agree_on_resumable(run, rank=0, world_size=1, group=None)


def join(rank: int, world_size: int, meeting: Path) -> None:
    """Start the default group by a file where the ranks meet."""
    if world_size > 1:
        meeting.parent.mkdir(parents=True, exist_ok=True)
        url = f"file://{meeting}"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=world_size)


def fork(action: Callable[[], int]) -> int:
    """Run an action in a child that ends by its return value; returns its process id."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return process


def exit_codes(processes: list[int]) -> list[int]:
    """Wait for children; a signal's number is negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def _die_before_operation(number: int) -> None:
    """Let this process be killed before its n-th operation on the file system from now on."""
    counted = itertools.count()

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and next(counted) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _rank(
    run: Path, rank: int, world_size: int, step: int, value: float, dies_before: int | None
) -> int:
    join(rank, world_size, run.with_suffix(".meeting"))
    saver = saver_of(run, CheckpointSettings(keep_last=1), rank=rank, world_size=world_size)
    if dies_before is not None:
        _die_before_operation(dies_before)
    try:
        save(saver, step, snapshot_of(value, rank, world_size))
        saver.wait()
    except CheckpointError:
        return NOT_SAVED
    return 0


def _kill_before_each_operation(
    prepared: Path, folder: Path, world_size: int, victim: int, step: int
) -> list[list[int]]:
    results: list[list[int]] = []
    while not results or results[-1][victim] != 0:
        run = folder / str(len(results))
        shutil.copytree(prepared, run, symlinks=True)
        processes = []
        for rank in range(world_size):
            dies_before = len(results) if rank == victim else None
            processes.append(
                fork(
                    functools.partial(_rank, run, rank, world_size, step, 10.0 * step, dies_before)
                )
            )
        results.append(exit_codes(processes))
    return results


def _main(folder: Path, cases: list[str]) -> None:
    prepared = folder / "prepared"
    # In a child: the thread of a saver must not have run where ranks are forked.
    exit_codes([fork(functools.partial(_rank, prepared, 0, 1, 1, 1.0, None))])
    results = {
        case: _kill_before_each_operation(prepared, folder / case, *map(int, case.split("-")))
        for case in cases
    }
    print(json.dumps(results))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
