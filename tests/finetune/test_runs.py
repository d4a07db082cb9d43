"""Whole runs: what is learned, what is left behind, and that interruptions change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from commands import spade
from finetune_models import write_sst2
from python_processes import FreshProcess, wait_for_output
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune.classification.recipe import Classification
from finetune.classification.tasks import GLUE
from finetune.errors import FinetuneError
from finetune.run import run_recipe
from finetune.settings import TrainingSettings
from launch.cli import run as run_command

QUICK = TrainingSettings(epochs=1, batch_size=8, micro_batch_size=4, evaluate_every_steps=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to learn, to validate, and to predict."""
    folder = tmp_path_factory.mktemp("rows")
    write_sst2(folder / "train.tsv", 512, seed=1)
    write_sst2(folder / "dev.tsv", 64, seed=2)
    write_sst2(folder / "test.tsv", 40, seed=3, labelled=False)
    write_sst2(folder / "few.tsv", 48, seed=4)
    return folder


def arguments(exported: Path, files: Path, out: Path) -> list[str]:
    """A run that learns the task, as it is typed."""
    return [
        *("finetune", "classify", str(exported), "--task", "sst2", "--out", str(out)),
        *("--train", str(files / "train.tsv"), "--validation", str(files / "dev.tsv")),
        *("--test", str(files / "test.tsv"), "--test", str(files / "few.tsv")),
        *("--epochs", "3", "--learning-rate", "3e-3"),
        *("--evaluate-every-steps", "10", "--no-early-stop"),
    ]


def few(exported: Path, files: Path, **options: Any) -> Classification:
    rows = files / "few.tsv"
    return Classification(exported, GLUE["sst2"], rows, rows, **options)


