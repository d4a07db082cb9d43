"""`spade jobs`: the state of runs out of their folders alone, whatever is in them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import spade
from hypothesis import given
from hypothesis import strategies as st

from launch.clusters.jobs import QUIET_SECONDS, START_SECONDS, find_runs, read_row
from launch.clusters.record import append_event
from launch.commands.jobs import _cells
from pretrain.resilience.failures import record_failure

HOUR = 3600.0


class Run:
    """A run folder, made as launchers and ranks make it, with the times that a test wants."""

    def __init__(self, path: Path, max_steps: int = 100) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.now = time.time()
        self.config(max_steps)

    def config(self, max_steps: int, log_every_steps: int = 1) -> None:
        train = {"max_steps": max_steps, "log_every_steps": log_every_steps}
        (self.path / "config.yaml").write_text(json.dumps({"train": train}))

    def event(self, name: str, ago: float, **facts: Any) -> None:
        append_event(self.path, "slurm", name, **facts)
        path = self.path / "launch" / "events.jsonl"
        lines = path.read_text().splitlines()
        last = json.loads(lines[-1]) | {"unix_seconds": self.now - ago}
        path.write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")

    def metrics(self, steps: int, ago: float, step_seconds: float = 2.0) -> None:
        path = self.path / "metrics.jsonl"
        lines = [
            {"step": n, "updates": n, "loss": 9.0 - n / 100, "step_seconds": step_seconds}
            | {"tokens_per_second": 1000.0 + n % 3}
            for n in range(1, steps + 1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        path.write_text(text + '{"step": 9999, "lo')  # one is being written
        os.utime(path, (self.now - ago,) * 2)

    def checkpoint(self, step: int, ago: float) -> None:
        folder = self.path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for path in (folder / "manifest.json", folder.parent):
            path.touch()
            os.utime(path, (self.now - ago,) * 2)

    def row(self) -> Any:
        return read_row(self.path, self.now)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def test_a_run_through_its_whole_life(run):
    run.event("submitted", 9 * HOUR, job="812")
    assert run.row().state == "queued"
    run.event("started", 60, host="node-a", process=1)
    assert run.row().state == "starting"
    run.metrics(40, ago=3)
    run.checkpoint(30, ago=25)
    row = run.row()
    assert (row.state, row.step, row.max_steps) == ("running", 40, 100)
    assert (row.launcher, row.job) == ("slurm", "812")
    assert row.loss == 8.6
    assert row.tokens_per_second == 1001.0
    assert row.seconds_left == 2.0 * 60
    assert (row.checkpoint_step, round(row.checkpoint_age_seconds)) == (30, 25)
    (run.path / "stopped.json").write_text("{}")
    assert run.row().state == "stopped"
    run.event("stopped", -8)
    run.event("requeued", -9)
    assert run.row().state == "queued", "it goes on by itself"
    (run.path / "stopped.json").unlink()
    run.event("restarted", -20, host="node-a", process=1)
    run.metrics(100, ago=-30)
    assert run.row().state == "running", "the last step is not saved yet"
    run.checkpoint(100, ago=-31)
    row = run.row()
    assert (row.state, row.seconds_left) == ("done", None)
    run.config(200)
    run.event("submitted", -32)
    assert run.row().state == "queued", "for more steps"


def test_silence_is_measured_by_the_time_between_two_lines(run):
    run.event("started", HOUR, host="node-a", process=1)
    run.metrics(40, ago=QUIET_SECONDS - 1)
    assert run.row().state == "running"
    run.metrics(40, ago=QUIET_SECONDS + 1)
    assert run.row().state == "stalled"
    run.metrics(40, ago=QUIET_SECONDS + 1, step_seconds=20)
    assert run.row().state == "running"
    run.config(100, log_every_steps=10)
    run.metrics(40, ago=QUIET_SECONDS + 1, step_seconds=2)
    assert run.row().state == "running"
    row = run.row()
    assert round(row.silent_seconds) == QUIET_SECONDS + 1


def test_a_start_may_take_long_and_not_for_ever(run):
    run.metrics(40, ago=9 * HOUR)
    run.event("restarted", START_SECONDS - 1, host="node-a", process=1)
    assert run.row().state == "starting"
    run.event("restarted", START_SECONDS + 1, host="node-a", process=1)
    assert run.row().state == "stalled"


def test_failures(run):
    run.metrics(40, ago=60)
    run.event("failed", 1, reason="rank 3: out of memory", exit_code=1, restart=False)
    assert (run.row().state, run.row().reason) == ("failed", "rank 3: out of memory")
    run.event("failed", 1, exit_code=137, reason=None)
    assert run.row().reason == "exit code 137"
    run.event("failed", 1, exit_code=137, restart=True)
    assert run.row().state == "starting", "again"
    run.metrics(50, ago=-30)
    assert run.row().state == "running", "somebody has started it otherwise"


def test_without_a_launcher_the_ranks_words_count(run):
    run.metrics(40, ago=60)
    assert run.row().state == "running"
    record_failure(run.path / "logs", 1, "made to fail", 1, unix_seconds=run.now - 50)
    assert (run.row().state, run.row().reason) == ("failed", "rank 1: made to fail")
    run.metrics(60, ago=0)
    assert run.row().state == "failed"
    run.now += HOUR
    run.metrics(60, ago=0)
    assert run.row().state == "running", "that was another time"


def test_a_launcher_of_this_host_that_is_gone_is_missed(run):
    mine = {"host": socket.gethostname(), "process": os.getpid()}
    run.metrics(40, ago=5)
    run.event("started", -1, **mine)
    assert run.row().state in ("starting", "running")
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    run.event("started", -1, **mine | {"process": gone.pid})
    assert run.row().reason == "its launcher is gone"
    run.event("started", 30 * 24 * HOUR, **mine)
    assert run.row().reason == "its launcher is gone", "the number is ours by now"
    run.event("started", -1, host="another-host", process=gone.pid)
    assert run.row().state != "failed"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = ["unix_seconds", "launcher", "event", "job", "reason", "host", "process", "restart"]
NAMES += ["step", "updates", "loss", "step_seconds", "tokens_per_second", "train", "max_steps"]
EVENTS = st.sampled_from(["submitted", "started", "failed", "stopped", "done", "resume"])
LINES = st.dictionaries(st.sampled_from(NAMES), JSON | EVENTS).map(json.dumps) | st.text()


@given(st.lists(LINES, max_size=6), st.lists(LINES, max_size=6), LINES | st.binary(), LINES)
def test_whatever_stands_in_a_folder_it_is_one_row(tmp_path_factory, events, metrics, config, word):
    path = tmp_path_factory.mktemp("run")
    (path / "launch").mkdir()
    (path / "logs" / "failures").mkdir(parents=True)
    (path / "launch" / "events.jsonl").write_text("\n".join(events), errors="replace")
    (path / "metrics.jsonl").write_text("\n".join(metrics) + "\n", errors="replace")
    content = config if isinstance(config, bytes) else config.encode(errors="replace")
    (path / "config.yaml").write_bytes(content)
    (path / "logs" / "failures" / "rank-00001.json").write_text(word, errors="replace")
    row = read_row(path)
    cells = _cells(row)
    assert all(cell.isprintable() for cell in cells)
    json.dumps(row.to_dict())


def test_the_command_lists_runs_and_survives_damaged_ones(tmp_path):
    for name in ("b", "a"):
        Run(tmp_path / name).metrics(7, ago=1)
    (tmp_path / "damaged" / "metrics.jsonl").mkdir(parents=True)
    (tmp_path / "no run").mkdir()
    (tmp_path / "file").write_text("")
    assert [path.name for path in find_runs(tmp_path)] == ["a", "b", "damaged"]
    lines = spade("jobs", tmp_path).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["a", "running"],
        ["b", "running"],
        ["damaged", "unreadable"],
    ]
    assert "7 of 100" in lines[1]
    rows = json.loads(spade("jobs", tmp_path, "--json"))
    assert [(row["name"], row["step"]) for row in rows] == [("a", 7), ("b", 7), ("damaged", None)]
    (only,) = json.loads(spade("jobs", tmp_path / "b", "--json"))
    assert only["name"] == "b"
    assert spade("jobs", tmp_path / "no run") == f"{tmp_path}/no run: no run yet\n"


def test_torch_is_not_needed(tmp_path):
    Run(tmp_path / "run").metrics(7, ago=1)
    code = (
        "import sys\n"
        "from launch import cli\n"
        "assert cli.run(['jobs', sys.argv[1]]) == 0\n"
        "assert not {'torch', 'numpy', 'deepspeed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)
