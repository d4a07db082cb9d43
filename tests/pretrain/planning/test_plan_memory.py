"""The plan's memory and communication against real runs on one and two CPU ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from worker_processes import free_port

from pretrain.config import RunConfig
from pretrain.planning.communication import plan_communication
from pretrain.planning.run_shape import run_memory, sharding
from spade_model.cost import count_parameters

DRIVER = Path(__file__).with_name("memory_driver.py")
BUCKET_ELEMENTS = 4_500_000
STAGE_3 = {"param_persistence_threshold": 0}


def settings(*, precision: str, global_batch_size: int, micro_batch_size: int) -> dict[str, Any]:
    """25 million parameters: tensors outweigh the libraries' own memory."""
    return {
        "name": "planned",
        "model": {
            "vocab_size": 8192,
            "d_model": 512,
            "num_heads": 8,
            "head_dim": 64,
            "d_ff": 2048,
            "num_encoder_layers": 3,
            "num_decoder_layers": 3,
            "state_dim": 32,
            "local_radius_tokens": 63,
            "max_target_length_tokens": 80,
        },
        "data": {"train": "t", "heldout": "h", "tokenizer": "k", "input_length_tokens": 192},
        "train": {
            "max_steps": 200,
            "global_batch_size": global_batch_size,
            "micro_batch_size": micro_batch_size,
            "precision": precision,
        },
        "optimizer": {"learning_rate": 1e-3},
    }


def layout(stage: int, **changes: Any) -> dict[str, Any]:
    raw = {"reduce_bucket_size": BUCKET_ELEMENTS} if stage else {}
    raw |= (STAGE_3 if stage == 3 else {}) | changes.pop("raw", {})
    passed = {"raw": {"zero_optimization": raw}} if raw else {}
    return {"deepspeed": {"zero_stage": stage, **changes, **passed}}


def measure(run: dict[str, Any], layouts: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    """What rank 0 needed in each layout."""
    common = os.environ | {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # freed memory goes back at once
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_PERTURB_": "1",  # allocated memory is touched
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps(run), json.dumps(layouts)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs[0][1][-3000:]
    lines = [line for line in outputs[0][0].splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def check_memory(config: RunConfig, ranks: int, measured_bytes: int) -> None:
    """On a CPU what is offloaded lies in the same memory."""
    planned = run_memory(config, ranks, "cpu")
    ratio = (planned.device_bytes + planned.host_bytes) / measured_bytes
    assert 0.85 <= ratio <= 1.15, (config.deepspeed, ratio, planned, measured_bytes)


@pytest.mark.slow
def test_one_rank_needs_what_is_planned() -> None:
    """In bfloat16, without accumulation."""
    run = settings(precision="bf16", global_batch_size=2, micro_batch_size=2)
    layouts = [
        layout(0),
        layout(1) | {"train": run["train"] | {"activation_checkpointing": "full"}},
        layout(2, offload_optimizer="cpu"),
    ]
    found = measure(run, layouts, ranks=1)
    assert len(found) == len(layouts)
    for chosen, measured in zip(layouts, found, strict=True):
        check_memory(RunConfig.from_dict(run | chosen), 1, measured["peak_bytes"])


@pytest.mark.slow
def test_two_ranks_need_and_send_what_is_planned() -> None:
    """In float32, with two micro-batches a step."""
    run = settings(precision="fp32", global_batch_size=4, micro_batch_size=1)
    layouts = [
        *(layout(stage) for stage in (1, 2, 3)),
        layout(3, offload_optimizer="cpu", offload_parameters="cpu"),
    ]
    found = measure(run, layouts, ranks=2)
    assert len(found) == len(layouts)
    for chosen, measured in zip(layouts, found, strict=True):
        config = RunConfig.from_dict(run | chosen)
        check_memory(config, 2, measured["peak_bytes"])
        parameters = count_parameters(config.model)
        planned = plan_communication(
            parameters.total, parameters.embedding, sharding(config, 2, "cpu"), micro_batches=2
        )
        counts = measured["elements"]
        reduced = 4 * (counts.get("all_reduce", 0) + counts.get("reduce_scatter_tensor", 0))
        assert reduced == pytest.approx(planned.reduced_bytes, rel=0.01)
        gathered = 4 * counts.get("all_gather_into_tensor", 0)
        assert gathered == pytest.approx(planned.gathered_bytes, rel=0.01)
