"""The benchmark of downstream tasks runs from end to end, and its parts do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_question_is_answered_and_nothing_is_made_twice(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn measures the baselines")
    from benchmarks.downstream.__main__ import main

    options = ["--smoke", "--out", str(tmp_path / "out"), "--folder", str(tmp_path / "work")]

    def tables() -> dict[str, list[dict[str, Any]]]:
        content = json.loads((tmp_path / "out" / "results.json").read_text())
        return {table["name"]: table["rows"] for table in content["tables"]}

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.downstream", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = tables()
    assert [row["network"] for row in found["pretraining"]] == [
        "spade",
        "window",
        "spade-continued",
    ]
    for row in found["pretraining"]:
        assert row["steps"] == row["at step"] == 4
        assert 0 < row["CPU-minutes"] < 5
        assert row["last"] < row["held-out loss before"]
    assert [row["task"] for row in found["sentences"]] == ["sst2"] * 5 + ["mrpc"] * 4
    seeds = [len(row["by seed"].split()) for row in found["sentences"]]
    assert seeds == [2, 2, 2, 1, 1, 2, 2, 1, 1]
    assert len(found["summary NLL"]) == 4
    assert found["summary ROUGE"][-1]["model"].startswith("LEAD-")
    assert len(found["reviews"]) == 3
    kept = tmp_path / "work" / "arms"
    made = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    main(["sentences", "summaries", *options])
    again = tables()
    assert again == {name: found[name] for name in again}
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == made


@pytest.mark.parametrize("needs_seconds", [0.5, 1000.0])
def test_a_command_ends_with_its_budget(tmp_path: Path, needs_seconds: float) -> None:
    from benchmarks.downstream.budget import Budget

    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"while time.process_time() < {needs_seconds}: pass\n"
    )
    budget = Budget(tmp_path / "cpu.json", 2.0)
    assert budget.spent_seconds == 0
    budget.run([sys.executable, "-c", program], one_thread=True)
    assert budget.is_over
    assert min(needs_seconds, 2.0) * 0.5 <= budget.spent_seconds < 6.0
    spent = budget.spent_seconds
    budget.run([sys.executable, "-c", "pass"], one_thread=False)
    assert spent <= budget.spent_seconds < spent + 2.0
    other = Budget(tmp_path / "other.json", 1000.0)
    with pytest.raises(RuntimeError, match="code 3"):
        other.run([sys.executable, "-c", "raise SystemExit(3)"], one_thread=False)
    assert not other.is_over


def test_nothing_that_a_task_asks_for_is_pretrained_on(tmp_path: Path) -> None:
    from benchmarks.downstream.corpus import read_rows, training_documents
    from benchmarks.downstream.made_up import write_made_up

    data = write_made_up(tmp_path)
    documents = list(training_documents(data))
    texts = {document["text"] for _, document in documents}
    assert {source for source, _ in documents} == {"sotu", "peps", "sumpubmed"}
    asked = {
        row["id"]
        for name in ("val", "test")
        for row in read_rows(data / f"peps/sum_{name}.jsonl.gz")
    }
    assert asked
    assert not asked & {document["id"] for _, document in documents}
    for name in ("train", "val", "test"):
        for row in read_rows(data / f"sumpubmed/{name}.jsonl.gz"):
            assert (row["document"] in texts) == (name == "train")
            assert row["summary"] not in texts


def test_each_row_of_a_task_is_in_one_part_alone(tmp_path: Path) -> None:
    from benchmarks.downstream.options import Options
    from benchmarks.downstream.task_files import mrpc_files, review_files

    options = Options(folder=tmp_path)
    pairs = [path.read_text(encoding="utf-8").splitlines() for path in mrpc_files(options)]
    assert len({part.pop(0) for part in pairs}) == 1  # the header
    reviews = [path.read_text(encoding="utf-8").splitlines() for path in review_files(options)]
    for parts, count in ((pairs, 52), (reviews, 40)):
        assert all(parts)
        rows = [row for part in parts for row in part]
        assert len(rows) == len(set(rows)) == count


def test_a_difference_is_taken_on_the_same_rows() -> None:
    from benchmarks.downstream.accuracy import accuracy_row

    draw = np.random.default_rng(0)
    correct = (draw.random((3, 400)) < 0.7).astype(np.float64)
    worse = correct.copy()
    worse[:, :40] = 0.0
    row = accuracy_row(correct, worse, "worse")
    mean = correct[:, :40].sum() / correct.size
    assert row["minus worse [95 %]"].startswith(f"{mean:+.3f} [+")
    assert row["accuracy [95 %]"].startswith(f"{correct.mean():.3f} [")
    same = accuracy_row(correct, correct, "same")
    assert same["minus same [95 %]"] == "+0.000 [+0.000, +0.000]"


def test_the_command_line_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.downstream.__main__ import make_options, parse

    with pytest.raises(SystemExit):
        parse(["speling", "--smoke"])
    assert "unknown question 'speling'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["sentences"])
    assert "--data" in capsys.readouterr().err
    options = make_options(parse(["sentences", "--data", "here", "--workers", "3"]))
    assert (options.data, options.workers) == (Path("here"), 3)
