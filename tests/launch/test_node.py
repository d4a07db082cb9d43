"""The ranks of several machines, each by its agent: signals, kills, exit codes, nothing left.

The machines are this one, so that no rights are needed; that agents of different hosts find one
another is seen in tests/cluster/.
"""

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
from worker_processes import free_port, losses, read_lines, train

from launch.clusters.network import interface_towards, interfaces
from launch.clusters.node import Place, node_program

NODE = [sys.executable, "-m", "launch.clusters.node"]


class Agents:
    """Two machines of one rank each."""

    def __init__(self, config: Path, run: Path) -> None:
        self.config, self.run = config, run
        self.output = (run.parent.parent / "output").open("wb+")
        place = {"processes": 1, "master_address": "127.0.0.1", "master_port": free_port()}
        self.agents = [
            subprocess.Popen(
                [sys.executable, *words],
                env=os.environ | {"SLURM_NODEID": "1"},
                stdout=self.output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for words in (
                node_program(Place(nodes=2, node_rank=0, **place), config),
                [
                    *("-m", "launch.clusters.node", "--nodes", "2"),
                    *("--node-rank-variable", "SLURM_NODEID", "--processes", "1"),
                    *("--master-address", "127.0.0.1", "--master-port", str(place["master_port"])),
                    str(config),
                ],
            )
        ]

    def steps(self) -> int:
        return max((line["step"] for line in read_lines(self.run / "metrics.jsonl")), default=0)

    def wait_for_steps(self, further: int) -> None:
        wanted, deadline = self.steps() + further, time.monotonic() + 120
        while self.steps() < wanted:
            assert time.monotonic() < deadline
            assert all(agent.poll() is None for agent in self.agents), self.said()
            time.sleep(0.02)

    def processes(self) -> list[psutil.Process]:
        """torchrun and the ranks of both, wherever they hang in the tree of processes."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or ()
            if str(self.config) in words and "pretrain" in words:
                found.append(process)
        return found

    def ranks(self) -> list[psutil.Process]:
        """By rank."""
        found = [process for process in self.processes() if "RANK" in process.environ()]
        return sorted(found, key=lambda process: int(process.environ()["RANK"]))

    def codes(self, seconds: float) -> list[int]:
        deadline = time.monotonic() + seconds
        return [agent.wait(max(1.0, deadline - time.monotonic())) for agent in self.agents]

    def said(self) -> str:
        """What both have written so far."""
        size_bytes = os.fstat(self.output.fileno()).st_size
        return os.pread(self.output.fileno(), size_bytes, 0).decode()

    def end(self) -> None:
        for agent in self.agents:
            agent.kill()
            agent.wait()
        for process in self.processes():
            process.kill()

    def nothing_is_left(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()


@pytest.fixture
def start(run_settings, write_config, tmp_path) -> Iterator[Callable[[], Agents]]:
    run_settings["train"]["max_steps"] = 100
    run_settings["checkpoint"] = {"every_steps": 20, "keep_last": 2}
    run_settings["evaluation"]["every_steps"] = 1000
    config = write_config(run_settings)
    started: list[Agents] = []

    def start_both() -> Agents:
        started.append(Agents(config, tmp_path / "runs" / "tiny"))
        return started[-1]

    yield start_both
    for agents in started:
        agents.end()


@pytest.mark.slow
def test_agents_of_two_machines_are_asked_killed_and_lose_ranks(start, tmp_path):
    """Four starts of one run: its curve is that of a quiet one."""
    agents = start()
    agents.wait_for_steps(3)
    agents.agents[1].send_signal(signal.SIGUSR1)
    assert agents.codes(60) == [75, 75], agents.said()
    assert agents.nothing_is_left(1)

    agents = start()
    agents.wait_for_steps(3)
    agents.agents[0].kill()
    assert agents.codes(60) == [-signal.SIGKILL, 75], agents.said()
    assert agents.nothing_is_left(45)

    agents = start()
    agents.wait_for_steps(3)
    agents.ranks()[0].kill()  # the first rank of all
    assert agents.codes(60) in ([137, 82], [137, 1]), agents.said()
    assert agents.nothing_is_left(1)
    assert "rank 0 was ended by SIGKILL" in agents.said()

    agents = start()
    assert agents.codes(200) == [0, 0], agents.said()
    assert agents.nothing_is_left(1)
    train(agents.config, "name=whole", processes=2)
    assert losses(agents.run) == losses(tmp_path / "runs" / "whole")


@pytest.mark.slow
def test_the_second_ctrl_c_kills_and_one_before_the_start_is_no_failure(start):
    agents = start()
    agents.wait_for_steps(1)
    stopped = agents.ranks()[0]
    stopped.suspend()  # so that nobody can save
    for agent in agents.agents:
        agent.send_signal(signal.SIGINT)
    time.sleep(1)
    assert all(agent.poll() is None for agent in agents.agents)
    for agent in agents.agents:
        agent.send_signal(signal.SIGINT)
    assert agents.codes(30) == [137, 137], agents.said()
    assert agents.nothing_is_left(1)

    agents = start()
    while not agents.processes():
        time.sleep(0.02)
    for agent in agents.agents:
        agent.terminate()
    codes = agents.codes(60)
    # An interpreter that is still loading dies of the signal itself: the negative code.
    assert set(codes) <= {-signal.SIGTERM, 128 + signal.SIGTERM, 75}, agents.said()
    assert agents.nothing_is_left(1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--node-rank-variable", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE='' is no place"),
        ([], "='' is no place of a machine"),
        (["--node-rank", "2"], "--node-rank 2 is not below --nodes 2"),
        (
            ["--node-rank", "0", "--network-interface", "ib7"],
            "network_interface: this machine has no 'ib7' but lo",
        ),
    ],
)
def test_a_wrong_place_is_one_line(words: list[str], complaint: str) -> None:
    rest = ("--nodes", "2", "--processes", "1", "--master-address", "x", "--master-port", "1")
    result = subprocess.run(
        [*NODE, *rest, *words, "config.yaml"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_interface_is_one_of_this_machine_and_no_loopback() -> None:
    # The first machine may know itself by a loopback address alone; unknown names decide nothing.
    for host in ("localhost", "127.0.1.1", "no-such-host.invalid"):
        name = interface_towards(host)
        assert name != "lo"
        assert name is None or name in interfaces()
