"""Real processes under real torchrun: signals reach them once, and none outlives the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launch.torchrun import combined_exit_code

# A stand-in for the training worker: counts the signals it gets, ends as it is told to.
WORKER = """
import os, signal, sys, time
from pathlib import Path

folder, behaviour = Path(sys.argv[1]), sys.argv[2]
rank = os.environ["RANK"]
signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
signal.signal(signal.SIGINT, lambda number, frame: signals.append(number))
(folder / f"environment-{rank}").write_text("\\n".join(f"{k}={v}" for k, v in os.environ.items()))
(folder / f"pid-{rank}").write_text(str(os.getpid()))
if behaviour == "child":
    if os.fork() == 0:
        os.setsid()
        (folder / f"grandchild-{rank}").write_text(str(os.getpid()))
        time.sleep(600)
if behaviour == "fail" and rank == "1":
    sys.exit(7)
if behaviour == "crash":  # three times, the second time after a checkpoint
    starts = len(list(folder.glob("start-*")))
    (folder / f"start-{starts}").touch()
    if starts == 1:
        (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
        (folder / "checkpoints" / "step-00000010" / "manifest.json").touch()
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "done":
    sys.exit(0)
while not signals or behaviour == "deaf":
    time.sleep(0.02)
time.sleep(1.0)  # saving; a second signal would arrive meanwhile
(folder / f"signals-{rank}").write_text(" ".join(map(str, map(int, signals))))
# As real ranks do, all leave together: torchrun ends those left by a signal of its own.
while behaviour != "fail" and len(list(folder.glob("signals-*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.02)
if rank == "0":
    (folder / "stopped.json").write_text("{}")
sys.exit(75)
"""

LAUNCHER = """
import sys
from pathlib import Path
from launch.keep_running import newest_checkpoint
from launch.local import run_workers

folder, behaviour, processes, restarts = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
result = run_workers(
    [str(folder / "worker.py"), str(folder), behaviour],
    processes=processes,
    stop_marker=folder / "stopped.json",
    max_restarts=restarts,
    step_of_checkpoint=lambda: newest_checkpoint(folder),
)
print("result", result.exit_code, result.stopped, len(result.signals), flush=True)
sys.exit(result.exit_code)
"""


def wait_until(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class Launch:
    """A launcher started as a process of its own, as a terminal or a scheduler would."""

    def __init__(self, folder: Path, behaviour: str, processes: int = 2, restarts: int = 0) -> None:
        self.folder, self.processes = folder, processes
        (folder / "worker.py").write_text(WORKER)
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(folder), behaviour, str(processes), str(restarts)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
        )
        self.known: set[psutil.Process] = set()

    def wait_for(self, name: str) -> None:
        wait_until(
            lambda: all((self.folder / f"{name}-{r}").exists() for r in range(self.processes))
        )
        self.known |= set(psutil.Process(self.process.pid).children(recursive=True))
        assert len(self.known) > self.processes, "torchrun and its workers"

    def end(self, seconds: float = 40.0) -> str:
        output, _ = self.process.communicate(timeout=seconds)
        return output

    def survivors(self) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(self.known, timeout=10.0)
        return alive


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    started: list[Launch] = []

    def start(behaviour: str, processes: int = 2, restarts: int = 0) -> Launch:
        started.append(Launch(tmp_path, behaviour, processes, restarts))
        return started[-1]

    yield start
    for one in started:
        for process in [*one.known, psutil.Process()]:
            if process.pid != os.getpid() and process.is_running():
                process.kill()
        one.process.kill()
        one.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_stop_reaches_every_rank_once_and_is_told_apart(
    launch: Callable[..., Launch], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "stopped.json").write_text("of an earlier run")
    run = launch("wait")
    run.wait_for("pid")
    assert not (tmp_path / "stopped.json").exists(), "the old marker is removed first"
    run.process.send_signal(number)
    output = run.end()
    assert "result 75 True 1" in output, output
    assert run.process.returncode == 75
    assert "Traceback" not in output
    for rank in range(2):
        assert (tmp_path / f"signals-{rank}").read_text() == str(int(signal.SIGTERM))
    assert run.survivors() == []


@pytest.mark.slow
def test_a_second_ctrl_c_kills_workers_that_do_not_listen(launch: Callable[..., Launch]) -> None:
    run = launch("deaf")
    run.wait_for("pid")
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    assert "False 2" in run.end(seconds=15)
    assert run.process.returncode not in (0, 75)
    assert run.survivors() == []


@pytest.mark.slow
def test_nothing_is_left_when_the_launcher_itself_is_killed(launch: Callable[..., Launch]) -> None:
    run = launch("wait")
    run.wait_for("pid")
    run.process.kill()
    run.end()
    assert run.survivors() == []


@pytest.mark.slow
def test_a_process_that_hides_in_its_own_session_is_found(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    run = launch("child", processes=1)
    run.wait_for("grandchild")
    assert (tmp_path / "grandchild-0").exists()
    run.process.send_signal(signal.SIGTERM)
    assert "result 75 True" in run.end()
    assert run.survivors() == []


@pytest.mark.slow
def test_a_failing_rank_ends_the_others_and_gives_its_code(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    run = launch("fail")
    # torchrun ends rank 0 by SIGTERM, which it takes for a stop: that must not hide the failure.
    assert run.end() == "result 7 False 0\n", "and torchrun adds no page of its own"
    assert run.process.returncode == 7


@pytest.mark.slow
def test_ranks_that_finish_are_done_and_share_the_cores(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    run = launch("done")
    assert "result 0 False 0" in run.end()
    lines = (tmp_path / "environment-1").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    cores = len(os.sched_getaffinity(0))
    assert environment["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert "LOGLEVEL" not in environment


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks in the folder")
def test_packages_of_the_users_folder_are_not_taken_for_ours(tmp_path: Path) -> None:
    for name in ("launch", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "worker.py").write_text(WORKER)
    result = subprocess.run(
        [sys.executable, "-P", "-c", LAUNCHER, str(tmp_path), "done", "1", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "result 0 False 0\n", result.stderr


@pytest.mark.slow
def test_killed_ranks_go_on_from_their_checkpoints(launch: Callable[..., Launch]) -> None:
    output = launch("crash", processes=1, restarts=1).end(seconds=90).splitlines()
    told = [line for line in output if line.startswith("restart")]
    end = "the ranks ended with exit code 137"
    assert told == [
        f"restart 1 of 1 in 1 s from the beginning: {end}",
        f"restart 1 of 1 in 1 s from the checkpoint of step 10: {end}",
    ]
    assert output[-2] == "not restarted: no newer checkpoint after 1 restart"
    assert output[-1] == "result 137 False 0"


@pytest.mark.slow
def test_a_stop_between_two_starts_is_heard(launch: Callable[..., Launch], tmp_path: Path) -> None:
    run = launch("fail", restarts=5)
    wait_until(lambda: (tmp_path / "pid-1").exists())
    first = (tmp_path / "pid-1").read_text()
    wait_until(lambda: not psutil.pid_exists(int(first)))
    time.sleep(0.3)  # now it waits for a second, or is about to
    run.process.send_signal(signal.SIGTERM)
    assert "result 7 False 1" in run.end(seconds=20)
    assert (tmp_path / "pid-1").read_text() == first, "not started again"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([75, 75], 75),
        ([75, 1], 1),
        ([-9, 75], 137),
        ([-15, 7], 7),
        ([], 0),
        ([-15, 75], 75),
        ([-15], 143),
        ([82, -9, 82], 137),
        ([-9, 1, 82], 137),
        ([82, 75], 82),
    ],
)
def test_exit_codes_of_ranks_combine(codes: list[int], expected: int) -> None:
    assert combined_exit_code(codes) == expected
