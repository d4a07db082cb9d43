"""What was decided is on the disk first, survives kills, and is found again at the same place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pretrain.errors import RunError
from pretrain.optimization.decisions import (
    DecisionLog,
    DecisionRecord,
    read_decisions,
    steps_over,
)

WRITE_FOR_EVER = """
import sys
from pathlib import Path
from pretrain.optimization.decisions import DecisionLog, DecisionRecord, read_decisions
path = Path(sys.argv[1])
log = DecisionLog(read_decisions(path), path)
for step in range(len(log.records), 1_000_000):
    log.append(DecisionRecord("skip", "x" * (step % 2000), step, 8 * step))
    print(step, flush=True)
"""


def log_at(path: Path) -> DecisionLog:
    """As a started run opens it."""
    return DecisionLog(read_decisions(path), path)


def skip(step: int, reason: str = "loss 9 is above 3") -> DecisionRecord:
    return DecisionRecord("skip", reason, step, 8 * step)


def test_decisions_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = log_at(path)
    assert log.append(skip(3, "loss nan, \u00e4\u2028\n"))
    following = log.roll_back(
        "bad", step=7, sample_index=56, samples=8, to_step=4, to_sample_index=32
    )
    assert following == 64
    assert read_decisions(path) == list(log.records) == list(log_at(path).records)
    assert len(path.read_text().split("\n")) == 3, "one a line, whatever is in it"


def test_a_decision_made_again_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    assert log_at(path).append(skip(3))
    content = path.read_bytes()
    log = log_at(path)
    assert not log.append(skip(3, "told in other words"))
    assert path.read_bytes() == content
    assert log.skipped_before(3, 24) == skip(3)
    assert log.skipped_before(3, 32) is None, "other samples after a roll-back"


def test_ranks_that_do_not_write_know_the_same(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    writer, other = log_at(path), DecisionLog([], None)
    for log in (writer, other):
        log.append(skip(2))
        log.roll_back("bad", step=5, sample_index=40, samples=8, to_step=1, to_sample_index=8)
    assert writer.records == other.records
    assert writer.steps_over(1, 8) == other.steps_over(1, 8) == 48


def test_roll_backs_to_one_checkpoint_step_over_all_that_lies_between(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = log_at(path)
    assert log.steps_over(10, 80) == 80
    first = log.roll_back(
        "bad", step=14, sample_index=104, samples=8, to_step=10, to_sample_index=80
    )
    assert first == log.steps_over(10, 80) == 112
    second = log_at(path).roll_back(
        "bad", step=12, sample_index=120, samples=8, to_step=10, to_sample_index=80
    )
    log = log_at(path)
    assert second == log.steps_over(10, 80) == 128
    assert log.roll_backs_to(10, besides=(13, 136)) == 2
    assert log.roll_backs_to(10, besides=(12, 120)) == 1, "made again, it is no further one"
    assert log.roll_backs_to(20, besides=(23, 136)) == 0
    assert log.steps_over(11, 88) == 88, "elsewhere nothing is stepped over"
    assert log.steps_over(10, 112) == 128, "a checkpoint in between goes on likewise"


def test_after_giving_up_skips_are_judged_anew_and_samples_stay_stepped_over(
    tmp_path: Path,
) -> None:
    path = tmp_path / "decisions.jsonl"
    log = log_at(path)
    log.append(skip(12))
    log.roll_back("bad", step=13, sample_index=104, samples=8, to_step=10, to_sample_index=80)
    log.append(DecisionRecord("abort", "20 in a row", 14, 112))
    log = log_at(path)
    assert log.skipped_before(12, 96) is None
    assert log.roll_backs_to(10, besides=(13, 200)) == 0
    assert log.steps_over(10, 80) == 112
    assert log.append(skip(12))
    assert log.skipped_before(12, 96) == skip(12)


@given(
    moves=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(1, 8)), max_size=12
    ),
    step=st.integers(0, 3),
)
# The last two judge the same step with the same samples, come from two checkpoints.
@example(moves=[(1, 0, 1), (1, 0, 1), (1, 27, 8), (1, 30, 8), (2, 0, 1), (1, 25, 1)], step=1)
def test_stepping_over_only_moves_forward_and_comes_to_rest(
    moves: list[tuple[int, int, int]], step: int
) -> None:
    """A run that goes back at random: each time it goes on behind all that it has seen."""
    log = DecisionLog([], None)
    for number, (to_step, ahead, samples) in enumerate(moves):
        going_on = log.steps_over(to_step, 100 * to_step)
        following = log.roll_back(
            "bad",
            step=to_step + number + 1,
            sample_index=going_on + ahead,
            samples=samples,
            to_step=to_step,
            to_sample_index=100 * to_step,
        )
        assert following == going_on + ahead + samples
        assert log.steps_over(to_step, 100 * to_step) == following
    place = log.steps_over(step, 100 * step)
    assert place == steps_over(log.records, step, place) >= 100 * step
    made = sum(move[0] == step for move in moves)
    assert log.roll_backs_to(step, besides=(0, 0)) == made


@given(cut=st.integers(1, 400), rest=st.sampled_from([b"", b"\0" * 40 + b"\n", b"{\n", b"\xff"]))
def test_a_torn_last_line_is_as_if_it_had_never_been(
    tmp_path_factory: pytest.TempPathFactory, cut: int, rest: bytes
) -> None:
    path = tmp_path_factory.mktemp("torn") / "decisions.jsonl"
    log = log_at(path)
    log.append(skip(1))
    log.append(skip(2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    torn = whole[: min(first + cut, len(whole) - 1)] if not rest else whole[:first] + rest
    path.write_bytes(torn)
    assert read_decisions(path) == [skip(1)]
    assert path.read_bytes() == torn, "reading changes nothing"
    log_at(path).append(skip(5))
    assert read_decisions(path) == [skip(1), skip(5)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("nonsense", "line 1 is not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "has the fields"),
        ('{"action": "skip"}', "has the fields"),
        ({"action": "explode"}, "'explode' is none of skip, roll_back, abort"),
        ({"action": []}, "is none of skip, roll_back, abort"),
        ({"step": 1.5}, "whole numbers"),
        ({"sample_index": -1}, "whole numbers"),
        ({"to_step": 5}, "only a roll_back leads elsewhere"),
        ({"action": "roll_back"}, "whole numbers"),
        (
            {"action": "roll_back", "to_step": 0, "from_sample_index": 9, "next_sample_index": 9},
            "behind where it began",
        ),
    ],
)
def test_any_other_damage_is_told_in_one_line(
    tmp_path: Path, changes: str | dict[str, Any], told: str
) -> None:
    path = tmp_path / "decisions.jsonl"
    DecisionLog([], path).append(skip(2))
    good = path.read_text()
    damaged = changes if isinstance(changes, str) else json.dumps(json.loads(good) | changes)
    path.write_text(f"{damaged}\n{good}")
    with pytest.raises(RunError, match=told) as caught:
        read_decisions(path)
    assert "\n" not in str(caught.value)


def test_a_kill_at_any_moment_loses_nothing_that_took_effect(tmp_path: Path) -> None:
    """What was printed took effect; it is in the file after every kill -9."""
    path = tmp_path / "decisions.jsonl"
    told = -1
    for pause in (0, 40, 15):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(pause + 1):
            told = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        records = read_decisions(path)
        assert [record.step for record in records] == list(range(len(records)))
        assert len(records) > told
