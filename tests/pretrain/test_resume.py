"""A run that was stopped, killed or moved goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import time

import pytest
import torch
from worker_processes import Workers, losses, read_lines, train

from pretrain.checkpoints.checkpoint_format import (
    latest_complete,
    list_checkpoints,
    verify_checkpoint,
)
from pretrain.checkpoints.reader import load_weights

pytestmark = pytest.mark.slow


def assert_same_weights(one, other):
    first, second = load_weights(latest_complete(one)), load_weights(latest_complete(other))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture
def demanding_settings(run_settings, prose_data):
    """All that has randomness or state of its own: dropout, accumulation, two sources."""
    run_settings["model"]["dropout"] = 0.1
    run_settings["data"]["train"] = {
        "long": {"path": str(prose_data / "train"), "weight": 3.0},
        "short": {"path": str(prose_data / "heldout"), "weight": 1.0},
    }
    run_settings["train"]["activation_checkpointing"] = "full"
    return run_settings


def test_stop_and_resume_equal_an_uninterrupted_run_bit_for_bit(
    demanding_settings, write_config, tmp_path
):
    demanding_settings["train"]["max_steps"] = 8
    demanding_settings["checkpoint"]["every_steps"] = 100
    config = write_config(demanding_settings)
    train(config, "name=whole", processes=2)

    run = tmp_path / "runs" / "parts"
    workers = Workers(config, "name=parts", processes=2)
    workers.wait_for_step(run / "metrics.jsonl", 3)
    workers.signal(signal.SIGTERM, 1)  # one rank hears of it, both must stop
    assert workers.wait() == [75, 75], workers.output
    stopped_at = list_checkpoints(run)[-1].step
    assert 3 <= stopped_at < 8
    assert json.loads((run / "stopped.json").read_text())["reason"] == "SIGTERM"
    train(config, "name=parts", processes=2)
    assert not (run / "stopped.json").exists()

    assert losses(run) == losses(tmp_path / "runs" / "whole")
    assert [step for step, _ in losses(run)] == list(range(1, 9))
    assert_same_weights(run, tmp_path / "runs" / "whole")
    events = [line for line in read_lines(run / "metrics.jsonl") if line.get("event") == "resume"]
    assert [event["step"] for event in events] == [stopped_at]


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (3, "fp32")]
)
def test_kills_at_random_moments_lose_nothing(
    demanding_settings, write_config, tmp_path, stage, precision
):
    """A few kills; `python -m benchmarks.engine kills` makes twenty in every cell."""
    demanding_settings["train"] |= {"max_steps": 12, "precision": precision}
    demanding_settings["checkpoint"] = {"every_steps": 2, "keep_last": 2}
    demanding_settings["evaluation"]["every_steps"] = 5
    demanding_settings["deepspeed"] = {"zero_stage": stage}
    config = write_config(demanding_settings)
    train(config, "name=whole", processes=2)
    run = tmp_path / "runs" / "killed"
    moments = random.Random(f"{stage} {precision}")
    workers = Workers(config, "name=killed", processes=2)
    workers.wait_for(lambda: bool(evaluations(run)))  # before there is any checkpoint
    workers.signal(signal.SIGKILL)
    workers.wait()
    for step in (3, 5, 9):
        workers = Workers(config, "name=killed", processes=2)
        workers.wait_for_step(run / "metrics.jsonl", step)
        time.sleep(moments.uniform(0, 0.2))
        workers.signal(signal.SIGKILL, moments.randrange(2))
        workers.wait()
    train(config, "name=killed", processes=2)
    assert losses(run) == losses(tmp_path / "runs" / "whole")
    assert evaluations(run) == evaluations(tmp_path / "runs" / "whole")
    assert_same_weights(run, tmp_path / "runs" / "whole")
    assert len(list_checkpoints(run)) == 2
    for info in list_checkpoints(run):
        assert verify_checkpoint(info.path) == []
    assert not list((run / "checkpoints").glob("*.partial*"))


def evaluations(run):
    return [line for line in read_lines(run / "metrics.jsonl") if "eval/heldout/loss" in line]


MOVES = [
    (2, "zero_stage: 2"),
    (1, "zero_stage: 0"),
    (4, "zero_stage: 3"),
    (2, "zero_stage: 1, offload_optimizer: cpu"),
    (1, "zero_stage: 3, offload_optimizer: cpu, offload_parameters: cpu"),
    (4, "zero_stage: 2"),
    (2, "zero_stage: 0"),
]


def test_a_run_moves_over_ranks_stages_and_offloading(run_settings, write_config, tmp_path):
    """Only the order of float32 additions differs: 1e-5 bounds it over these steps."""
    run_settings["train"]["precision"] = "fp32"
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 2}
    run_settings["evaluation"]["every_steps"] = 100
    config = write_config(run_settings)
    steps = 2 * len(MOVES)
    train(config, "name=whole", f"train.max_steps={steps}", processes=2)
    for number, (processes, deepspeed) in enumerate(MOVES, 1):
        overrides = (f"train.max_steps={2 * number}", f"deepspeed={{{deepspeed}}}")
        train(config, "name=moved", *overrides, processes=processes)
    whole, moved = tmp_path / "runs" / "whole", tmp_path / "runs" / "moved"
    assert losses(moved)[:2] == losses(whole)[:2]
    assert [step for step, _ in losses(moved)] == list(range(1, steps + 1))
    assert [x for _, x in losses(moved)] == pytest.approx([x for _, x in losses(whole)], rel=1e-5)
    last = [read_lines(run / "metrics.jsonl")[-2] for run in (moved, whole)]
    for key in ("learning_rate", "tokens_seen", "sample_index"):
        assert last[0][key] == last[1][key], key
    first, second = (load_weights(latest_complete(run)) for run in (moved, whole))
    for name in first:
        assert torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-5), name


def test_a_damaged_checkpoint_is_passed_over_and_a_foreign_one_refused(
    run_settings, write_config, tmp_path
):
    config = write_config(run_settings)
    train(config, processes=1)
    run = tmp_path / "runs" / "tiny"
    newest = latest_complete(run)
    file = newest / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    workers = train(config, "train.max_steps=7", processes=1)
    assert "passed over a damaged checkpoint" in workers.output[0]
    assert "resuming after step 3" in workers.output[0]

    for override, said in (
        ("model.d_ff=128", "model.d_ff was 64, now 128"),
        ("train.seed=5", "seed"),
    ):
        workers = Workers(config, override, processes=1)
        assert workers.wait() == [1]
        assert said in workers.output[0]
        assert "Traceback" not in workers.output[0]


def test_a_finished_run_that_is_started_again_stays_as_it_is(run_settings, write_config, tmp_path):
    config = write_config(run_settings)
    train(config, processes=1)
    before = losses(tmp_path / "runs" / "tiny")
    train(config, processes=1)
    assert losses(tmp_path / "runs" / "tiny") == before
