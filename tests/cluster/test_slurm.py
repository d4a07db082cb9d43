"""`spade launch slurm` with a real Slurm: preempted, cancelled, robbed of a node, out of time."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines.hosts import wait_for
from machines.slurm import Slurm
from worker_processes import losses, read_lines, train

from launch.clusters.record import read_events
from launch.clusters.slurm.excluded import excluded_hosts
from launch.keep_running import newest_checkpoint
from pretrain.run_folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

BUSY_SECONDS = 240
HOSTILE = "a b'c\"d;$(touch EXECUTED)`touch EXECUTED`#&|%j é"
CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


class Launched:
    """A run that was submitted."""

    def __init__(self, slurm: Slurm, run: Path, job: str) -> None:
        self.slurm, self.run, self.job = slurm, run, job
        self.folder = RunFolder(run)
        self.began = time.monotonic()

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: self.step() >= step, BUSY_SECONDS, f"step {step}\n{self.output()}")

    def step(self) -> int:
        return max((line["step"] for line in read_lines(self.folder.metrics_path)), default=-1)

    def output(self) -> str:
        files = sorted(self.folder.launch.glob("slurm-*.out"))
        return "\n".join(path.read_text(errors="replace") for path in files)

    def wait_for_end(self, *states: str, job: str | None = None) -> None:
        try:
            self.slurm.wait(job or self.job, *states, seconds=BUSY_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None

    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.run)]

    def successor(self) -> str:
        chained = [event for event in read_events(self.run) if event["event"] == "chained"]
        return str(chained[-1]["next"])

    def starts(self) -> list[list[str]]:
        """The nodes of each start of the ranks."""
        events = read_events(self.run)
        return [e["nodes"] for e in events if e["event"] in ("started", "restarted")]

    def ranks(self, host: str) -> list[int]:
        """Their processes and those of their loaders, the oldest first."""
        running = self.slurm.hosts.processes(host).items()
        started = [pid for pid, line in running if "-m launch.cli pretrain" in line]
        torchrun = [pid for pid, line in running if "launch.torchrun" in line]
        return sorted(set(started) - set(torchrun))


def waiting(slurm: Slurm) -> str:
    """Jobs that run or will run."""
    return slurm.run("squeue", "--noheader", "--states=PENDING,RUNNING").stdout


@pytest.fixture
def launch(
    slurm: Slurm,
    run_settings: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> Callable[..., Launched]:
    """Submit the tiny run with some settings and a description of the cluster."""

    def start(
        *options: str, steps: int, every: int, cluster: dict[str, Any] | None = None, **other: Any
    ) -> Launched:
        settings = {**run_settings, **other}
        settings["train"] = {**settings["train"], "max_steps": steps}
        settings["checkpoint"] = {"every_steps": every, "keep_last": 2}
        settings["evaluation"] = {"every_steps": 100_000, "samples": 8}
        description = tmp_path / "cluster.yaml"
        values = {"partition": "low", "nodes": {"environment": CPU}, **(cluster or {})}
        description.write_text(yaml.safe_dump(values))
        command = (sys.executable, "-m", "launch.cli", "launch", "slurm")
        files = (str(write_config(settings)), "--cluster", str(description))
        told = slurm.run(*command, *files, *options).stdout
        found = re.search(r"submitted job (\d+)", told)
        assert found, told
        return Launched(slurm, Path(settings["run_dir"]) / "tiny", found[1])

    return start


def test_a_preempted_run_goes_on_as_if_nothing_had_happened(
    launch: Callable[..., Launched],
    slurm: Slurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a task a rank, a GPU each, and names everywhere that a shell would execute."""
    here = tmp_path / HOSTILE
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "read me; first").write_text("export FIRST=yes\n")
    cluster = {
        "nodes": {
            "environment": {**CPU, "HOSTILE": f"{HOSTILE}\n$(touch EXECUTED)"},
            "source": [str(here / "read me; first")],
        },
        "options": {"comment": HOSTILE},
        **{"exclude": ["node3"], "exclusive": True, "tasks": "per_gpu", "gres": "gpu:1"},
    }
    run = launch("--nodes=2", steps=60, every=1000, cluster=cluster, run_dir=str(here / "runs"))
    run.wait_for_step(5)
    urgent = ("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=true")
    job = slurm.run("sbatch", "--parsable", "--output=/dev/null", *urgent).stdout.strip()
    slurm.wait(job, "COMPLETED", seconds=BUSY_SECONDS)
    assert 0 < newest_checkpoint(run.run) < 60, run.output()
    run.wait_for_end("COMPLETED")
    assert slurm.facts(run.job)["Restarts"] == "1"
    events = [event for event in run.events() if event != "requeued"]
    assert events == ["submitted", "started", "stopped", "started", "done"]
    assert HOSTILE in slurm.run("scontrol", "show", "job", run.job).stdout
    train(run.folder.launch / "config.yaml", "name=undisturbed", processes=2)
    assert losses(run.run) == losses(here / "runs" / "undisturbed")
    # A job of a run that is complete is a success.
    again = slurm.run("sbatch", "--parsable", str(run.folder.launch / "slurm.sh")).stdout.strip()
    run.wait_for_end("COMPLETED", job=again)
    assert len(losses(run.run)) == 60
    assert not list(tmp_path.rglob("EXECUTED*"))


