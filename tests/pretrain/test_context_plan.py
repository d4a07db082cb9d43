"""What a plan knows of inputs that ranks share: bytes, time, counts, advice, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import context_plan_ranks
import pytest

from launch.cli import run as spade
from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.planning.advice import out_of_memory_advice
from pretrain.planning.devices import DEVICES
from pretrain.planning.plan import USABLE_MEMORY, Machines, RunPlan, plan_run
from pretrain.planning.run_shape import context_bytes, run_memory
from spade_model.cost import forward_flops_per_sample

MODEL = {
    "vocab_size": 576,
    "d_model": 32,
    "num_heads": 2,
    "head_dim": 16,
    "d_ff": 64,
    "num_encoder_layers": 4,
    "num_decoder_layers": 3,
    "state_dim": 8,
    "local_radius_tokens": 15,
    "max_target_length_tokens": 64,
}
LONG_MODEL = {
    "vocab_size": 32128,
    "d_model": 768,
    "num_heads": 12,
    "head_dim": 64,
    "d_ff": 3072,
    "num_encoder_layers": 12,
    "num_decoder_layers": 12,
    "max_target_length_tokens": 129,
}
TARGETS = {"kind": "prefix_lm", "longest_target_tokens": 128}
H100 = DEVICES["h100"]


def make_run(context: int = 1, **sections: dict[str, Any]) -> RunConfig:
    """A small run whose data need not exist."""
    values: dict[str, Any] = {
        "name": "small",
        "model": MODEL,
        "data": {"train": "t", "heldout": "h", "tokenizer": "k", "input_length_tokens": 101},
        "train": {"max_steps": 9, "global_batch_size": 6, "micro_batch_size": 3},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"warmup_steps": 1},
        "parallel": {"context": context},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return RunConfig.from_dict(values)


def long_run(context: int, **train: Any) -> RunConfig:
    """A base-sized run on books."""
    return make_run(
        context,
        model=LONG_MODEL,
        data={"input_length_tokens": 131_072, "objective": TARGETS},
        train={"global_batch_size": 64, "micro_batch_size": 1, **train},
    )


def planned(config: RunConfig, nodes: int = 2) -> RunPlan:
    return plan_run(config, Machines(H100, nodes, 8, 2e9))


@pytest.mark.slow
def test_planned_bytes_are_those_that_a_step_sends(tmp_path: Path) -> None:
    """Two processes, two micro-batches; of three, the one in the middle sends most."""
    every_other = {
        "activation_checkpointing": "full",
        "activation_checkpointing_every_layers": 2,
    }
    runs = [
        make_run(2, train={"precision": "fp32"}),
        make_run(2, train={"activation_checkpointing": "full"}),
        make_run(2, train={"activation_checkpointing": "selective", "precision": "fp32"}),
        make_run(2, train=every_other, model={"state_space": "s4d_lin", "attention": "chunk"}),
        make_run(3, train={"precision": "fp32"}, model={"state_space_layers": 1}),
    ]
    subprocess.run(
        [
            *(sys.executable, context_plan_ranks.__file__, tmp_path),
            *(json.dumps(run.to_dict()) for run in runs),
        ],
        check=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    for number, run in enumerate(runs):
        sent = [
            int((tmp_path / f"{number}.{rank}").read_text()) for rank in range(run.parallel.context)
        ]
        machines = Machines(H100, 1, run.parallel.context, 2e9)
        assert plan_run(run, machines).configured.communication.context_bytes == max(sent), number


def test_what_is_sent_does_not_grow_with_the_length() -> None:
    def sent(length: int, context: int) -> int:
        data = {"input_length_tokens": length, "objective": TARGETS}
        return context_bytes(make_run(context, model={"max_target_length_tokens": 129}, data=data))

    assert sent(1_000_000, 8) == sent(1000, 8) > sent(1000, 2) > sent(1000, 1) == 0


def test_steps_and_samples_are_counted_by_groups() -> None:
    """Twice the ranks of an input: as many tokens a step, twice the micro-batches of a rank."""
    alone, shared = planned(long_run(1)), planned(long_run(4))
    assert (alone.micro_batches_per_step, shared.micro_batches_per_step) == (4, 16)
    for name in ("tokens_per_step", "tokens_in_run", "flops_per_step", "checkpoint_bytes"):
        assert getattr(alone, name) == getattr(shared, name)
    # A group may take all samples that 16 / 4 groups leave it at once; the memory has room.
    small = {"input_length_tokens": 1024, "objective": TARGETS}
    batch = {"global_batch_size": 16, "micro_batch_size": 1}
    few = planned(make_run(8, data=small, model=LONG_MODEL, train=batch))
    assert few.configured.largest_micro_batch_size == 8


def test_shared_inputs_cost_time_for_what_is_sent_and_done_twice() -> None:
    """The encoder's work is divided; the decoder's is done by every rank of a group."""
    alone, shared = planned(long_run(1)).configured, planned(long_run(4)).configured
    slow, fast = shared.tokens_per_second
    assert slow < alone.tokens_per_second[0]
    assert fast < alone.tokens_per_second[1]
    config = long_run(1).model
    whole = forward_flops_per_sample(config, 131_072, 129).total
    part = forward_flops_per_sample(config, 131_072 // 4, 129).total
    assert 1 < 4 * part / whole < 1.05, "so long inputs leave little of it to the decoder"
    assert slow > 0.85 * alone.tokens_per_second[0]
    # Groups of four lie within nodes of eight; groups of sixteen do not.
    links = (H100, 2, 8)
    within = shared.communication
    across = planned(long_run(16)).configured.communication
    assert within.context_seconds(*links) == within.context_bytes / (
        0.75 * H100.link_bytes_per_second
    )
    slower = min(H100.link_bytes_per_second, H100.network_bytes_per_second)
    assert across.context_seconds(*links) == across.context_bytes / (0.75 * slower)
    in_all = shared.communication_seconds - within.seconds(*links)
    assert in_all == pytest.approx(within.context_seconds(*links))


def test_longer_groups_are_advised_by_name_where_they_suffice() -> None:
    usable = int(USABLE_MEMORY * H100.memory_bytes)
    config = long_run(1, micro_batch_size=4)
    assert not planned(config).configured.fits
    _need, *lines = out_of_memory_advice(config, 16, usable, device_type="cuda")
    named = [line for line in lines if line.startswith("parallel.context=")]
    assert len(named) == 1
    context, size = named[0].removeprefix("parallel.context=").split(": ")
    changed = long_run(int(context), micro_batch_size=4)
    assert planned(changed).configured.fits
    assert f"{run_memory(changed, 16, 'cuda').device_bytes / 2**30:.2f} GiB" == size
    assert not planned(long_run(int(context) // 2, micro_batch_size=4)).configured.fits
    # As long as can be where nothing suffices; no word where ranks, or the network, forbid it.
    most = out_of_memory_advice(config, 16, 2**30, device_type="cuda")[-1]
    assert most.startswith("parallel.context=16: ")
    for hopeless, world_size in ((long_run(16), 16), (long_run(1, compile=True), 16)):
        told = out_of_memory_advice(hopeless, world_size, 2**30, device_type="cuda")
        assert not any("parallel.context" in line for line in told)


def test_the_command_tells_of_shared_inputs(
    run_settings: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(write_config(run_settings))
    words = ["plan", config, "--nodes", "1", "--gpus-per-node", "4"]
    assert spade([*words, "parallel.context=2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (layout,) = [layout for layout in data["layouts"] if layout["configured"]]
    assert layout["communication"]["context_ranks"] == 2
    assert layout["communication"]["context_bytes"] > 0
    assert data["advice"] == []
    assert spade([*words, "parallel.context=2"]) == 0
    shown = capsys.readouterr().out
    assert "ranks that share each input" in shown
    assert "to those of its inputs" in shown
    assert spade(words) == 0
    assert "to those of its inputs" not in capsys.readouterr().out
    # Inputs that no device holds as a whole.
    words += ["data.input_length_tokens=4096", "train.micro_batch_size=1024", "model.d_ff=2048"]
    words += ["data.objective={kind: prefix_lm, longest_target_tokens: 64}"]
    assert spade([*words, "train.global_batch_size=4096", "--device", "a10"]) == 0
    assert "does not fit" in (shown := capsys.readouterr().out)
    assert "parallel.context=" in shown


IMPOSSIBLE = {
    "no rank": ({"parallel": {"context": 0}}, "parallel.context"),
    "full attention": ({"model": {"attention": "full"}}, "parallel.context 4: .*attention='full'"),
    "compiled layers": ({"train": {"compile": True}}, "parallel.context 4 .* train.compile: false"),
    "an odd number of processes": (
        {"parallel": {"context": 3}},
        "parallel.context 3 does not divide 8 processes; change one of them",
    ),
    "more ranks than processes": (
        {"parallel": {"context": 16}},
        "parallel.context 16 does not divide 8 processes",
    ),
    "more ranks than tokens": (
        {"parallel": {"context": 128}},
        "parallel.context 128: 101 tokens cannot be cut into context=128 parts",
    ),
    "more ranks than tokens of a stage": (
        {
            "parallel": {"context": 64},
            "train": {"curriculum": [{"from_tokens": 0, "input_length_tokens": 48}]},
        },
        "parallel.context 64: 48 tokens cannot be cut into context=64 parts",
    ),
    "a batch for other groups": (
        {"train": {"global_batch_size": 9}},
        "train.global_batch_size 9 .* 2 groups of processes = 6",
    ),
    "a language model": (
        {"model": {"num_encoder_layers": 0, "num_decoder_layers": 2}},
        "model.num_encoder_layers 0 .* give both stacks layers",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_shared_is_refused_by_name(name: str) -> None:
    changes, message = IMPOSSIBLE[name]
    with pytest.raises(ConfigError, match=message):
        make_run(4, **changes).most_accumulation_steps(8)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"attention": "chunk"}},
        {"data": {"document_boundaries": True}},
        {"data": {"windows": "document"}},
        {"model": {"state_space": "none"}},
        {"model": {"state_space": "ema", "position": "alibi"}},
        {"parallel": {"context": 8}, "model": {"local_radius_tokens": 50}},
    ],
)
def test_what_can_be_shared_is_planned(changes: dict[str, Any]) -> None:
    """Chunks, packed documents, short rows, windows that are longer than parts."""
    run = make_run(4, **changes)
    assert run.most_accumulation_steps(8) == 2 * run.parallel.context // 8
    assert planned(run, 1).configured.communication.context_bytes > 0
