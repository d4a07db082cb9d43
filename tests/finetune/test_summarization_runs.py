"""Whole runs of ``summarize``: what is learned, interruptions, and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("rouge_score")

from commands import spade
from finetune_models import write_summaries
from python_processes import FreshProcess, wait_for_output

from finetune.run import run_recipe
from finetune.settings import TrainingSettings
from finetune.summarization.recipe import Summarization, SummarySettings
from finetune.summarization.writing import WritingSettings
from launch.cli import run as run_command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to learn, to validate, and to predict."""
    folder = tmp_path_factory.mktemp("summaries")
    write_summaries(folder / "train.jsonl", 512, seed=1)
    write_summaries(folder / "dev.jsonl", 24, seed=2)
    write_summaries(folder / "test.jsonl", 41, seed=3)
    write_summaries(folder / "new.jsonl", 5, seed=4, with_summaries=False)
    return folder


def arguments(exported: Path, files: Path, out: Path) -> list[str]:
    return [
        *("finetune", "summarize", str(exported), "--out", str(out)),
        *("--train", str(files / "train.jsonl"), "--validation", str(files / "dev.jsonl")),
        *("--test", str(files / "test.jsonl"), "--test", str(files / "new.jsonl")),
        *("--epochs", "4", "--micro-batch-size", "16", "--evaluate-every-steps", "32"),
        *("--learning-rate", "4e-3", "--state-space-learning-rate", "1e-3", "--no-early-stop"),
        *("--beams", "2", "--evaluation-batch-tokens", "400"),
    ]


def predictions(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "seed-0" / f"predictions-{name}.jsonl").open()]