def test_a_killed_rank_is_started_again_the_limit_makes_a_successor_and_scancel_ends_it(
    launch: Callable[..., Launched], slurm: Slurm
) -> None:
    began = time.monotonic()
    cluster = {"time_limit": "01:00:00", "signal_seconds": 120, "exclude": ["node3"]}
    run = launch("--nodes=2", steps=100_000, every=10, cluster=cluster)
    run.wait_for_step(1)
    print(f"submit to first step: {time.monotonic() - began:.1f} s")
    run.wait_for_step(11)
    os.kill(run.ranks("node2")[0], signal.SIGKILL)
    began, step = time.monotonic(), run.step()
    wait_for(lambda: "restarted" in run.events(), BUSY_SECONDS, "a restart")
    run.wait_for_step(step + 5)
    print(f"kill -9 of a rank to a resumed step: {time.monotonic() - began:.1f} s")
    assert "failed" in run.events()
    # The real limit comes near, whatever time it took to get here: at least 45 s are left.
    minutes = math.ceil((time.monotonic() - run.began + 45) / 60)
    slurm.run("scontrol", "update", f"jobid={run.job}", f"TimeLimit={minutes}")
    wait_for(lambda: "chained" in run.events(), 150, f"a successor\n{run.output()}")
    run.wait_for_end("COMPLETED")
    successor, step = run.successor(), newest_checkpoint(run.run)
    run.wait_for_step(step + 2)
    slurm.run("scancel", successor)
    run.wait_for_end("CANCELLED", job=successor)
    assert newest_checkpoint(run.run) >= step + 2
    assert json.loads(run.folder.stop_marker.read_text())["reason"].startswith("SIG")
    for node in slurm.hosts.nodes:
        wait_for(lambda node=node: not run.ranks(node), 30, f"{node} to be free")
    assert slurm.facts(successor)["Restarts"] == "0"
    assert waiting(slurm) == ""


def test_a_run_goes_on_with_one_node_where_the_other_has_died(
    launch: Callable[..., Launched], slurm: Slurm
) -> None:
    cluster = {"exclude": ["node3"]}
    run = launch("--nodes=2", "--min-nodes=1", steps=40, every=10, cluster=cluster)
    run.wait_for_step(11)
    slurm.hosts.crash("node2")
    wait_for(lambda: run.starts()[-1] == ["node1"], BUSY_SECONDS, f"one node\n{run.output()}")
    run.wait_for_end("COMPLETED")
    assert slurm.facts(run.job)["Restarts"] == "1"
    assert [step for step, _ in losses(run.run)] == list(range(1, 41))
    assert run.starts() == [["node1", "node2"], ["node1"]]
    assert run.events()[-1] == "done"


