"""A disk that fills up during a checkpoint leaves the one before it in force."""

from __future__ import annotations

import subprocess

import pytest
from small_disk import mounted
from worker_processes import Workers, losses, train

from pretrain.checkpoints.checkpoint_format import list_checkpoints, verify_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of three megabytes."""
    with mounted(tmp_path / "small", "3m") as folder:
        yield folder


def test_the_run_fails_in_one_line_and_goes_on_once_there_is_room(
    run_settings, write_config, small_disk, tmp_path
):
    run_settings["train"]["max_steps"] = 9
    run_settings["checkpoint"] = {"every_steps": 1, "keep_last": 9}
    config = write_config(run_settings)
    workers = Workers(config, f"run_dir={small_disk}", processes=2)
    assert workers.wait() == [1, 1]
    said = [line for text in workers.output for line in text.splitlines() if "error:" in line]
    assert any("No space left" in line for line in said)
    assert all("the last complete checkpoint is step-0000000" in line for line in said)
    assert not any("Traceback" in text for text in workers.output)

    run = small_disk / "tiny"
    kept = list_checkpoints(run)
    assert len(kept) >= 1
    for info in kept:
        assert info.complete
        assert verify_checkpoint(info.path) == []
    assert not list((run / "checkpoints").glob("*.partial"))
    assert (run / "checkpoints" / "latest").resolve() == kept[-1].path.resolve()

    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    train(config, f"run_dir={small_disk}", processes=2)
    train(config, processes=2)
    assert losses(run) == losses(tmp_path / "runs" / "tiny")
