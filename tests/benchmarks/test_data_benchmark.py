"""The benchmark of the data path runs from end to end, and what it compares with is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from objective_rows import NUM_PIECES, VOCAB, merged

from benchmarks.data.collator import UsualCollator
from data_pipeline.objectives.span_corruption import SpanCorruption

REPOSITORY = Path(__file__).resolve().parents[2]
QUESTIONS = ("objectives", "order", "reading", "resume")


@pytest.mark.slow
def test_every_question_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.data", *QUESTIONS, "--smoke"]
    command += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    tables = {table["name"]: table for table in content["tables"]}
    assert set(tables) == {
        *("span_corruption", "objectives", "order", "reading windows of 2,048", "resume"),
    }
    for row in tables["span_corruption"]["rows"]:
        assert row["ratio"] == pytest.approx(row["ours"] / row["usual collator"])
    reading = tables["reading windows of 2,048"]
    rows = {row["loader"]: row for row in reading["rows"]}
    assert {"flat memmap", "ours"} <= set(rows), reading["notes"]
    assert all(rows[name]["1 workers"] > 0 and rows[name]["0 workers"] > 0 for name in rows)
    assert rows["flat memmap"]["/ flat (0)"] == 1
    resume = {row["loader"]: row for row in tables["resume"]["rows"]}
    assert (resume["ours"]["1 -> 1"], resume["ours"]["1 -> 0"]) == ("3/3", "3/3")
    orders = tables["order"]["rows"]
    assert all(row["ours s"] < 1 for row in orders)
    page = (tmp_path / "out" / "tables.md").read_text()
    assert all(table["title"] in page for table in content["tables"])


def test_the_usual_collator_corrupts_as_it_should() -> None:
    """Else the comparison would be with something easier."""
    windows = np.random.default_rng(0).integers(3, NUM_PIECES, (5, 568))
    collate = UsualCollator(VOCAB.vocab_size, VOCAB.eos_token_id, 0.15, 3.0, seed=0)
    inputs, labels = collate(list(windows))
    objective = SpanCorruption(512)
    assert inputs.shape == (5, 512)
    # It has one sentinel more behind the last span: its targets are masked the other way round.
    for window, row, label in zip(windows, inputs, labels, strict=True):
        assert len(label) == objective.target_length_tokens
        assert merged(row[:-1].tolist(), label[:-1].tolist()) == window.tolist()


def test_the_command_line_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.data.__main__ import make_options, parse

    with pytest.raises(SystemExit):
        parse(["speling"])
    assert "unknown question 'speling'" in capsys.readouterr().err
    options = make_options(parse(["reading", "--workers", "2", "--rounds", "5"]))
    assert (options.workers, options.rounds) == ((2,), 5)
