"""A save in the background: what it promises to the run that goes on meanwhile."""

from __future__ import annotations

import math
import os
import subprocess
import threading

import pytest
import torch
from checkpoint_saves import expected, facts_of, newest_sound, save, saver_of, snapshot_of
from small_disk import mounted

from pretrain.checkpoints.checkpoint_format import (
    latest_complete,
    list_checkpoints,
    read_manifest,
    verify_checkpoint,
)
from pretrain.checkpoints.reader import load_weights
from pretrain.checkpoints.retention import clean_up
from pretrain.checkpoints.settings import CheckpointSettings
from pretrain.checkpoints.snapshot import Snapshot
from pretrain.errors import CheckpointError

X = "weight/x"


def large_part(value):
    """A part that takes a while to write: 32 MB."""
    return Snapshot({"x": (0, 1 << 23)}, {X: torch.full((1 << 23,), value)})


def large_facts(step):
    return facts_of(step) | {"parameters": {"x": [1 << 23]}, "tied": {}}


def start(saver, step, part, facts):
    saver.start(part, facts, "name: test\n", kind="scheduled", heldout_loss=None)


def test_a_second_save_waits_for_the_first_and_each_is_whole(tmp_path):
    saver = saver_of(tmp_path, CheckpointSettings(keep_last=9))
    memory = large_part(0.0)
    for step in range(1, 4):
        saver.wait()
        assert saver.idle
        memory.tensors[X].fill_(step)
        facts = large_facts(step)
        start(saver, step, memory, facts)
        facts["step"] = 99  # the run goes on changing what it knows
        if step > 1:
            assert list_checkpoints(tmp_path)[step - 2].complete
    saver.wait()
    finished = saver.take_finished()
    assert [item.step for item in finished] == [1, 2, 3]
    assert saver.take_finished() == []
    for item in finished:
        assert verify_checkpoint(item.path) == []
        assert torch.equal(load_weights(item.path)["x"], large_part(float(item.step)).tensors[X])
        assert item.seconds > 0
        files = read_manifest(item.path)["files"].values()
        assert item.size_bytes == sum(file["size_bytes"] for file in files) > 1 << 25


def test_the_caller_goes_on_while_the_disk_is_written(tmp_path):
    """Whoever waits tells its watchdog so; whoever does not finds the flag without waiting."""
    beats = []
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    saver = saver_of(tmp_path, beat=lambda: beats.append(saver.idle))
    start(saver, 1, large_part(1.0), large_facts(1))
    went_on = not saver.idle
    assert not saver.failed
    saver.wait()
    assert went_on, "start came back before the file was written"
    assert beats[-1] is True
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority, "only the writing steps back"
    in_turn = saver_of(tmp_path, CheckpointSettings(in_background=False))
    start(in_turn, 2, large_part(1.0), large_facts(2))
    assert in_turn.idle
    assert [item.step for item in in_turn.take_finished()] == [2]


def test_saving_again_at_the_same_step_replaces_the_checkpoint(tmp_path):
    saver = saver_of(tmp_path, CheckpointSettings(keep_last=1, in_background=False))
    for value in (1.0, 2.0):
        save(saver, 4, snapshot_of(value), heldout_loss=math.nan)
        assert torch.equal(
            load_weights(latest_complete(tmp_path))["scale"], expected(value)["scale"]
        )
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "latest",
        "step-00000004",
    }
    assert list_checkpoints(tmp_path)[0].heldout_loss is None, "NaN is no loss to be best by"


def test_a_failure_in_the_background_is_told_at_every_door(tmp_path):
    saver = saver_of(tmp_path)
    save(saver, 1, snapshot_of(1.0))
    saver.wait()
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    save(saver, 2, snapshot_of(2.0))
    saver.close()
    assert saver.failed
    for door in (saver.wait, saver.raise_if_failed, lambda: save(saver, 3, snapshot_of(3.0))):
        with pytest.raises(CheckpointError, match=r"step-00000002: not written: .*is none; free"):
            door()
    assert [item.step for item in saver.take_finished()] == [1]
    assert not any(thread.name == "checkpoint" for thread in threading.enumerate())


def test_what_cannot_be_tidied_is_a_warning_and_no_failure(tmp_path, caplog):
    saver = saver_of(tmp_path, CheckpointSettings(keep_last=1, in_background=False))
    save(saver, 1, snapshot_of(1.0))
    (tmp_path / "checkpoints" / "latest").unlink()
    (tmp_path / "checkpoints" / "latest").mkdir()  # no link takes the place of a folder
    (tmp_path / "checkpoints" / "step-00000001.removed").write_text("in the way")
    save(saver, 2, snapshot_of(2.0))
    assert not saver.failed
    assert [record.message for record in caplog.records if "after step-00000002" in record.message]
    assert [item.step for item in list_checkpoints(tmp_path)] == [1, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system that holds one large checkpoint."""
    with mounted(tmp_path / "small", "40m") as folder:
        yield folder


def test_a_full_disk_leaves_the_checkpoint_before_in_force(small_disk):
    saver = saver_of(small_disk)
    start(saver, 1, large_part(1.0), large_facts(1))
    start(saver, 2, large_part(2.0), large_facts(2))
    with pytest.raises(CheckpointError, match=r"No space left.*last complete .* step-00000001;"):
        saver.wait()
    assert newest_sound(small_disk) == (latest_complete(small_disk), [])
    assert {path.name for path in (small_disk / "checkpoints").iterdir()} == {
        "latest",
        "step-00000001",
    }
    subprocess.run(["mount", "-o", "remount,size=99m", str(small_disk)], check=True)
    assert clean_up(small_disk) == []
    again = saver_of(small_disk)
    start(again, 2, large_part(2.0), large_facts(2))
    again.wait()
    assert latest_complete(small_disk).name == "step-00000002"


def test_a_run_goes_on_from_the_newest_checkpoint_whose_every_byte_is_right(tmp_path):
    saver = saver_of(tmp_path, CheckpointSettings(keep_last=9, in_background=False))
    for step in range(1, 6):
        save(saver, step, snapshot_of(float(step)))
    paths = [info.path for info in list_checkpoints(tmp_path)]
    for path, harm in zip(paths[:0:-1], (flip_last_byte, cut_short, lose, forge), strict=True):
        harm(path)
        found, passed_over = newest_sound(tmp_path)
        assert found == paths[paths.index(path) - 1]
        assert len(passed_over) == 5 - paths.index(path)
        assert all(str(path.parent) in line for line in passed_over)
    flip_last_byte(paths[0])
    assert newest_sound(tmp_path)[0] is None


def flip_last_byte(path):
    file = path / "rank-00000.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_short(path):
    os.truncate(path / "whole.safetensors", 20)


def lose(path):
    (path / "config.yaml").unlink()


def forge(path):
    (path / "manifest.json").write_text('{"format_version": 2}')
