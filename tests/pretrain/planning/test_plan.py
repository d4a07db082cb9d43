"""The plan's arithmetic: its properties, DeepSpeed's own estimates, a thousand pretended ranks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.cli import run as spade
from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.planning.advice import out_of_memory_advice
from pretrain.planning.communication import plan_communication
from pretrain.planning.devices import DEVICES, device_of_gpu
from pretrain.planning.memory import ModelMemory, Sharding, plan_memory
from pretrain.planning.plan import Machines, changed_run, plan_run
from pretrain.planning.run_shape import run_memory, sharding
from spade_model.cost import count_parameters

PARTITION_DRIVER = Path(__file__).with_name("partition_driver.py")
BASE_MODEL = {
    "vocab_size": 32128,
    "d_model": 768,
    "num_heads": 12,
    "head_dim": 64,
    "d_ff": 3072,
    "num_encoder_layers": 12,
    "num_decoder_layers": 12,
    "max_target_length_tokens": 1024,
}


def base_run(**sections: dict[str, Any]) -> RunConfig:
    """A base-sized run whose data need not exist."""
    values: dict[str, Any] = {
        "name": "base",
        "model": BASE_MODEL,
        "data": {"train": "t", "heldout": "h", "tokenizer": "k", "input_length_tokens": 4096},
        "train": {"max_steps": 1000, "global_batch_size": 1024, "micro_batch_size": 4},
        "optimizer": {"learning_rate": 1e-3},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return RunConfig.from_dict(values)


def machines(nodes: int = 1, device: str = "h100") -> Machines:
    return Machines(DEVICES[device], nodes, 8, 2e9)


SIZES = st.integers(1, 10**12)
MODELS = st.builds(
    ModelMemory,
    parameters=st.integers(1, 10**11),
    embedding_parameters=st.integers(0, 10**9),
    optimizer_bytes=SIZES,
    activations_bytes=SIZES,
    logits_bytes=SIZES,
    cast_weights_bytes=SIZES,
    kept_casts=st.booleans(),
)
SHARDINGS = st.builds(
    Sharding,
    zero_stage=st.integers(0, 3),
    world_size=st.integers(1, 2000),
    accumulates=st.booleans(),
    overlaps=st.booleans(),
    bucket_elements=st.integers(1, 10**9),
    live_elements=st.integers(0, 10**10),
    offload_optimizer=st.just("none"),
    offload_parameters=st.just("none"),
)


@given(MODELS, SHARDINGS, st.integers(2, 8))
def test_ranks_help_and_activations_cost(model: ModelMemory, shards: Sharding, times: int) -> None:
    plan = plan_memory(model, shards)
    assert all(size >= 0 for size in plan.device.values())
    if shards.world_size > 1:  # the first further rank makes stage 3 gather
        more = dataclasses.replace(shards, world_size=times * shards.world_size)
        assert plan_memory(model, more).device_bytes <= plan.device_bytes
    larger = dataclasses.replace(model, activations_bytes=times * model.activations_bytes)
    assert plan_memory(larger, shards).device_bytes >= plan.device_bytes
    assert plan.device_bytes >= plan.device["weights"]


@given(MODELS, SHARDINGS, st.sampled_from(["cpu", "nvme"]))
def test_what_is_offloaded_leaves_the_device(
    model: ModelMemory, shards: Sharding, place: Any
) -> None:
    shards = dataclasses.replace(shards, zero_stage=3)
    stays = plan_memory(model, shards)
    leaves = plan_memory(
        model, dataclasses.replace(shards, offload_optimizer=place, offload_parameters=place)
    )
    assert leaves.device_bytes < stays.device_bytes
    assert stays.host_bytes == 0 < leaves.host_bytes
    assert bool(leaves.disk) is (place == "nvme")


@given(SHARDINGS, st.integers(1, 10**11), st.integers(1, 64))
def test_nothing_is_sent_alone_and_sums_bound_it(shards: Sharding, size: int, micro: int) -> None:
    alone = dataclasses.replace(shards, world_size=1)
    assert plan_communication(size, 0, alone, micro).sent_bytes == 0
    sent = plan_communication(size, 0, shards, micro)
    assert sent.sent_bytes <= 2 * sent.reduced_bytes + sent.gathered_bytes


def states_bytes(config: RunConfig, world_size: int) -> int:
    """Weights, gradients and optimizer by the plan, without accumulation and embedding's sums."""
    plan = run_memory(config, world_size, "cuda").device
    count = count_parameters(config.model)
    extra = max(0, 12 * count.embedding - plan["logits"])
    names = ("weights", "master weights", "optimizer", "gradients")
    return sum(plan[name] for name in names) - extra