def test_a_chain_of_jobs_ends_where_the_run_does_or_a_person_wants_it_to(
    launch: Callable[..., Launched], slurm: Slurm
) -> None:
    """With the signal that Slurm sends near the limit, sent at once."""
    run = launch("--nodes=2", steps=100, every=1000)
    near_limit = ("scancel", "--batch", "--signal=USR1")
    run.wait_for_step(2)
    slurm.run(*near_limit, run.job)
    run.wait_for_end("COMPLETED")
    stopped, second = newest_checkpoint(run.run), run.successor()
    run.wait_for_step(stopped + 1)
    run.folder.stop_request.touch()
    slurm.run(*near_limit, second)
    run.wait_for_end("FAILED", job=second)
    assert slurm.facts(second)["ExitCode"] == "75:0"
    assert stopped < newest_checkpoint(run.run) < 100
    assert waiting(slurm) == ""
    assert not run.folder.stop_request.exists()
    third = slurm.run("sbatch", "--parsable", str(run.folder.launch / "slurm.sh")).stdout.strip()
    run.wait_for_end("COMPLETED", job=third)
    assert [step for step, _ in losses(run.run)] == list(range(1, 101))
    assert run.events()[-1] == "done"


def test_a_job_that_may_not_submit_is_put_back_into_the_queue(
    launch: Callable[..., Launched], slurm: Slurm, tmp_path: Path
) -> None:
    """As on clusters whose nodes may not submit jobs: there sbatch refuses."""
    (tmp_path / "programs").mkdir()
    refuse = tmp_path / "programs" / "sbatch"
    refuse.write_text("#!/bin/sh\necho 'sbatch: error: not from here' >&2\nexit 1\n")
    refuse.chmod(0o755)
    path = f"{refuse.parent}:{os.environ['PATH']}"
    run = launch(steps=60, every=1000, cluster={"nodes": {"environment": {**CPU, "PATH": path}}})
    run.wait_for_step(2)
    slurm.run("scancel", "--batch", "--signal=USR1", run.job)
    run.wait_for_end("COMPLETED")
    assert "no successor could be submitted: sbatch refuses: not from here" in run.output()
    assert slurm.facts(run.job)["Restarts"] == "1"
    assert run.successor() == run.job
    assert [step for step, _ in losses(run.run)] == list(range(1, 61))


def test_a_node_that_fails_the_check_is_left_out(
    launch: Callable[..., Launched], slurm: Slurm
) -> None:
    """With enough other nodes in the job at once, else in a job elsewhere."""
    fill = ("dd", "if=/dev/zero", "of=/dev/shm/full", "bs=1M")
    slurm.hosts.run("node2", *fill, check=False)
    try:
        run = launch("--nodes=2", "--min-nodes=2", steps=4, every=2, cluster={"exclude": ["node3"]})
        run.wait_for_end("FAILED")
        assert "node2 is left out: shared memory: " in run.output()
        assert "sbatch refuses: Batch job submission failed: " in run.output()
        assert set(excluded_hosts(run.run)) == {"node2"}
        (run.folder.launch / "excluded.json").unlink()
        run = launch("--nodes=2", steps=4, every=2)
        run.wait_for_end("COMPLETED")
        elsewhere = run.successor()
        run.wait_for_end("COMPLETED", job=elsewhere)
    finally:
        slurm.hosts.run("node2", "rm", "/dev/shm/full")
    assert slurm.facts(elsewhere)["NodeList"] == "node[1,3]"
    assert run.events()[-1] == "done"


def test_requests_for_gpus_are_what_slurm_understands(
    launch: Callable[..., Launched], slurm: Slurm, tmp_path: Path
) -> None:
    """The script with another last line: no GPU here stands the check of nodes."""
    from launch.clusters.job import Job
    from launch.clusters.slurm.script import SlurmJob, script_text
    from launch.clusters.slurm.settings import SlurmCluster

    (tmp_path / "launch").mkdir()
    for cluster, gpus in (({}, "0,1"), ({"tasks": "per_gpu"}, "0,1"), ({"gres": "gpu:1"}, "0")):
        job = Job.of(tmp_path / "c.yaml", None, nodes=3, min_nodes=2, gpus_per_node=2)
        description = SlurmCluster.model_validate({"partition": "low", **cluster})
        text = script_text(SlurmJob(job, description, tmp_path, tmp_path))
        setup, _, _ = text.rpartition("exec ")
        script = tmp_path / "script.sh"
        script.write_text(setup + "srun bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'\n")
        number = slurm.run("sbatch", "--parsable", str(script)).stdout.strip()
        slurm.wait(number, "COMPLETED")
        told = (tmp_path / "launch" / f"slurm-{number}.out").read_text().split("\n")
        assert sorted(set(told) - {""}) == [f"node{node} {gpus}" for node in (1, 2, 3)]
