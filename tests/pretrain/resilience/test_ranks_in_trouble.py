"""Ranks that die, stop, hang or fail: real processes, of which none may outlive another.

They train nothing, but talk to one another as training ranks do.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from worker_processes import Ranks, free_port

from pretrain.resilience.ending import HUNG_EXIT_CODE, LOST_EXIT_CODE

SCRIPT = Path(__file__).parents[2] / "support" / "rank_in_trouble.py"

Start = Callable[..., "Team"]


class Team:
    """The ranks of one run, one behaviour each."""

    def __init__(self, folder: Path, *behaviour: str, **options: Any) -> None:
        self.folder = folder
        everything = {
            "behaviour": behaviour,
            "steps": 1_000_000,
            "timeout": 600.0,
            "watchdog": {"enabled": False},
            "liveness": {"beat_seconds": 0.2, "silence_seconds": 2.0},
            **options,
        }
        self.port = free_port()
        self.ranks = Ranks(
            [str(SCRIPT), str(folder), json.dumps(everything)],
            processes=len(behaviour),
            environment={"MASTER_PORT": str(self.port)},
        ).ranks

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 60
        expected = [self.folder / f"rank-{rank}-step-{step}" for rank in range(len(self.ranks))]
        while not all(path.exists() for path in expected):
            assert all(rank.poll() is None for rank in self.ranks), self.outputs()
            assert time.monotonic() < deadline, self.outputs()
            time.sleep(0.02)

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        for rank in ranks or range(len(self.ranks)):
            self.ranks[rank].send_signal(number)

    def ends(self, *ranks: int, seconds: float) -> list[int]:
        """The exit codes of some ranks, which must all be gone in time."""
        deadline = time.monotonic() + seconds
        return [self.ranks[r].wait(max(0.0, deadline - time.monotonic())) for r in ranks]

    def outputs(self) -> str:
        return "\n".join(rank.output for rank in self.ranks)

    def stacks(self, rank: int) -> str:
        return (self.folder / f"rank-{rank:05d}-stacks.txt").read_text()


def call_rank_0(team: Team, text: bytes) -> socket.socket:
    """Connect to where rank 0 listens for signs of life, as anybody in its network can."""
    ports = [
        connection.laddr.port
        for connection in psutil.Process(team.ranks[0].pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip == "::"
    ]
    (port,) = set(ports) - {team.port}
    stranger = socket.create_connection(("127.0.0.1", port))
    stranger.sendall(text)
    return stranger


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    teams: list[Team] = []

    def start_team(*behaviour: str, **options: Any) -> Team:
        folder = tmp_path / f"team-{len(teams)}"
        folder.mkdir()
        teams.append(Team(folder, *behaviour, **options))
        return teams[-1]

    yield start_team
    for team in teams:
        for rank in team.ranks:
            rank.kill()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("number", "reason", "seconds"),
    [
        (signal.SIGKILL, "has died: its connection is closed", 1.9),
        (signal.SIGSTOP, "gave no sign of life for 2 s", 8.0),
    ],
)
def test_a_rank_that_dies_or_stands_still_takes_the_others_down(
    start: Start, number: signal.Signals, reason: str, seconds: float, victim: int
) -> None:
    team = start("hang", "hang", "hang")
    team.wait_for_step(3)
    time.sleep(0.3)
    team.signal(number, victim)
    others = [rank for rank in range(3) if rank != victim]
    assert team.ends(*others, seconds=seconds) == [LOST_EXIT_CODE] * 2, team.outputs()
    for rank in others:
        assert f"error: rank {rank}: rank {victim} {reason}" in team.ranks[rank].output
        stacks = team.stacks(rank)
        assert "in train" in stacks, "where the main thread is"
        assert re.search(r" s ago  all_reduce +\[5, 7\] float32 +returned", stacks)
    if number == signal.SIGSTOP:
        team.signal(signal.SIGCONT, victim)
        assert team.ends(victim, seconds=8) == [LOST_EXIT_CODE], "it must not train on alone"


@pytest.mark.slow
def test_a_rank_that_fails_tells_the_others_why(start: Start) -> None:
    team = start("hang", "fail", "hang")
    assert team.ends(0, 1, 2, seconds=20) == [LOST_EXIT_CODE, 1, LOST_EXIT_CODE]
    assert team.ranks[1].output == "error: made to fail\n"
    for rank in (0, 2):
        assert f"error: rank {rank}: rank 1 failed: made to fail" in team.ranks[rank].output


@pytest.mark.slow
def test_ranks_that_fail_alike_all_say_so_themselves(start: Start) -> None:
    team = start("fail", "fail", "fail")
    assert team.ends(0, 1, 2, seconds=20) == [1, 1, 1]
    assert team.outputs() == "error: made to fail\n\n" * 2 + "error: made to fail\n"


@pytest.mark.slow
def test_ranks_that_are_done_first_disturb_nobody_nor_do_strangers(start: Start) -> None:
    team = start("leave", "go on", "leave", steps=55)  # longer than a rank may be silent
    team.wait_for_step(3)
    strangers = [call_rank_0(team, text) for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 9999)]
    strangers += [call_rank_0(team, b"1 1\ndead by a stranger's hand\n")]
    assert team.ends(0, 1, 2, seconds=30) == [0, 0, 0], team.outputs()
    assert team.outputs().strip() == ""


@pytest.mark.slow
def test_a_run_that_is_suspended_goes_on(start: Start) -> None:
    limits = {"first_step_seconds": 2.0, "step_seconds": 2.0}
    team = start("train", "train", steps=20, watchdog=limits)
    team.wait_for_step(5)
    team.signal(signal.SIGSTOP)
    time.sleep(3.0)
    team.signal(signal.SIGCONT)
    assert team.ends(0, 1, seconds=30) == [0, 0], team.outputs()
    assert not list(team.folder.glob("*-stacks.txt")), "nothing to tell, no file"


@pytest.mark.slow
def test_ranks_that_hang_write_their_stacks_and_end(start: Start) -> None:
    limits = {"first_step_seconds": 60.0, "step_seconds": 1.0}
    # The first step takes longer than a later one may.
    team = start("start slowly", "hang", watchdog=limits, liveness={"enabled": False})
    team.wait_for_step(3)
    began = time.monotonic()
    assert team.ends(0, 1, seconds=10) == [HUNG_EXIT_CODE] * 2, team.outputs()
    assert time.monotonic() - began < 4
    assert "error: rank 0: no progress for 1 s, in: step 3" in team.ranks[0].output
    assert "distributed_c10d.py" in team.stacks(0)
    last = r" s ago  all_reduce +\[5, 7\] float32 +{}\n\n(Thread|Current)"
    assert re.search(last.format("not returned"), team.stacks(0))
    assert re.search(last.format("returned"), team.stacks(1))


@pytest.mark.slow
def test_one_rank_that_hangs_is_named_by_all(start: Start) -> None:
    """The others wait in a collective, and would for ever: theirs is the longer limit."""
    team = start("hang", "go on", watchdog={"first_step_seconds": 60.0, "step_seconds": 1.5})
    assert team.ends(0, 1, seconds=30) == [HUNG_EXIT_CODE, LOST_EXIT_CODE], team.outputs()
    assert "error: rank 1: rank 0: no progress for 2 s, in: step 3" in team.ranks[1].output


@pytest.mark.slow
def test_the_time_out_reaches_groups_made_without_one(start: Start) -> None:
    off = {"enabled": False}
    team = start("train", "hang", timeout=1.5, liveness=off)
    team.wait_for_step(3)
    assert team.ends(0, seconds=8) == [1]
    assert "Timed out waiting 1500ms" in team.ranks[0].output
