"""Samples whose input several ranks share: the same run, whoever holds which tokens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worker_processes import losses, read_lines, train

from data_pipeline.reading.stream import PretrainingStream
from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.planning.run_shape import run_memory


def heldout_losses(run: Path) -> list[float]:
    lines = read_lines(run / "metrics.jsonl")
    return [line["eval/heldout/loss"] for line in lines if "eval/heldout/loss" in line]


def quarantined(run: Path) -> set[tuple[str, str]]:
    lines = read_lines(run / "quarantine.jsonl")
    return {(line["shard_file"], str(line["ranges"])) for line in lines}


def harm(settings: dict[str, Any], copy: Path) -> None:
    """Trains on a copy of the data in which a bit of the tenth sample is flipped."""
    shutil.copytree(settings["data"]["train"], copy)
    settings["data"] |= {"train": str(copy), "on_damage": "quarantine", "max_damaged_fraction": 0.9}
    config = RunConfig.from_dict(settings | {"model": settings["model"] | {"vocab_size": 576}})
    stream = PretrainingStream(config.data.stream_settings(config.train.seed))
    found = stream.locate([9])
    tokens = stream.read(found).tokens[0]
    path = copy / stream.manifests["train"].shards[int(found.shards[0])].file
    stream.close()
    data = bytearray(path.read_bytes())
    # Eight tokens that lie in one document stand in the shard as they are.
    places = (data.find(tokens[first : first + 8].tobytes()) for first in range(len(tokens) - 8))
    data[next(place for place in places if place >= 0)] ^= 4
    path.write_bytes(data)


@pytest.mark.slow
def test_the_run_is_the_same_however_inputs_are_shared(
    run_settings: dict[str, Any], write_config: Callable[[dict[str, Any]], Path], tmp_path: Path
) -> None:
    """Two groups of two, one of two, none; and each goes on with another, around damage."""
    run_settings["model"]["dropout"] = 0.0  # each part of an input draws its own
    run_settings["train"]["precision"] = "fp32"
    # Rows of several lengths and of several documents.
    run_settings["data"] |= {"objective": {"kind": "ul2"}, "document_boundaries": True}
    harm(run_settings, tmp_path / "harmed")
    run_settings["telemetry"] = {"sample_fills": 2}
    config = write_config(run_settings)
    runs = tmp_path / "runs"
    train(config, "name=alone", processes=1)
    train(config, "name=grid", "parallel.context=2", "deepspeed.zero_stage=3", processes=4)
    shared = ("parallel.context=2", "train.activation_checkpointing=full", "data.workers=1")
    train(config, "name=pair", *shared, processes=2)
    expected, heldout = losses(runs / "alone"), heldout_losses(runs / "alone")
    for name in ("grid", "pair"):
        assert losses(runs / name) == [
            (step, pytest.approx(loss, abs=1e-5)) for step, loss in expected
        ], name
        assert heldout_losses(runs / name) == pytest.approx(heldout, abs=1e-5)
        assert quarantined(runs / name) == quarantined(runs / "alone")
    assert quarantined(runs / "alone"), "what is gone around"
    ends = [read_lines(runs / name / "metrics.jsonl") for name in ("alone", "grid", "pair")]
    assert len({max(line.get("tokens_seen", 0) for line in lines) for lines in ends}) == 1
    # A checkpoint says nothing of contexts: it goes on with any.
    train(config, "name=grid", "train.max_steps=8", processes=1)
    train(config, "name=alone", "train.max_steps=8", "parallel.context=2", processes=2)
    expected = losses(runs / "alone")[-2:]
    assert losses(runs / "grid")[-2:] == [
        (step, pytest.approx(loss, abs=1e-5)) for step, loss in expected
    ]


def test_what_cannot_be_shared_is_named(run_settings: dict[str, Any]) -> None:
    def complaint(**changes: Any) -> str:
        settings = run_settings | {"parallel": {"context": 3}}
        settings["model"] = run_settings["model"] | {"vocab_size": 576}
        for section, values in changes.items():
            settings[section] = settings[section] | values
        with pytest.raises(ConfigError) as caught:
            RunConfig.from_dict(settings).most_accumulation_steps(4)
        return str(caught.value)

    assert "parallel.context 3 does not divide 4 processes" in complaint()
    assert "parallel.context 3: attention='full'" in complaint(model={"attention": "full"})
    assert "train.compile" in complaint(train={"compile": True})
    short = complaint(data={"input_length_tokens": 16}, parallel={"context": 20})
    assert "16 tokens cannot be cut into context=20" in short
    assert "parallel.context" in complaint(parallel={"context": 0})


def test_the_plan_gives_each_rank_its_part(run_settings: dict[str, Any]) -> None:
    run_settings["model"]["vocab_size"] = 576
    run_settings["data"]["input_length_tokens"] = 4096
    run_settings["model"]["max_target_length_tokens"] = 1024

    def activations(context: int) -> int:
        config = RunConfig.from_dict(run_settings | {"parallel": {"context": context}})
        return run_memory(config, 4, "cpu").device["activations"]

    assert activations(4) < activations(2) < activations(1)