@pytest.mark.parametrize("world_size", [8, 64, 512])
def test_deepspeed_estimates_differ_for_known_reasons(world_size: int) -> None:
    """Its estimators presume 16-bit weights and 16-bit gradients beside the float32 ones."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    config = base_run(train={"global_batch_size": 4 * world_size})
    count = count_parameters(config.model).total
    _, theirs = estimate_zero2_model_states_mem_needs(count, 8, world_size // 8, cpu_offload=False)
    wider_weights, no_low_gradients = 2 * count, -2 * count / world_size
    ours = states_bytes(changed_run(config, "deepspeed", zero_stage=2), world_size)
    assert ours == pytest.approx(theirs + wider_weights + no_low_gradients, rel=1e-6)

    _, theirs, largest = estimate_zero3_model_states_mem_needs(
        count, 0, 8, world_size // 8, cpu_offload=False, cpu_offload_params=False
    )
    assert largest == 0
    # Theirs counts 18: 2 + 2 in 16 bits, 4 + 4 + 8. Ours 4 + 4, and 4 + 8: no low precision.
    ours = states_bytes(changed_run(config, "deepspeed", zero_stage=3), world_size)
    assert ours == pytest.approx(theirs + 2 * count / world_size, rel=1e-6)


@pytest.mark.slow
def test_deepspeed_cuts_a_thousand_ranks_as_planned() -> None:
    """DeepSpeed really starts as rank 1,000 of 1,024; only the other ranks are pretended."""
    world_size = 1024
    run = base_run(
        model={"d_model": 256, "d_ff": 1024, "num_encoder_layers": 3, "num_decoder_layers": 3},
        train={"global_batch_size": 4 * world_size},
        deepspeed={"raw": {"zero_optimization": {"reduce_bucket_size": 1000000}}},
    )
    arguments = [json.dumps(run.to_dict()), "[1, 2, 3]", "1000", str(world_size)]
    done = subprocess.run(
        [sys.executable, str(PARTITION_DRIVER), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 3
    for stage, sizes in zip((1, 2, 3), found, strict=True):
        config = changed_run(run, "deepspeed", zero_stage=stage)
        planned = run_memory(config, world_size, "cpu").device
        # Alignment: two elements a group and rank, at stage 3 one a tensor.
        slack = 4 * (2 * sizes["groups"] if stage < 3 else 300)
        assert 0 <= 4 * sizes["master"] - planned["master weights"] <= slack
        ranks = 1 if stage == 3 else world_size
        assert 0 <= 4 * sizes["weights"] - planned["weights"] <= ranks * slack
        if stage == 3:
            assert sizes["gradients"] == sizes["master"]


def test_the_micro_batch_said_to_fit_fits_and_the_next_does_not() -> None:
    config, planned = base_run(), plan_run(base_run(), machines(device="a100-40gb"))
    limit = 0.9 * planned.machines.device.memory_bytes
    sizes = []
    for layout in planned.layouts:
        changed = changed_run(
            config,
            "deepspeed",
            zero_stage=layout.zero_stage,
            offload_optimizer=layout.offload_optimizer,
            offload_parameters=layout.offload_parameters,
        )
        size = layout.largest_micro_batch_size
        sizes.append(size)
        needs = [
            run_memory(changed_run(changed, "train", micro_batch_size=n), 8, "cuda").device_bytes
            for n in (size, 2 * size)
        ]
        assert needs[0] <= limit < needs[1]
        assert layout.fits is (layout.memory.device_bytes <= limit)
    assert all(sizes), "a base-sized run fits somehow in every layout"
    assert planned.configured.zero_stage == config.deepspeed.zero_stage


def test_time_and_money() -> None:
    few, many = (plan_run(base_run(), machines(nodes)) for nodes in (1, 8))
    slow, fast = few.configured.tokens_per_second
    assert slow < fast
    # Eight times the machines: not more than eight times the speed, and not less than three.
    assert 3 * slow < many.configured.tokens_per_second[0] <= 8 * slow
    tokens = 10**10
    assert few.days(tokens) == pytest.approx((tokens / fast / 86400, tokens / slow / 86400))
    assert few.device_hours(tokens)[0] == pytest.approx(8 * 24 * few.days(tokens)[0])
    assert few.checkpoint_bytes == 12 * few.parameters
    peak = 8 * DEVICES["h100"].peak("bf16")
    assert fast * few.flops_per_step / few.tokens_per_step < 0.4 * peak
    recomputed = plan_run(base_run(train={"activation_checkpointing": "full"}), machines())
    assert 1.2 < slow / recomputed.configured.tokens_per_second[0] < 1.4


def test_a_device_without_the_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.precision bf16 .* v100; use fp16 or fp32"):
        plan_run(base_run(), machines(device="v100"))
    plan_run(base_run(train={"precision": "fp16"}), machines(device="v100"))


def test_optimizers_that_need_whole_tensors_are_planned_at_stage_0_alone() -> None:
    config = base_run(optimizer={"kind": "adafactor"}, deepspeed={"zero_stage": 0})
    planned = plan_run(config, machines())
    assert [layout.zero_stage for layout in planned.layouts] == [0]
    assert planned.configured.memory.device["optimizer"] < 0.01 * 8 * planned.parameters


def test_advice_names_settings_that_help_by_as_much_as_it_says() -> None:
    config = base_run()
    need, *lines = out_of_memory_advice(config, 8, 8 * 2**30, device_type="cuda")
    now = run_memory(config, 8, "cuda").device_bytes
    assert f"{now / 2**30:.2f} GiB of the 8.00 GiB" in need
    assert {line.split("=")[0] for line in lines} >= {
        "deepspeed.raw.zero_optimization.reduce_bucket_size",
        "deepspeed.zero_stage",
        "train.micro_batch_size",
        "train.activation_checkpointing",
        "deepspeed.offload_optimizer",
    }
    for line in lines:
        found = re.fullmatch(r"(\w+)\.([\w.]+)=(\w+): ([\d.]+) GiB", line)
        assert found is not None, line
        section, names, text, size = found.groups()
        value: Any = int(text) if text.isdigit() else text
        for name in reversed(names.split(".")):
            value = {name: value}
        changed = base_run(**{section: value})
        assert f"{run_memory(changed, 8, 'cuda').device_bytes / 2**30:.2f}" == size
        assert float(size) < now / 2**30


def test_advice_says_nothing_that_does_not_help() -> None:
    config = base_run(
        train={"micro_batch_size": 1, "activation_checkpointing": "full"},
        deepspeed={"zero_stage": 0},
        optimizer={"kind": "adafactor"},
    )
    assert len(out_of_memory_advice(config, 8, 2**30, device_type="cuda")) == 1


@pytest.mark.parametrize(
    ("driver", "device"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_gpus_are_known_by_their_drivers_names(driver: str, device: str | None) -> None:
    assert device_of_gpu(driver) == (None if device is None else DEVICES[device])


def test_the_command(
    run_settings: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(write_config(run_settings))
    machine = ["plan", config, "--nodes", "1", "--gpus-per-node", "2"]
    wanted = [*machine, "--tokens", "1000000", "--price-per-gpu-hour", "2"]
    assert spade([*wanted, "--json", "train.micro_batch_size=1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["micro_batches_per_step"] == 4
    assert data["budget_tokens"] == 1000000
    assert data["cost"] == pytest.approx([2 * hours for hours in data["device_hours"]])
    configured = [layout for layout in data["layouts"] if layout["configured"]]
    assert len(configured) == 1
    memory = configured[0]["memory"]
    assert memory["device_bytes"] == sum(memory["device"].values())

    assert spade(wanted) == 0
    shown = capsys.readouterr().out
    for word in ("ZeRO 2 *", "activations", "on the wire", "days", "cost", "checkpoint"):
        assert word in shown
    assert spade([*machine, "--device", "cpu"]) == 0
    assert "one of 2 cpu" in capsys.readouterr().out.lower()
    assert spade([*machine, "--device", "h900"]) == 1
    assert "--device h900 is unknown; use b200" in capsys.readouterr().err


def test_stages_of_a_run_share_what_deepspeed_is_told() -> None:
    raw = {"zero_optimization": {"reduce_bucket_size": 7_000_000}}
    shards = sharding(base_run(deepspeed={"raw": raw, "zero_stage": 1}), 8, "cuda")
    assert shards.bucket_elements == 7_000_000
    assert shards.overlaps
    assert shards.accumulates
