"""A run that was stopped, killed or moved goes on as if nothing had happened."""

from __future__ import annotations

import signal

import pytest
import torch
from worker_processes import Workers, losses, read_lines, train

from pretrain.checkpoints.checkpoint_format import (
    latest_complete,
    list_checkpoints,
    load_weights,
    verify_checkpoint,
)

pytestmark = pytest.mark.slow


def assert_same_weights(one, other):
    first, second = load_weights(latest_complete(one)), load_weights(latest_complete(other))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize(
    ("stage", "precision", "checkpointing"), [(2, "bf16", True), (1, "fp32", False)]
)
def test_stop_and_resume_equal_an_uninterrupted_run_bit_for_bit(
    run_settings, write_config, tmp_path, stage, precision, checkpointing
):
    run_settings["train"] |= {
        "max_steps": 8,
        "precision": precision,
        "activation_checkpointing": checkpointing,
    }
    run_settings["model"]["dropout"] = 0.1
    run_settings["deepspeed"] = {"zero_stage": stage}
    run_settings["checkpoint"]["every_steps"] = 100
    config = write_config(run_settings)
    train(config, "name=whole", processes=2)

    run = tmp_path / "runs" / "parts"
    workers = Workers(config, "name=parts", processes=2)
    workers.wait_for_step(run / "metrics.jsonl", 3)
    workers.signal(signal.SIGTERM, 1)  # one rank hears of it, both must stop
    assert workers.wait() == [75, 75], workers.output
    stopped_at = list_checkpoints(run)[-1].step
    assert 3 <= stopped_at < 8
    assert (run / "stopped.json").exists()
    train(config, "name=parts", processes=2)
    assert not (run / "stopped.json").exists()

    assert losses(run) == losses(tmp_path / "runs" / "whole")
    assert [step for step, _ in losses(run)] == list(range(1, 9))
    assert_same_weights(run, tmp_path / "runs" / "whole")
    events = [line for line in read_lines(run / "metrics.jsonl") if line.get("event") == "resume"]
    assert [event["step"] for event in events] == [stopped_at]


def test_kill_at_any_moment_loses_nothing(run_settings, write_config, tmp_path):
    run_settings["train"]["max_steps"] = 8
    run_settings["checkpoint"] = {"every_steps": 2, "keep_last": 2}
    config = write_config(run_settings)
    train(config, "name=whole", processes=2)
    run = tmp_path / "runs" / "killed"
    for step in (3, 6):
        workers = Workers(config, "name=killed", processes=2)
        workers.wait_for_step(run / "metrics.jsonl", step)
        workers.signal(signal.SIGKILL)
        workers.wait()
    train(config, "name=killed", processes=2)
    assert losses(run) == losses(tmp_path / "runs" / "whole")
    assert_same_weights(run, tmp_path / "runs" / "whole")
    assert len(list_checkpoints(run)) == 2
    for info in list_checkpoints(run):
        assert verify_checkpoint(info.path) == []


def test_another_number_of_processes_and_another_stage_go_on(run_settings, write_config, tmp_path):
    """Only the order of float32 additions differs: 1e-5 bounds it over these steps."""
    run_settings["train"] |= {"max_steps": 6, "precision": "fp32"}
    config = write_config(run_settings)
    train(config, "name=whole", processes=2)
    train(config, "name=moved", "train.max_steps=3", "schedule.kind=inverse_sqrt", processes=2)
    # The schedule's end is not part of the state; the curve is compared under one schedule.
    train(config, "name=whole-sqrt", "schedule.kind=inverse_sqrt", processes=2)
    train(
        config,
        "name=moved",
        "schedule.kind=inverse_sqrt",
        "deepspeed.zero_stage=1",
        processes=1,
    )
    one, other = losses(tmp_path / "runs" / "moved"), losses(tmp_path / "runs" / "whole-sqrt")
    assert one[:3] == other[:3]
    assert [step for step, _ in one] == [step for step, _ in other]
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in other], rel=1e-5)


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
