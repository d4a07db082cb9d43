"""Ranks that are killed, hang or fail while they save, as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import checkpoint_saves
import pytest
import torch
from checkpoint_saves import NOT_SAVED, expected, newest_sound, save, saver_of, snapshot_of

from pretrain.checkpoints.checkpoint_format import list_checkpoints, verify_checkpoint
from pretrain.checkpoints.reader import load_weights
from pretrain.checkpoints.retention import clean_up

KILLED = -9
# World size, rank that is killed, step that is being saved: step 1 is there already.
REPLACING, FIRST_RANK, OTHER_RANK = "1-0-1", "2-0-2", "2-1-2"
pytestmark = pytest.mark.slow


def run_program(*arguments):
    """Run Python and return what it printed; it must end well."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint_saves.__file__).parent)},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """Exit codes of the ranks by case and moment, and where the runs lie."""
    folder = tmp_path_factory.mktemp("kills")
    program = checkpoint_saves.__file__
    return json.loads(run_program(program, folder, REPLACING, FIRST_RANK, OTHER_RANK)), folder


def holds(path, value):
    weights = load_weights(path)
    return all(torch.equal(weights[name], tensor) for name, tensor in expected(value).items())


@pytest.mark.parametrize("case", [REPLACING, FIRST_RANK, OTHER_RANK])
def test_a_kill_at_any_operation_leaves_one_whole_checkpoint_in_force(kills, case):
    results, folder = kills
    world_size, victim, step = map(int, case.split("-"))
    codes = results[case]
    assert len(codes) > (3 if case == OTHER_RANK else 20), "each operation was a moment to die at"
    assert all(ranks[victim] == KILLED for ranks in codes[:-1])
    assert codes[-1] == [0] * world_size
    outcomes = []
    for number, ranks in enumerate(codes):
        run = folder / case / str(number)
        for info in list_checkpoints(run):
            if info.complete:
                assert verify_checkpoint(info.path) == []
        clean_up(run)
        newest, passed_over = newest_sound(run)
        assert newest is not None
        assert passed_over == []
        outcomes.append(newest.name == f"step-{step:08d}" and holds(newest, 10.0 * step))
        assert outcomes[-1] or (newest.name == "step-00000001" and holds(newest, 1.0))
        assert outcomes[-1] or 0 not in ranks, "nobody was told that it is saved"
        names = {path.name for path in (run / "checkpoints").iterdir()}
        assert names <= {"latest", "step-00000001", "step-00000002"}
        assert all(code in (0, NOT_SAVED, KILLED) for code in ranks), "nobody hangs or crashes"
    assert outcomes == sorted(outcomes), "once in force, it stays"


def test_a_run_goes_on_saving_where_one_was_killed(kills):
    _, folder = kills
    run = folder / FIRST_RANK / "1"
    save(saver := saver_of(run), 3, snapshot_of(3.0))
    saver.wait()
    assert newest_sound(run)[0] == list_checkpoints(run)[-1].path


TROUBLED = """
import resource, signal, sys, time
from pathlib import Path
import torch.distributed as dist
from checkpoint_saves import *

folder = Path(sys.argv[1])

def hear(rank):
    join(rank, 2, folder / "meeting")
    saver = saver_of(folder / "run", rank=rank, world_size=2)
    for step in (1, 2):
        save(saver, step, snapshot_of(float(step), rank, 2))
    saver.wait()
    assert [item.size_bytes for item in saver.take_finished()][0] > 1000
    if rank == 1:
        file = folder / "run/checkpoints/step-00000002" / "rank-00001.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    dist.barrier()
    found, passed_over = agree_on_resumable(
        folder / "run", rank=rank, world_size=2, group=dist.group.WORLD
    )
    assert found.name == "step-00000001", found
    assert len(passed_over) == (rank == 0), "the rank whose share it is says so"
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    save(saver, 3, snapshot_of(3.0, rank, 2))
    try:
        saver.wait()
    except CheckpointError as error:
        assert ("rank 1 could not write" if rank == 0 else "File too large") in str(error), error
        assert "last complete checkpoint is step-00000002" in str(error), error
    else:
        return 3
    return NOT_SAVED

def leave(rank):
    join(rank, 2, folder / "other-meeting")
    saver = saver_of(folder / "other", rank=rank, world_size=2)
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    save(saver, 1, snapshot_of(1.0, rank, 2))
    time.sleep(0.5)
    assert not saver.idle

told = exit_codes([fork(lambda rank=rank: hear(rank)) for rank in range(2)])
left = []
for rank in range(2):
    process = os.fork()
    if process == 0:
        leave(rank)
        sys.exit(5)  # and not os._exit: the interpreter winds up as it does at the end of a run
    left.append(process)
(code,) = exit_codes(left[:1])
os.kill(left[1], signal.SIGKILL)
print(json.dumps([*told, code]))
"""


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """Exit codes of ranks in trouble, and where their run lies."""
    folder = tmp_path_factory.mktemp("troubled")
    return json.loads(run_program("-c", TROUBLED, folder)), folder


def test_all_ranks_hear_of_one_that_cannot_write_and_agree_where_to_go_on(troubled):
    codes, folder = troubled
    assert codes[:2] == [NOT_SAVED, NOT_SAVED]
    names = {path.name for path in (folder / "run" / "checkpoints").iterdir()}
    assert names == {"latest", "step-00000001", "step-00000002"}


def test_a_thread_that_waits_for_a_lost_rank_keeps_no_process_from_ending(troubled):
    """A rank that is stopped looks to the others like one behind a dead network."""
    codes, _ = troubled
    assert codes[2] == 5
