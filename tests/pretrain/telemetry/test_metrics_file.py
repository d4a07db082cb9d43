"""``metrics.jsonl``: what is written is read again, and gone back to at a cost that stays small."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.telemetry.metrics import drop_later_lines, read_metrics
from pretrain.telemetry.sinks import JsonLines, numbers_of, tracked_name


def lines_of(steps: list[int]) -> bytes:
    return b"".join(
        json.dumps({"step": step, "place": place}).encode() + b"\n"
        for place, step in enumerate(steps)
    )


@given(
    steps=st.lists(st.integers(0, 12), max_size=30).map(sorted),
    target=st.integers(-1, 13),
    torn=st.binary(max_size=20).filter(lambda tail: b"\n" not in tail),
    others=st.lists(st.sampled_from([b"\n", b"{}\n", b'{"step": "x"}\n', b"[1]\n", b"\xff\n"])),
)
def test_exactly_the_lines_up_to_a_step_stay(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[int],
    target: int,
    torn: bytes,
    others: list[bytes],
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    abandoned = path.with_name("abandoned.jsonl")
    path.write_bytes(lines_of(steps) + b"".join(others) + torn)
    drop_later_lines(path, target, keep_in=abandoned)
    kept = lines_of([step for step in steps if step <= target])
    if steps and steps[-1] <= target:
        assert path.read_bytes() == lines_of(steps), "nothing but what is no line of ours goes"
    else:
        assert path.read_bytes() == kept
    whole = lines_of(steps) + b"".join(others)
    moved = abandoned.read_bytes() if abandoned.exists() else b""
    assert path.read_bytes() + moved == whole, "no whole line is lost"


def test_a_missing_and_an_empty_file_stay_what_they_are(tmp_path: Path) -> None:
    drop_later_lines(tmp_path / "missing.jsonl", 3)
    assert not (tmp_path / "missing.jsonl").exists()
    (tmp_path / "empty.jsonl").touch()
    drop_later_lines(tmp_path / "empty.jsonl", 3)
    assert read_metrics(tmp_path / "empty.jsonl") == read_metrics(tmp_path / "missing.jsonl") == []


def test_going_back_a_little_does_not_read_a_long_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"step": 1, "filling": "x" * 270}).encode() + b"\n"
    path.write_bytes(line * 60_000 + lines_of(list(range(2, 102))))
    start = time.perf_counter()
    read_metrics(path)
    reading = time.perf_counter() - start
    start = time.perf_counter()
    drop_later_lines(path, 1)
    assert time.perf_counter() - start < reading / 5
    assert path.stat().st_size == len(line) * 60_000


@given(
    record=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        max_size=4,
    )
)
def test_a_record_comes_back_to_the_last_bit_and_is_strict_json(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    sink = JsonLines(path, 0, path.with_name("abandoned.jsonl"))
    sink.write({**record, "step": 0})
    sink.sync()
    sink.close(finished=True)
    (back,) = read_metrics(path)
    assert back.keys() == {*record, "step"}
    for key, value in record.items():
        if key == "step":
            continue
        if isinstance(value, float) and not math.isfinite(value):
            assert back[key] == str(value)
        else:
            assert back[key] == value
            assert type(back[key]) is type(value)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@given(st.binary(max_size=60))
def test_damaged_lines_are_left_out(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    path.write_bytes(lines_of([1, 2]) + damage + b"\n" + lines_of([3])[:-2])
    records = read_metrics(path)
    assert [record["step"] for record in records[:2]] == [1, 2]
    assert all(isinstance(record, dict) for record in records)


def test_lines_of_steps_that_are_made_again_move_aside(tmp_path: Path) -> None:
    path, abandoned = tmp_path / "metrics.jsonl", tmp_path / "abandoned.jsonl"
    sink = JsonLines(path, 0, abandoned)
    for step in range(1, 6):
        sink.write({"step": step, "loss": float(step)})
    sink.go_back(2)
    sink.write({"step": 3, "loss": 0.5})
    sink.close(finished=False)
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 0.5),
    ]
    assert [line["step"] for line in read_metrics(abandoned)] == [3, 4, 5]
    # A resumed run forgets what it is about to make again bit for bit.
    JsonLines(path, 1, abandoned).close(finished=False)
    assert [line["step"] for line in read_metrics(path)] == [1]
    assert len(read_metrics(abandoned)) == 3


def test_quantities_are_plotted_in_groups_and_the_rest_is_not() -> None:
    record = {
        "step": 3,
        "event": "resume",
        "loss": 2.0,
        "learning_rate/state_space": 0.1,
        "grad_norm/decay": 1.0,
        "eval/heldout/loss": 3,
        "tokens_seen": 7,
        "source": "a word",
    }
    assert numbers_of(record) == {
        "loss/train": 2.0,
        "rates/state_space": 0.1,
        "gradients/decay": 1.0,
        "eval/heldout/loss": 3.0,
        "progress/tokens_seen": 7.0,
    }


@given(st.lists(st.text("abc/_", min_size=1, max_size=12), unique=True))
def test_no_two_quantities_share_a_plot(names: list[str]) -> None:
    keys = [*names, "loss", "learning_rate", "learning_rate/decay", "grad_norm", "grad_norm/decay"]
    assert len({tracked_name(key) for key in keys}) == len(set(keys))
    assert all("/" in tracked_name(key) for key in keys)
