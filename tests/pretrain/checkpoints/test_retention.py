"""Which checkpoints stay, and that removing the others never leaves a part of one in force."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from checkpoint_saves import save, saver_of, snapshot_of
from commands import spade
from hypothesis import given

from launch.commands.checkpoint import prune
from pretrain.checkpoints.checkpoint_format import (
    CheckpointInfo,
    latest_complete,
    list_checkpoints,
    verify_checkpoint,
)
from pretrain.checkpoints.retention import clean_up, doomed, remove_checkpoint, remove_newer
from pretrain.checkpoints.settings import CheckpointSettings


def info(step, *, complete=True, kind="scheduled", loss=None):
    path = Path(f"step-{step:08d}")
    return CheckpointInfo(step, path, complete, 1, None if complete else "?", kind, loss)


INFOS = st.lists(
    st.builds(
        info,
        st.integers(1, 40),
        complete=st.booleans() | st.just(True),
        kind=st.sampled_from(["scheduled", "stop", "final"]),
        loss=st.none() | st.sampled_from([1.0, 2.0, 3.0]),
    ),
    unique_by=lambda item: item.step,
    max_size=15,
)
SETTINGS = st.builds(
    CheckpointSettings,
    every_steps=st.just(1),
    keep_last=st.integers(1, 4),
    keep_every_steps=st.none() | st.integers(1, 10),
    keep_best=st.integers(0, 3),
    keep_stopped=st.integers(0, 3),
)


@given(infos=INFOS, settings=SETTINGS, in_force=st.none() | st.integers(1, 40))
def test_each_rule_keeps_its_own_and_no_more_goes(infos, settings, in_force):
    leaving = doomed(infos, settings, in_force)
    assert [item.step for item in leaving] == sorted(item.step for item in leaving)
    assert all(item.complete for item in leaving), "damaged ones are left to people"
    complete = sorted((item for item in infos if item.complete), key=lambda item: item.step)
    kept = [item for item in complete if item not in leaving]
    assert kept[-settings.keep_last :] == complete[-settings.keep_last :]
    best = sorted(item.heldout_loss for item in complete if item.heldout_loss is not None)
    best_kept = sorted(item.heldout_loss for item in kept if item.heldout_loss is not None)
    assert best_kept[: settings.keep_best] == best[: settings.keep_best]
    older = complete[: -settings.keep_last]
    stopped = [item for item in older if item.kind == "stop"]
    assert all(item in kept for item in stopped[::-1][: settings.keep_stopped])
    for item in kept:
        every = settings.keep_every_steps
        assert (
            item in complete[-settings.keep_last :]
            or item.step == in_force
            or (every is not None and item.step % every == 0)
            or item in stopped[::-1][: settings.keep_stopped]
            or item.heldout_loss in best[: settings.keep_best]
        )
    assert not any(item.step == in_force for item in leaving)
    assert len(kept) >= min(len(complete), settings.keep_last)


@given(infos=INFOS, settings=SETTINGS)
def test_pruning_twice_removes_nothing_more(infos, settings):
    leaving = doomed(infos, settings, None)
    assert doomed([item for item in infos if item not in leaving], settings, None) == []


def test_of_equal_losses_the_newer_stays():
    infos = [info(step, loss=2.0) for step in (1, 2, 3)]
    settings = CheckpointSettings(keep_last=1, keep_best=2)
    assert [item.step for item in doomed(infos, settings, None)] == [1]


def test_steps_that_are_never_written_cannot_be_kept():
    with pytest.raises(ValueError, match="keep_every_steps 750 is no multiple of"):
        CheckpointSettings(every_steps=500, keep_every_steps=750)


@pytest.fixture
def run(tmp_path, run_settings, prose_data):
    """A run with checkpoints of steps 1 to 6, the third of the lowest held-out loss."""
    from pretrain.config import RunConfig

    run_settings["model"]["vocab_size"] = 512
    config = RunConfig.from_dict(run_settings)
    saver = saver_of(tmp_path / "run", CheckpointSettings(keep_last=9))
    for step in range(1, 7):
        loss = 3.0 if step == 3 else 4.0
        part = snapshot_of(float(step))
        save(saver, step, part, config_yaml=config.to_yaml(), heldout_loss=loss)
    saver.wait()
    return tmp_path / "run"


def steps(run):
    found = list_checkpoints(run)
    assert all(verify_checkpoint(item.path) == [] for item in found)
    return [item.step for item in found]


def test_the_command_says_what_it_would_remove_and_removes_that(run, capsys):
    options = ("--keep-every", "2", "--keep-best", "1", "--keep-last", "1")
    prune(run, keep_last=1, keep_every=2, keep_best=1, dry_run=True)
    assert capsys.readouterr().out.count("would remove") == 2
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    removed = json.loads(spade("checkpoint", "prune", run, *options, "--json"))
    assert removed["removed"]
    assert [item["step"] for item in removed["checkpoints"]] == [1, 5]
    assert steps(run) == [2, 3, 4, 6]
    prune(run)
    assert steps(run) == [4, 6], "the run's own rule is to keep two"
    prune(run)
    assert "the rules keep every checkpoint" in capsys.readouterr().out
    assert (run / "checkpoints" / "latest").resolve() == latest_complete(run)


def test_a_run_that_rolls_back_loses_what_came_after(run):
    newest = [f"step-0000000{step}" for step in (6, 5)]
    assert [path.name for path in remove_newer(run, 4)] == newest
    assert steps(run) == [1, 2, 3, 4]
    assert remove_newer(run, 4) == []


def test_what_interrupted_runs_leave_is_cleaned_up(run):
    folder = run / "checkpoints"
    (folder / "step-00000006").rename(folder / "step-00000006.replaced")  # its successor is missing
    (folder / "step-00000005-0123456789abcdef.partial").mkdir()
    (folder / "step-00000005.removed").mkdir()
    (folder / "step-00000004.replaced").mkdir()
    (folder / "latest.partial").symlink_to("step-00000001")
    (folder / "notes.partial").write_text("not ours")
    assert len(clean_up(run)) == 5
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in folder.iterdir() if not path.name.startswith("step-")} == {
        "latest",
        "notes.partial",
    }
    assert clean_up(run) == []
    assert clean_up(run / "nothing") == []


def test_removing_what_another_process_has_removed_is_no_error(run):
    path = latest_complete(run)
    remove_checkpoint(path)
    remove_checkpoint(path)
    assert steps(run) == [1, 2, 3, 4, 5]
