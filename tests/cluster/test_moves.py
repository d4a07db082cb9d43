"""One run that moves from launcher to launcher, and from two ranks to one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines.hosts import wait_for
from machines.slurm import Slurm
from worker_processes import losses, read_lines, train

from launch.clusters.record import read_events
from pretrain.checkpoints.checkpoint_format import latest_complete
from pretrain.checkpoints.reader import load_weights

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

LOCAL_STEPS, SLURM_STEPS, MPI_STEPS = 3, 6, 8


def launch(slurm: Slurm, *words: str) -> None:
    """As a user on the login host does."""
    command = (sys.executable, "-m", "launch.cli", "launch", *words)
    slurm.run(*command, timeout_seconds=300)


def test_a_run_moves_from_local_to_slurm_to_mpi(
    slurm: Slurm,
    run_settings: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    """Two ranks give the same bits wherever they are; one adds the same numbers in another order.

    1e-5 bounds what that does to a float32 loss over these steps.
    """
    run_settings["train"]["precision"] = "fp32"
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 2}
    run_settings["evaluation"]["every_steps"] = 100
    config = write_config(run_settings)
    whole, moved = tmp_path / "runs" / "whole", tmp_path / "runs" / "moved"
    train(config, "name=whole", f"train.max_steps={MPI_STEPS}", processes=2)

    def leg(launcher: str, steps: int, *options: str) -> None:
        overrides = ("name=moved", f"train.max_steps={steps}")
        launch(slurm, launcher, str(config), *overrides, *options)
        # Slurm's launcher submits; what it submitted notes its end as the others do.
        wait_for(lambda: last_event(moved) == (launcher, "done"), 240, f"the end under {launcher}")

    leg("local", LOCAL_STEPS, "--processes", "2")
    leg("slurm", SLURM_STEPS, "--nodes", "2", "--processes", "1")
    leg("mpi", MPI_STEPS, "--processes", "1")

    one, other = losses(moved), losses(whole)
    assert [step for step, _ in one] == list(range(1, MPI_STEPS + 1))
    assert one[:SLURM_STEPS] == other[:SLURM_STEPS]
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in other], rel=1e-5)
    first, second = (load_weights(latest_complete(run)) for run in (moved, whole))
    for name in first:
        assert first[name].numpy() == pytest.approx(second[name].numpy(), rel=1e-3, abs=1e-5), name
    assert resumptions(moved) == [(LOCAL_STEPS, 2), (SLURM_STEPS, 1)]


def last_event(run: Path) -> tuple[str, str]:
    event = read_events(run)[-1]
    return event["launcher"], event["event"]


def resumptions(run: Path) -> list[tuple[int, int]]:
    """After which step the run went on, and with how many ranks."""
    events = [line for line in read_lines(run / "metrics.jsonl") if line.get("event") == "resume"]
    return [(event["step"], event["processes"]) for event in events]
