"""How the doctor's programs talk: messages, meetings, shared files, and what never answers."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.clusters.doctor import facts, meeting
from launch.clusters.doctor.conversation import Conversation, Start
from launch.clusters.doctor.facts import examine_folder
from launch.clusters.doctor.meeting import Peer, listen, meet
from launch.clusters.doctor.messages import Assembler, send_lines
from launch.clusters.doctor.sharing import leave_note, unseen_notes

TOKEN = b"0123456789abcdef"


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.dictionaries(st.text(), st.text() | st.integers())),
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_messages_survive_labels_noise_and_other_tasks(
    messages: list[tuple[int, dict[str, Any]]], chance: Any
) -> None:
    """As srun mixes them: lines stay whole and in the order of their task."""
    sent: dict[int, list[dict[str, Any]]] = {}
    queues: dict[int, list[str]] = {}
    for node, message in messages:
        stream = io.StringIO()
        long = {**message, "padding": "ä" * chance.randrange(2000)}
        send_lines(stream, node, long)
        lines = stream.getvalue().splitlines(keepends=True)
        assert all(len(line.encode()) < 1000 for line in lines)
        queues.setdefault(node, []).extend(lines)
        sent.setdefault(node, []).append(long)
    assembler = Assembler()
    heard: dict[int, list[dict[str, Any]]] = {}
    while any(queues.values()):
        node = chance.choice([node for node, lines in queues.items() if lines])
        assert assembler.feed("Welcome to spade-doctor: please: behave\n") is None
        found = assembler.feed(f"{node}: {queues[node].pop(0)}")
        if found is not None:
            heard.setdefault(found[0], []).append(found[1])
    assert heard == sent


def test_machines_that_meet_measure_each_other_and_strangers_get_nothing() -> None:
    ports = (listen(0, 0, TOKEN), listen(20000, 29999, TOKEN))
    assert 20000 <= ports[1] <= 29999
    found = meet([Peer(1, "localhost", ports)], TOKEN)
    assert [(item.node, item.port, item.problem) for item in found] == [(1, p, "") for p in ports]
    assert all(0 < item.round_trip_seconds < 5 for item in found)
    assert all(abs(item.offset_seconds) <= item.round_trip_seconds for item in found)
    (stranger,) = meet([Peer(1, "localhost", ports[:1])], b"f" * len(TOKEN))
    assert stranger.problem


def test_what_cannot_be_reached_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # but does not listen
        ports = (deaf.getsockname()[1], closed.getsockname()[1])
        began = time.monotonic()
        silent, refused = meet([Peer(1, "127.0.0.1", ports)], TOKEN)
        (unknown,) = meet([Peer(2, "no-such-host.invalid", (1,))], TOKEN)
    assert "no answer" in silent.problem
    assert "refused" in refused.problem.lower()
    assert "does not know the name no-such-host.invalid" in unknown.problem
    assert time.monotonic() - began < 30


def test_a_file_of_another_folder_is_missed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    leave_note(tmp_path, "word", "0")
    leave_note(tmp_path / "other", "word", "1")
    assert unseen_notes(tmp_path, "word", {"0": "node1", "1": "node2"}, 0.1) == ["node2"]
    assert unseen_notes(tmp_path, "else", {"0": "node1"}, 0.1) == ["node1"]


def test_a_folder_that_cannot_be_written_or_does_not_answer_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert examine_folder(tmp_path).problem == ""
    assert not list(tmp_path.iterdir())
    assert "No such file" in examine_folder(tmp_path / "missing").problem
    # A file server that has gone cannot be had here: its folder blocks whoever touches it.
    monkeypatch.setattr(facts, "_try_folder", lambda folder: time.sleep(5))
    assert "no answer" in examine_folder(tmp_path, limit_seconds=0.1).problem


def test_the_check_of_one_machine_is_one_line_of_json(tmp_path: Path) -> None:
    for folder, code in ((tmp_path, 0), (tmp_path / "missing; touch x", 1)):
        checked = subprocess.run(
            [sys.executable, "-m", "launch.clusters.doctor.node_check", "--", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        (line,) = checked.stdout.splitlines()
        told = json.loads(line)
        states = {item["name"]: item["state"] for item in told["findings"]}
        assert checked.returncode == code
        assert (states["folder"] == "fail") == bool(code)
        assert told["packages"]["torch"]
        assert told["host"] == socket.gethostname()
    assert "torch" not in checked.stderr


def test_answers_come_in_and_the_silent_and_the_dead_are_lost() -> None:
    """Real programs that behave like agents, banners and broken log-ins."""
    agent = 'read order; echo Welcome; echo \'spade-doctor:0:last:{"to": "begin", "x": 1}\'; cat'
    starts = [
        Start(("bash", "-c", agent), (0,)),
        Start(("bash", "-c", "echo 'Permission denied' >&2; exit 255"), (1,)),
        Start(("sleep", "60"), (2,)),
        Start(("bash", "-c", "exit 7"), (3,), explain=lambda code, said: f"ended with {code}"),
    ]
    began = time.monotonic()
    with Conversation(starts) as conversation:
        assert conversation.order({"do": "begin"}, 2.0) == {0: {"to": "begin", "x": 1}}
        assert conversation.nodes == [0]
        assert conversation.lost == {
            1: "the connection ended: Permission denied",
            2: "no answer in 2 s",
            3: "ended with 7",
        }
    assert time.monotonic() - began < 30


def test_a_task_of_srun_that_ends_early_is_lost_alone() -> None:
    script = (
        "echo '1: bash: /none/python: No such file' >&2;"
        "echo 'srun: error: node2: task 1: Exited with exit code 127' >&2;"
        'read order; echo \'0: spade-doctor:0:last:{"to": "begin"}\'; cat'
    )
    with Conversation([Start(("bash", "-c", script), (0, 1))]) as conversation:
        assert list(conversation.order({"do": "begin"}, 20.0)) == [0]
        assert "No such file" in conversation.lost[1]
