"""`spade launch mpi` under real MPIs: ranks and launchers are killed, the curve stays the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from machines.hosts import Hosts, wait_for
from worker_processes import losses, read_lines, train

from launch.clusters.mpi.flavours import detect_flavour
from launch.mpi import find_mpiexec

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PATIENCE_SECONDS = 240
STEPS = 60


@pytest.fixture(params=["mpich", "openmpi"])
def cluster_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A description of each MPI that is installed."""
    path = tmp_path / "cluster.yaml"
    if request.param == "mpich":
        mpiexec = find_mpiexec()
        if mpiexec is None or detect_flavour(mpiexec) != "mpich":
            pytest.skip("no MPICH: pip install '.[mpi]'")
        path.write_text(f"mpiexec: {mpiexec}\n")
        return path
    program = shutil.which("mpiexec.openmpi")
    libraries = sorted(Path("/usr/lib").glob("*/libmpi.so.40"))
    if program is None or not libraries:
        pytest.skip("no Open MPI: apt-get install openmpi-bin")
    path.write_text(f"mpiexec: {program}\nlibrary: {libraries[0]}\n")
    return path


class Launch:
    """A `spade launch mpi`, and what it starts."""

    def __init__(self, run: Path, *arguments: str) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.cli", "launch", "mpi", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while steps_made(self.run) < step:
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, f"no step {step}"
            time.sleep(0.02)

    def end(self) -> str:
        return self.process.communicate(timeout=PATIENCE_SECONDS)[0]


def steps_made(run: Path) -> int:
    return max((line["step"] for line in read_lines(run / "metrics.jsonl")), default=0)


def ranks_of(run: Path) -> list[psutil.Process]:
    """The processes that train, wherever they hang in the tree."""
    config = str(run / "launch" / "config.yaml")
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[-2:] == ["pretrain", config]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def processes_of(run: Path) -> list[str]:
    """Command lines of all that this run has started and that still lives."""
    lines = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(run / "launch" / "config.yaml") in line:
            lines.append(line)
    return lines


@pytest.fixture
def no_rank_stays(tmp_path: Path) -> Iterator[None]:
    yield
    for rank in ranks_of(tmp_path / "runs" / "tiny"):
        rank.kill()


@pytest.fixture
def config(run_settings: dict[str, Any], write_config: Callable[[dict[str, Any]], Path]) -> Path:
    """A run long enough to be disturbed; nobody waits for its end."""
    run_settings["train"]["max_steps"] = STEPS
    run_settings["checkpoint"] = {"every_steps": 4, "keep_last": 2}
    run_settings["evaluation"]["every_steps"] = 1000
    return write_config(run_settings)


_curves: list[list[tuple[int, float]]] = []


def undisturbed_curve(config: Path) -> list[tuple[int, float]]:
    """Losses of two ranks with torchrun's variables, made once."""
    if not _curves:
        train(config, "name=whole", processes=2)
        _curves.append(losses(config.parent / "runs" / "whole"))
    return _curves[0]


@pytest.mark.usefixtures("no_rank_stays")
def test_a_run_survives_a_killed_rank_a_stop_and_its_launchers_death(
    cluster_file: Path, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    options = (str(config), "--cluster", str(cluster_file), "--processes", "2")

    launch = Launch(run, *options, "--max-restarts", "2")
    launch.wait_for_step(8)
    ranks = ranks_of(run)
    assert len(ranks) == 2
    ranks[1].kill()
    launch.wait_for_step(20)
    launch.process.send_signal(signal.SIGINT)
    output = launch.end()
    assert launch.process.returncode == 75, output
    assert "was ended by SIGKILL" in output
    assert "restarted 1 times" in output
    assert "━" not in output, "no bars in a file, whatever terminal an MPI pretends"
    assert (run / "stopped.json").exists()
    assert not (run / "STOP").exists()
    assert not processes_of(run)

    launch = Launch(run, *options)
    launch.wait_for_step(steps_made(run) + 4)
    launch.process.kill()
    launch.process.wait()
    deadline = time.monotonic() + 60
    while processes_of(run):
        assert time.monotonic() < deadline, processes_of(run)
        time.sleep(0.1)
    made = losses(run)
    assert 20 < len(made) < STEPS
    assert made == undisturbed_curve(config)[: len(made)]


def test_ranks_of_two_hosts_find_one_another(
    cluster_file: Path, hosts: Hosts, config: Path, tmp_path: Path
) -> None:
    """One is killed; both go on, and stop when the launcher is asked to."""
    run = tmp_path / "runs" / "tiny"
    hostfile = tmp_path / "hosts.txt"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    launch = hosts.start(
        "login",
        *(sys.executable, "-m", "launch.cli", "launch", "mpi", str(config)),
        *("--hostfile", str(hostfile), "--cluster", str(cluster_file), "--max-restarts", "2"),
    )

    def wait_for_step(step: int) -> None:
        wait_for(
            lambda: steps_made(run) >= step or launch.poll() is not None,
            PATIENCE_SECONDS,
            f"step {step}",
        )
        assert launch.poll() is None, launch.output

    wait_for_step(6)
    [rank] = [number for number, line in hosts.processes("node2").items() if "pretrain" in line]
    os.kill(rank, signal.SIGKILL)
    wait_for_step(12)
    os.kill(launch.command_pid, signal.SIGTERM)
    assert launch.wait(PATIENCE_SECONDS) == 75, launch.output
    assert "on node2" in launch.output, launch.output
    assert "was ended by SIGKILL" in launch.output
    assert not processes_of(run)
    made = losses(run)
    assert made == undisturbed_curve(config)[: len(made)]