@pytest.fixture(scope="module")
def learned(exported: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    out = tmp_path_factory.mktemp("learned") / "run"
    said = spade(*arguments(exported, files, out))
    assert "test: 41 documents of" in said
    assert "summaries written: 41 in" in said
    assert "LEAD-3" in said
    return out


@pytest.mark.slow
def test_a_run_learns_to_use_its_documents(learned: Path) -> None:
    results = json.loads((learned / "results.json").read_text())
    assert results["summary"]["test"]["rouge2"]["mean"] > 0.8
    assert results["summary"]["new"] == {}, "nobody knows their summaries"
    details = results["seeds"][0]["details"]
    assert set(details) == {"validation", "test", "new"}
    assert "rouge" not in details["validation"], "it is not written where there are tests"
    assert details["test"]["rouge"]["difference"]["rouge1"]["interval"][0] > 0.3
    assert details["test"]["nll_per_token"]["difference"]["interval"][0] > 0.1
    report = (learned / "report.html").read_text()
    for table in results["tables"]:
        assert all(cell in report for row in table["rows"] for cell in row)
    lines = predictions(learned, "test")
    assert [line["id"] for line in lines] == [f"d{row}" for row in range(41)]
    known = {"id", "prediction", "reference", "rouge1", "rouge2", "rougeLsum", "nll_per_token"}
    assert set(lines[0]) == known | {"nll_per_token_shuffled", "reference_tokens"}
    mean = sum(line["rouge1"] for line in lines) / 41
    assert mean == pytest.approx(results["summary"]["test"]["rouge1"]["mean"], abs=1e-5)
    new = predictions(learned, "new")
    assert [set(line) for line in new] == [{"id", "prediction"}] * 5
    assert not (learned / "seed-0" / "predictions-validation.jsonl").exists()


@pytest.mark.slow
def test_an_interrupted_run_comes_to_the_same_end(
    exported: Path, files: Path, learned: Path, tmp_path: Path
) -> None:
    """Killed while it learns, stopped while it writes, then finished: bit for bit the same."""
    out = tmp_path / "run"
    command = ["-m", "launch.cli", *arguments(exported, files, out)]
    for sign, number, code in (
        ("step 39 of 128", signal.SIGKILL, -signal.SIGKILL),
        ("seed 0: trained for", signal.SIGTERM, 75),
    ):
        process = FreshProcess(command, os.environ)
        wait_for_output(process, sign)
        process.send_signal(number)
        assert process.wait(120) == code, process.output
    assert "goes on from checkpoint-32" in process.output
    assert "stopped while predicting; the same command goes on" in process.output
    said = spade(*arguments(exported, files, out))
    assert "goes on from checkpoint-128" in said
    weights = ("seed-0", "model", "model.safetensors")
    assert out.joinpath(*weights).read_bytes() == learned.joinpath(*weights).read_bytes()
    one, other = (
        json.loads((run / "seed-0" / "result.json").read_text()) for run in (out, learned)
    )
    assert one == other
    assert predictions(out, "test") == predictions(learned, "test")


@pytest.mark.slow
def test_two_processes_write_and_score_the_same(learned: Path, files: Path, tmp_path: Path) -> None:
    """The same weights in both: a rate this small moves none. 41 rows do not share evenly."""
    model = learned / "seed-0" / "model"
    made = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = [*arguments(model, files, out), "--learning-rate", "1e-12", "--epochs", "1"]
        command += ["--state-space-learning-rate", "1e-12", "--micro-batch-size", "8"]
        command += ["--choose-by", "rouge"]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        result = subprocess.run(
            [sys.executable, *(torchrun if processes == 2 else []), "-m", "launch.cli", *command],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.count("best checkpoint by validation rouge_mean") == 1
        seed = json.loads((out / "seed-0" / "result.json").read_text())
        made.append(
            (
                [predictions(out, name) for name in ("test", "new", "validation")],
                {name: seed[name] for name in ("validation", "tests", "details")},
            )
        )
    (texts, numbers), (shared_texts, shared_numbers) = made
    for own, other in zip(texts, shared_texts, strict=True):
        assert [line["id"] for line in own] == [line["id"] for line in other]
        assert [line["prediction"] for line in own] == [line["prediction"] for line in other]
        for line, shared in zip(own, other, strict=True):
            assert shared == pytest.approx(line, abs=2e-6)
    assert flat(shared_numbers) == pytest.approx(flat(numbers), abs=1e-6)


def flat(value: Any, name: str = "") -> dict[str, float]:
    """Numbers of nested JSON by their dotted names."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in flat(inner, f"{name}.{key}").items()}
    return {name: value}


def test_a_checkpoint_can_be_chosen_by_rouge(exported: Path, files: Path, tmp_path: Path) -> None:
    """The best one is that with the highest mean; without tests the validation is written."""
    settings = SummarySettings(
        choose_by="rouge", writing=WritingSettings(beams=1, max_summary_tokens=6)
    )
    few = write_summaries(tmp_path / "few.jsonl", 12, seed=5)
    recipe = Summarization(exported, few, few, settings=settings)
    training = TrainingSettings(epochs=3, batch_size=4, learning_rate=5e-3, patience=None)
    results = run_recipe(recipe, training, tmp_path / "run", say=lambda line: None)
    seed = results["seeds"][0]
    name = "validation/rouge_mean"
    found = {line["step"]: line[name] for line in seed["history"] if name in line}
    assert len(found) == 3
    assert found[seed["best_step"]] == max(found.values())
    assert seed["validation"]["rouge_mean"] == pytest.approx(max(found.values()))
    assert len(predictions(tmp_path / "run", "validation")) == 12


def test_wrong_commands_are_one_line(
    exported: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["finetune", "summarize", str(exported), "--out", str(tmp_path / "run")]
    start += ["--train", str(files / "train.jsonl"), "--validation", str(files / "dev.jsonl")]
    for options, complaint in (
        (["--beams", "0"], "beams is 0: use 1 or more"),
        (["--choose-by", "luck"], "choose_by is 'luck': use nll or rouge"),
        (["--max-summary-tokens", "99"], "the model's decoder takes 16 at most"),
        (["--min-summary-tokens", "16"], "min_summary_tokens is 16: use less than 16"),
        (["--summary-column", "abstract"], "line 1: no column 'abstract'"),
        (["--summary-column", "document"], "three different ones"),
    ):
        assert run_command([*start, *options]) == 1
        said = capsys.readouterr().err
        assert complaint in said
        assert said.count("error:") == said.count("\n") == 1
    assert not (tmp_path / "run").exists()