@pytest.fixture(scope="module")
def learned(exported: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    out = tmp_path_factory.mktemp("learned") / "run"
    said = spade(*arguments(exported, files, out))
    assert "seed 0, step 48 of 48: validation" in said
    assert "validation  accuracy" in said
    return out


@pytest.mark.slow
def test_a_run_learns_and_leaves_a_model_with_its_predictions(
    exported: Path, files: Path, learned: Path
) -> None:
    results = json.loads((learned / "results.json").read_text())
    assert results["summary"]["validation"]["accuracy"]["mean"] > 0.9
    assert results["summary"]["few"]["accuracy"]["mean"] > 0.9
    assert results["summary"]["test"] == {}, "nobody knows its labels"
    assert "validation accuracy" in (learned / "report.html").read_text()
    assert any((learned / "seed-0" / "tensorboard").iterdir())
    assert not list((learned / "seed-0").glob("checkpoint-*")), "they have served"
    folder = learned / "seed-0" / "model"
    assert (folder / "tokenizer.json").read_bytes() == (exported / "tokenizer.json").read_bytes()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [line.split("\t")[1] for line in (files / "test.tsv").read_text().splitlines()[1:]]
    records = [json.loads(s) for s in (learned / "seed-0" / "predictions-test.jsonl").open()]
    assert len(records) == len(texts) == 40
    for text, record in zip(texts, records, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        assert model.config.id2label[int(logits.argmax())] == record["prediction"]
        shares = logits.softmax(dim=0)
        assert list(record["probabilities"].values()) == pytest.approx(shares.tolist(), abs=1e-4)
    # Nothing is trained again, and nothing else is trained in the same place.
    again = spade(*arguments(exported, files, learned))
    assert "step" not in again
    refused = spade(*arguments(exported, files, learned), "--dropout", "0.3", code=1)
    assert "holds a run with training.dropout null, now it is 0.3" in refused


@pytest.mark.slow
def test_an_interrupted_run_comes_to_the_same_end(
    exported: Path, files: Path, learned: Path, tmp_path: Path
) -> None:
    """Killed, then stopped between two checkpoints, then finished: all numbers to the last bit."""
    out = tmp_path / "run"
    command = ["-m", "launch.cli", *arguments(exported, files, out)]
    for sign, number, code in (
        ("step 13 of 48", signal.SIGKILL, -signal.SIGKILL),
        ("step 24 of 48", signal.SIGTERM, 75),
    ):
        process = FreshProcess(command, os.environ)
        wait_for_output(process, sign)
        process.send_signal(number)
        assert process.wait(120) == code, process.output
    assert "seed 0: goes on from checkpoint-10" in process.output
    assert "the same command goes on" in process.output
    # What a crash leaves half written does not count.
    torn = out / "seed-0" / "checkpoint-47"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"")
    said = spade(*arguments(exported, files, out))
    assert "seed 0: goes on from checkpoint-2" in said
    weights = ("seed-0", "model", "model.safetensors")
    assert out.joinpath(*weights).read_bytes() == learned.joinpath(*weights).read_bytes()
    one, other = (
        json.loads((run / "seed-0" / "result.json").read_text()) for run in (out, learned)
    )
    assert one == other


@pytest.mark.slow
def test_two_processes_share_the_work(exported: Path, files: Path, tmp_path: Path) -> None:
    """Under torchrun, with ZeRO 2 and several seeds; each row is predicted once."""
    out = tmp_path / "run"
    command = [*arguments(exported, files, out), "--epochs", "2", "--seeds", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [sys.executable, *torchrun, "-m", "launch.cli", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((out / "results.json").read_text())["summary"]
    scores = summary["validation"]["accuracy"]["values"]
    assert len(scores) == 2
    assert min(scores) > 0.8
    assert result.stdout.count("step 32 of 32: validation") == 2, "one process speaks"
    for seed in (0, 1):
        lines = (out / f"seed-{seed}" / "predictions-test.tsv").read_text().splitlines()
        assert len(lines) == 41


@pytest.mark.slow
def test_text_to_text_learns_to_write_labels(exported: Path, files: Path, tmp_path: Path) -> None:
    recipe = Classification(
        exported, GLUE["sst2"], files / "train.tsv", files / "dev.tsv", mode="text"
    )
    settings = TrainingSettings(
        epochs=6, learning_rate=4e-3, evaluate_every_steps=32, state_space_learning_rate=1e-3
    )
    results = run_recipe(recipe, settings, tmp_path / "run", say=lambda line: None)
    assert results["summary"]["validation"]["accuracy"]["mean"] > 0.9
    config = json.loads((tmp_path / "run" / "seed-0" / "model" / "config.json").read_text())
    assert config["is_encoder_decoder"]
    assert config["use_cache"]


class FailsOnce(Classification):
    """Its disk is full when predictions are to be written for the first time."""

    failed = False

    def write_predictions(self, folder: Path, name: str, rows: Any, outputs: Any) -> None:
        if not self.failed:
            self.failed = True
            raise OSError("no space left on device")
        super().write_predictions(folder, name, rows, outputs)


@pytest.mark.parametrize("epochs", [1, 4], ids=["all steps done", "stopped early"])
def test_a_training_that_was_over_is_not_trained_further(
    exported: Path, files: Path, tmp_path: Path, epochs: int
) -> None:
    """Whatever ended it, and whether its last steps were validated or not."""
    # A rate this small changes no prediction: each validation but the first is in vain.
    settings = TrainingSettings(
        **{**vars(QUICK), "epochs": epochs, "learning_rate": 1e-9, "patience": 2}
    )
    rows = files / "few.tsv"
    recipe = FailsOnce(exported, GLUE["sst2"], rows, rows)
    with pytest.raises(OSError, match="no space"):
        run_recipe(recipe, settings, tmp_path / "failed", say=lambda line: None)
    results = run_recipe(recipe, settings, tmp_path / "failed", say=lambda line: None)
    undisturbed = run_recipe(recipe, settings, tmp_path / "other", say=lambda line: None)
    assert results == undisturbed
    assert results["seeds"][0]["steps"] == 6


def test_more_seeds_can_be_added_later(exported: Path, files: Path, tmp_path: Path) -> None:
    recipe = few(exported, files)
    first = run_recipe(recipe, QUICK, tmp_path / "run", say=lambda line: None)
    more = TrainingSettings(**{**vars(QUICK), "seeds": 2})
    both = run_recipe(recipe, more, tmp_path / "run", say=lambda line: None)
    assert both["seeds"][0] == first["seeds"][0]
    assert [seed["seed"] for seed in both["seeds"]] == [0, 1]
    assert both["seeds"][0]["history"] != both["seeds"][1]["history"], "seeds differ"


def test_a_folder_of_something_else_is_left_alone(
    exported: Path, files: Path, tmp_path: Path
) -> None:
    recipe = few(exported, files)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("four years")
    with pytest.raises(FinetuneError, match="is no fine-tuning run; choose another --out"):
        run_recipe(recipe, QUICK, notes)
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.json").write_text("[]")
    with pytest.raises(FinetuneError, match="was not written by a run"):
        run_recipe(recipe, QUICK, run)
    (run / "settings.json").write_text("{")
    with pytest.raises(FinetuneError, match="not JSON"):
        run_recipe(recipe, QUICK, run)


def test_wrong_commands_are_one_line(
    exported: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["finetune", "classify", str(exported), "--out", str(tmp_path / "run")]
    start += ["--train", str(files / "train.tsv"), "--validation", str(files / "dev.tsv")]
    for options, code, complaint in (
        ([], 2, "give --task, or both --text-column and --label-column"),
        (["--task", "sst2", "--label-column", "label"], 2, "leave the other options out"),
        (["--task", "sst3"], 1, "task 'sst3' is unknown"),
        (["--task", "rte"], 1, "no column 'sentence1' (found: sentence, label)"),
        (["--task", "sst2", "--batch-size", "6", "--micro-batch-size", "4"], 1, "divisor of 6"),
    ):
        assert run_command([*start, *options]) == code
        said = capsys.readouterr().err
        assert complaint in said
        assert said.count("error:") == said.count("\n") == 1
    assert not (tmp_path / "run").exists()
