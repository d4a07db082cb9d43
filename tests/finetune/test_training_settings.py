"""Settings, batches, parameter groups, checkpoints: what all recipes share."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("transformers")

from finetune.callbacks import StopRequests
from finetune.checkpoints import is_complete, mark_complete, newest_complete, remove_checkpoints
from finetune.deepspeed_config import deepspeed_config
from finetune.errors import FinetuneError
from finetune.parameter_groups import parameter_groups
from finetune.results import summarize, table_rows
from finetune.settings import TrainingSettings
from spade_model.huggingface import SpadeForSequenceClassification, SpadePretrainedConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("state_space_learning_rate", math.inf),
        ("weight_decay", -0.1),
        ("warmup_share", 1.0),
        ("patience", 0),
        ("seeds", 0),
        ("first_seed", -1),
        ("dropout", 1.0),
        ("zero_stage", 3),
        ("precision", "float16"),
        ("evaluate_every_steps", 0),
    ],
)
def test_an_impossible_setting_is_named(name: str, value: Any) -> None:
    with pytest.raises(FinetuneError, match=f"^{name} is .*: use "):
        TrainingSettings(**{name: value})


@given(
    batch=st.integers(1, 200),
    processes=st.integers(1, 8),
    at_once=st.none() | st.integers(1, 32),
    rows=st.integers(1, 1000),
)
def test_a_step_is_the_whole_batch_however_it_is_cut(
    batch: int, processes: int, at_once: int | None, rows: int
) -> None:
    settings = TrainingSettings(batch_size=batch, micro_batch_size=at_once)
    if batch % processes or (at_once is not None and (batch // processes) % at_once):
        with pytest.raises(FinetuneError, match=r"use a (multiple|divisor) of"):
            settings.rows_at_once(processes)
        return
    cut = settings.rows_at_once(processes)
    assert cut * processes * settings.accumulation_steps(processes) == batch
    assert at_once in (None, cut)
    assume(cut * processes <= rows)
    steps = settings.steps_per_epoch(rows, processes)
    assert steps >= rows / batch
    assert steps < rows / batch + 1 + processes * cut / batch


def test_the_state_space_learns_slowly_and_never_decays() -> None:
    config = SpadePretrainedConfig(
        vocab_size=50, d_model=32, num_heads=2, head_dim=16, d_ff=32, num_decoder_layers=0
    )
    model = SpadeForSequenceClassification(config)
    model.classifier.bias.requires_grad_(False)
    settings = TrainingSettings(learning_rate=1e-3, weight_decay=0.1)
    groups = {group["name"]: group for group in parameter_groups(model, settings)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {n: {names[id(p)] for p in group["params"]} for n, group in groups.items()}
    assert held["state_space"] == {n for n in names.values() if ".state_space." in n} != set()
    assert (groups["state_space"]["lr"], groups["state_space"]["weight_decay"]) == (2.5e-4, 0)
    assert "classifier.weight" in held["decay"]
    assert groups["decay"]["weight_decay"] == 0.1
    assert all("weight" in n or "bias" in n for n in held["no_decay"])
    assert groups["no_decay"]["weight_decay"] == 0
    trained = {n for n in names.values() if n != "classifier.bias"}
    assert set().union(*held.values()) == trained
    assert sum(map(len, held.values())) == len(trained)
    torch.optim.AdamW(list(groups.values()))
    chosen = dataclasses.replace(settings, state_space_learning_rate=1e-5)
    rates = {group["name"]: group["lr"] for group in parameter_groups(model, chosen)}
    assert rates == {"decay": 1e-3, "no_decay": 1e-3, "state_space": 1e-5}


def test_deepspeed_keeps_weights_in_float32() -> None:
    config = deepspeed_config(
        zero_stage=2,
        micro_batch_size=2,
        accumulation_steps=3,
        processes=4,
        bfloat16=True,
        on_gpu=False,
    )
    assert config["train_batch_size"] == 24
    assert "bf16" not in config
    assert config["torch_autocast"] == {
        "enabled": True,
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],
    }


def write_checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "shards" / "part").write_bytes(b"weights")
    (checkpoint / "trainer_state.json").write_text("{}")
    if complete:
        mark_complete(checkpoint)
    return checkpoint


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    older, newer = write_checkpoint(tmp_path, 9), write_checkpoint(tmp_path, 10)
    torn = write_checkpoint(tmp_path, 20, complete=False)
    cut = write_checkpoint(tmp_path, 30)
    (cut / "shards" / "part").write_bytes(b"weigh")
    robbed = write_checkpoint(tmp_path, 40)
    (robbed / "shards" / "part").unlink()
    other = tmp_path / "checkpoint-notes"
    other.mkdir()
    assert [is_complete(path) for path in (older, newer, torn, cut, robbed)] == [
        *(True, True),
        *(False, False, False),
    ]
    assert newest_complete(tmp_path) == newer
    assert sorted(tmp_path.iterdir()) == sorted([older, newer, other])
    remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == [other]


def test_the_first_signal_is_noted_and_the_second_one_counts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequests() as requests:
        assert not requests.asked
        signal.raise_signal(signal.SIGINT)
        assert requests.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_seeds_are_summarized_by_mean_and_deviation() -> None:
    seeds = [
        {"seed": n, "validation": {"accuracy": value}, "tests": {"test": {}, "dev": {"f1": 0.5}}}
        for n, value in enumerate((0.7, 0.8, 0.9))
    ]
    results = summarize("accuracy", {}, seeds)
    spread = results["summary"]["validation"]["accuracy"]
    assert spread["mean"] == pytest.approx(0.8)
    assert spread["standard_deviation"] == pytest.approx(0.1)
    assert spread["values"] == [0.7, 0.8, 0.9]
    assert json.loads(json.dumps(results)) == results
    assert table_rows(results) == [
        ("validation", "accuracy", "0.8000 ± 0.1000", "0.7000 0.8000 0.9000"),
        ("dev", "f1", "0.5000 ± 0.0000", "0.5000 0.5000 0.5000"),
    ]
    assert table_rows(summarize("accuracy", {}, seeds[:1]))[0][2] == "0.7000"
