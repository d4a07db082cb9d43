"""What the engine can be set to: precision, curriculum, optimizers, compiled layers, memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from torch.utils.cpp_extension import get_default_build_root
from worker_processes import RUN_WORKER, Workers, losses, read_lines, train

pytestmark = pytest.mark.slow


def lines_of(run):
    return [line for line in read_lines(run / "metrics.jsonl") if "loss" in line]


def test_fp16_scales_the_loss_skips_overflows_and_resumes_exactly(
    run_settings, write_config, tmp_path
):
    run_settings["train"] |= {"precision": "fp16", "max_steps": 6}
    run_settings["checkpoint"]["every_steps"] = 2
    config = write_config(run_settings)
    train(config, "name=whole", processes=2)
    whole, killed = tmp_path / "runs" / "whole", tmp_path / "runs" / "killed"
    workers = Workers(config, "name=killed", processes=2)
    workers.wait_for_step(killed / "metrics.jsonl", 3)
    workers.signal(signal.SIGKILL)
    workers.wait()
    train(config, "name=killed", processes=2)
    assert losses(killed) == losses(whole)
    train(config, "name=exact", "train.precision=fp32", processes=1)
    assert lines_of(whole)[0]["loss_scale"] in (2.0**15, 2.0**16)
    exact = [line["loss"] for line in lines_of(tmp_path / "runs" / "exact")]
    updated = [line["loss"] for line in lines_of(whole) if line["updates"] == line["step"]]
    assert updated == pytest.approx(exact[: len(updated)], rel=2e-2)


def test_every_target_token_weighs_alike_however_the_batch_is_cut(
    run_settings, write_config, tmp_path
):
    """Ragged targets: a mean over micro-batches would depend on how they are cut."""
    run_settings["train"] |= {"precision": "fp32", "max_steps": 4}
    run_settings["data"]["objective"] = {"kind": "prefix_lm"}
    run_settings["model"]["max_target_length_tokens"] = 80
    config = write_config(run_settings)
    for name, micro_batch_size, processes in (("fine", 1, 2), ("coarse", 8, 1), ("middle", 2, 1)):
        overrides = (f"name={name}", f"train.micro_batch_size={micro_batch_size}")
        train(config, *overrides, processes=processes)
    fine, coarse, middle = (lines_of(tmp_path / "runs" / n) for n in ("fine", "coarse", "middle"))
    assert len({line["target_tokens"] for line in coarse}) > 1, "the targets are ragged"
    for key, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4), ("target_tokens", 0)):
        for other in (fine, middle):
            expected = [line[key] for line in coarse]
            assert [line[key] for line in other] == pytest.approx(expected, rel=tolerance), key


def test_a_curriculum_changes_batch_and_length_and_resumes_at_its_edges(
    run_settings, write_config, tmp_path
):
    run_settings["train"] |= {
        "max_steps": 8,
        "precision": "fp32",
        "curriculum": [
            {"from_tokens": 0, "global_batch_size": 4, "input_length_tokens": 32},
            {"from_tokens": 400, "global_batch_size": 8, "input_length_tokens": 32},
            {"from_tokens": 1200},
        ],
    }
    run_settings["train"]["global_batch_size"] = 16
    run_settings["checkpoint"]["every_steps"] = 1
    config = write_config(run_settings)
    whole = tmp_path / "runs" / "whole"
    train(config, "name=whole", processes=2)
    lines = lines_of(whole)
    batches = [line["global_batch_size"] for line in lines]
    assert batches == sorted(batches)
    assert set(batches) == {4, 8, 16}
    for before, line in pairwise(lines):
        assert line["sample_index"] - before["sample_index"] == line["global_batch_size"]
    for step in range(1, 9):
        assert lines[step - 1]["step"] == step
    # Stop once at every edge: the same command with fewer steps ends there.
    edges = [i + 1 for i, (a, b) in enumerate(pairwise(batches)) if a != b]
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 2}
    config = write_config(run_settings)
    train(config, "name=flat", processes=2)
    for steps in (*edges, 8):
        train(config, "name=cut", f"train.max_steps={steps}", processes=2)
    assert losses(tmp_path / "runs" / "cut") == losses(tmp_path / "runs" / "flat")
    changed = "train.curriculum=[{from_tokens: 0, global_batch_size: 8}]"
    workers = Workers(config, "name=cut", "train.max_steps=9", changed, processes=1)
    assert workers.wait() == [1]
    assert "change only stages that have not begun" in workers.output[0]


def test_states_on_a_disk_resume_exactly(run_settings, write_config, tmp_path):
    # A kernel built by another environment would be built again, which takes a quarter of an hour.
    places = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    built = [kernel.with_name("build.ninja") for kernel in places.rglob("async_io.so")]
    ours = str(Path(importlib.util.find_spec("deepspeed").origin).parent)
    if not any(ours in recipe.read_text() for recipe in built):
        pytest.skip("DeepSpeed's async_io is not built here: needs libaio-dev, g++ and minutes")
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 0}
    run_settings["evaluation"]["every_steps"] = 100
    run_settings["train"]["precision"] = "fp32"
    run_settings["model"] |= {"d_model": 128, "d_ff": 1024}  # less than a megabyte stays in memory
    config = write_config(run_settings)
    disk = tmp_path / "disk"
    disk.mkdir()
    place = f"{{zero_stage: 3, offload_optimizer: nvme, nvme_folder: {disk}}}"
    train(config, "name=memory", "deepspeed={zero_stage: 3}", processes=2)
    train(config, "name=disk", "train.max_steps=3", f"deepspeed={place}", processes=2)
    assert list(disk.rglob("*.swp"))
    train(config, "name=disk", f"deepspeed={place}", processes=2)
    memory, swapped = (losses(tmp_path / "runs" / name) for name in ("memory", "disk"))
    assert [x for _, x in swapped] == pytest.approx([x for _, x in memory], rel=1e-5)


@pytest.mark.parametrize("kind", ["adafactor", "muon"])
def test_other_optimizers_resume_exactly(run_settings, write_config, tmp_path, kind):
    run_settings["optimizer"] |= {"kind": kind, "learning_rate": 1e-2}
    run_settings["deepspeed"] = {"zero_stage": 0}
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 0}
    run_settings["evaluation"]["every_steps"] = 100
    config = write_config(run_settings)
    train(config, "name=whole", processes=2)
    train(config, "name=cut", "train.max_steps=3", processes=2)
    train(config, "name=cut", processes=2)
    assert losses(tmp_path / "runs" / "cut") == losses(tmp_path / "runs" / "whole")


def test_compiled_layers_and_other_checkpointing_give_the_same_curve(
    run_settings, write_config, tmp_path
):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++")
    run_settings["train"] |= {"precision": "fp32", "max_steps": 2}
    run_settings["model"]["num_encoder_layers"] = 1  # compiling takes half a minute a layer
    config = write_config(run_settings)
    train(config, "name=plain", processes=1)
    train(config, "name=compiled", "train.compile=true", processes=1)
    train(config, "name=selective", "train.activation_checkpointing=selective", processes=1)
    plain = losses(tmp_path / "runs" / "plain")
    assert losses(tmp_path / "runs" / "selective") == plain
    compiled = [loss for _, loss in losses(tmp_path / "runs" / "compiled")]
    assert compiled == pytest.approx([loss for _, loss in plain], rel=1e-5)


def test_a_batch_that_does_not_fit_fails_before_the_first_step(
    run_settings, write_config, tmp_path
):
    run_settings["train"] |= {"global_batch_size": 8_000, "micro_batch_size": 8_000}
    config = write_config(run_settings)
    command = f'ulimit -v 4500000; exec "{sys.executable}" "{RUN_WORKER}" "{config}"'
    result = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "out of memory in a trial of the largest batch" in result.stderr
    assert "train.micro_batch_size" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs" / "tiny" / "checkpoints").exists()
