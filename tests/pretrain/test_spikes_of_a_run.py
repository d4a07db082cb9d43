"""A run that meets samples it cannot bear skips them, goes back, and steps over them."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
from worker_processes import Workers, losses, read_lines, train

pytestmark = pytest.mark.slow

BATCH = 8
FIRST_BAD_STEP = 45
BAD_STEPS = 5


@pytest.fixture
def noise(prose_data: Path, tmp_path: Path) -> Path:
    """A data set of letters drawn at random: nothing that was learned helps with it."""
    from data_pipeline.building.build import build_dataset
    from data_pipeline.tokenization.tokenizer import DocumentTokenizer

    letters = random.Random(0)
    corpus = tmp_path / "noise.jsonl"
    with corpus.open("w") as stream:
        for _ in range(60):
            text = " ".join("".join(letters.choices("qxzjkvwy", k=5)) for _ in range(150))
            stream.write(json.dumps({"text": text}) + "\n")
    tokenizer = DocumentTokenizer.load(prose_data / "tokenizer")
    build_dataset([corpus], tokenizer, tmp_path / "noise", heldout_fraction=0.1)
    return tmp_path / "noise" / "train"


@pytest.fixture
def stormy_settings(run_settings, prose_data, noise):
    """Learns for a while, then gets a few steps of noise."""
    first_bad = BATCH * (FIRST_BAD_STEP - 1)
    run_settings["data"] |= {
        "train": {
            "prose": {"path": str(prose_data / "train"), "weight": 1.0},
            "noise": {"path": str(noise), "weight": 0.0},
        },
        "stages": [
            {"from_sample": first_bad, "weights": {"noise": 1.0}},
            {"from_sample": first_bad + BATCH * BAD_STEPS, "weights": {"prose": 1.0}},
        ],
    }
    run_settings["train"]["max_steps"] = 60
    run_settings["optimizer"]["learning_rate"] = 1e-2
    run_settings["evaluation"]["every_steps"] = 1000
    run_settings["checkpoint"] = {"every_steps": 8, "keep_last": 3}
    run_settings["spikes"] = {
        "window_steps": 24,
        "minimum_history_steps": 16,
        "z_threshold": 6.0,
        "patience": 2,
    }
    return run_settings


def decisions(run: Path) -> list[dict[str, object]]:
    return read_lines(run / "decisions.jsonl")


def test_the_run_steps_over_bad_samples_alike_with_and_without_kills(
    stormy_settings, write_config, tmp_path
):
    config = write_config(stormy_settings)
    whole = tmp_path / "runs" / "whole"
    train(config, "name=whole", processes=2)
    made = decisions(whole)
    back = "roll_back"  # after each two bad steps; the fifth is skipped and forgotten
    actions = [x["action"] for x in made]
    assert actions == ["skip", "skip", back, "skip", "skip", back, "skip"]
    judged = [int(x["sample_index"]) // BATCH for x in made if x["action"] == "skip"]
    assert judged == list(range(FIRST_BAD_STEP - 1, FIRST_BAD_STEP - 1 + BAD_STEPS))
    assert {x["to_step"] for x in made if x["action"] == back} == {40}

    lines = read_lines(whole / "metrics.jsonl")
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps)), "what a roll-back made void is not in the curve"
    last = next(line for line in reversed(lines) if "loss" in line)
    assert last["updates"] == 60
    assert last["loss"] < 6.0
    void = read_lines(whole / "abandoned.jsonl")
    assert {line["step"] for line in void} >= {41, 42}
    said = [line["event"] for line in lines if "event" in line]
    assert said == ["roll_back", "roll_back", "skip"], "other skips were made void"

    killed = tmp_path / "runs" / "killed"
    for count in (1, 3, 5):
        workers = Workers(config, "name=killed", processes=2)
        workers.wait_for(lambda count=count: len(decisions(killed)) >= count)
        workers.signal(signal.SIGKILL)
        workers.wait()
    train(config, "name=killed", processes=2)
    assert decisions(killed) == made
    assert losses(killed) == losses(whole)


def test_a_run_that_only_skips_gives_up(run_settings, write_config, tmp_path):
    """An absurd rate: the first updates make every loss infinite or not a number."""
    run_settings["optimizer"]["learning_rate"] = 1e18
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 0}
    run_settings["train"]["max_steps"] = 40
    run_settings["spikes"] = {"max_skips_in_row": 3, "patience": 3, "max_roll_backs": 0}
    workers = Workers(write_config(run_settings), processes=2)
    assert workers.wait() == [1, 1]
    assert "the run gives up at step" in workers.output[0]
    assert "lower optimizer.learning_rate" in workers.output[0]
    assert "Traceback" not in workers.output[0]
    made = decisions(tmp_path / "runs" / "tiny")
    assert [x["action"] for x in made] == ["skip", "skip", "abort"]
