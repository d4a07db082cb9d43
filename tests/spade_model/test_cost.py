"""The arithmetic of cost against the real modules."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spade_model import cost, memory_cost
from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.attention.geometry import make_geometry
from spade_model.causal_lm import SpadeForCausalLM
from spade_model.config import SpadeConfig
from spade_model.seq2seq import SpadeForSeq2Seq
from spade_model.state_space.registry import make_sequence_mixer

BASE = {
    "vocab_size": 500,
    "d_model": 64,
    "num_heads": 2,
    "head_dim": 24,
    "d_ff": 200,
    "num_encoder_layers": 3,
    "num_decoder_layers": 2,
    "local_radius_tokens": 15,
    "state_dim": 16,
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"state_space": "none"},
    {"state_space_layers": 3, "state_space_copies": 4},
    {"trainable_state_space": ()},
    {"trainable_state_space": ("A", "P"), "state_space_copies": 1},
    {"feed_forward": "gated_gelu", "decoder_bias": True},
    {"normalization": "post", "final_norm": False, "feed_forward_bias": True},
    {"attention": "chunk", "position": "rope", "norm": "rms_norm", "decoder_position": "rope"},
    {"attention": "full", "shared_relative_bias": True, "attention_bias": True},
    {"state_space": "s4d_inv", "state_space_channels": 2, "state_space_layers": (0, 2)},
    {"state_space": "ema", "combine": "stack", "position": "alibi", "decoder_position": "none"},
    {"combine": "add", "state_space": "s4d_lin", "trainable_state_space": ("C", "D")},
    {"decoder_position": "relative_bias", "embedding_norm": False, "norm": "rms_norm"},
    {"num_encoder_layers": 0},
    {"num_encoder_layers": 0, "state_space": "ema", "trainable_state_space": ()},
    {"num_encoder_layers": 0, "attention": "chunk", "state_space_layers": "every 2"},
]
EVERY_CHANGE = pytest.mark.parametrize("change", CHANGES, ids=str)


def build(config: SpadeConfig) -> SpadeForSeq2Seq | SpadeForCausalLM:
    return SpadeForCausalLM(config) if config.is_causal_lm else SpadeForSeq2Seq(config)


def run(model: nn.Module, batch: int, source: int, target: int) -> Any:
    """Loss and logits of random tokens."""
    ids, labels = torch.randint(0, 500, (batch, source)), torch.randint(0, 500, (batch, target))
    return model(ids, ids) if model.config.is_causal_lm else model(ids, labels)


@EVERY_CHANGE
def test_parameters_are_counted_exactly(change: dict[str, Any]) -> None:
    config = SpadeConfig(**{**BASE, **change})
    model = build(config)
    count = cost.count_parameters(config)

    def size(named: Any, part: str = "") -> int:
        return sum(x.numel() for name, x in named if part in name)

    assert count.total == size(model.named_parameters())
    assert count.embedding == config.vocab_size * config.d_model
    if config.is_encoder_decoder:
        assert count.encoder == size(model.named_parameters(), "model.encoder.")
        assert count.decoder == size(model.named_parameters(), "model.decoder.")
    assert count.state_space == size(model.named_parameters(), ".state_space.")
    assert count.state_space_constants == size(model.named_buffers())


def test_encoder_alone_is_counted() -> None:
    both, alone = (SpadeConfig(**{**BASE, "num_decoder_layers": n}) for n in (2, 0))
    assert cost.count_parameters(alone).encoder == cost.count_parameters(both).encoder
    assert cost.count_parameters(alone).decoder == 0
    assert cost.forward_flops_per_sample(alone, 100, 0).head == 0


@EVERY_CHANGE
@pytest.mark.parametrize("work", ["reference", "blocked", "tiled"])
@pytest.mark.parametrize(("source", "target"), [(128, 40), (100, 33)])
def test_flops_are_those_of_the_real_step(
    change: dict[str, Any], work: cost.AttentionWork, source: int, target: int
) -> None:
    config = SpadeConfig(**{**BASE, **change})
    model = build(config)
    model.set_attention_backend(work)
    batch = 3
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = run(model, batch, source, target).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    # The counter knows matrix products only: no transforms.
    count = cost.forward_flops_per_sample(config, source, target, work)
    kernels = cost.kernel_flops_per_forward(config, source)
    expected = batch * (count.total - count.convolution) + kernels
    assert abs(forward.get_total_flops() - expected) <= 0.02 * expected
    count = cost.backward_flops_per_sample(config, source, target, work)
    expected = batch * (count.total - count.convolution)
    # The gradient of the kernels lies between nothing and three times their making.
    extra = backward.get_total_flops() - expected
    assert -0.04 * expected <= extra <= 0.02 * expected + 3 * kernels


@pytest.mark.parametrize("length", [1, 16, 17, 90])
@EVERY_CHANGE
def test_exact_scores_are_those_that_may_be_seen(change: dict[str, Any], length: int) -> None:
    config = SpadeConfig(**{**BASE, **change})
    geometry = make_geometry(config, length, causal=config.is_causal_lm)
    seen = int(geometry.allowed(torch.device("cpu")).sum())
    exact = cost.attention_scores(config, length, "exact")
    assert exact == seen
    for work in ("reference", "blocked", "tiled"):
        assert cost.attention_scores(config, length, work) >= exact


def test_work_of_the_model_is_three_forward_passes() -> None:
    config = SpadeConfig(**BASE)
    forward = cost.forward_flops_per_sample(config, 128, 40)
    assert cost.training_flops_per_sample(config, 128, 40) == 3 * forward.total
    again = cost.backward_flops_per_sample(config, 128, 40, activation_checkpointing=True)
    assert again.total == 3 * forward.total - forward.head


def saved_bytes(module: nn.Module, compute: Any, *, bfloat16: bool) -> int:
    """Bytes of all distinct storages that autograd keeps, without parameters and buffers."""
    own = {x.untyped_storage().data_ptr() for x in [*module.parameters(), *module.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        result = compute()
    for x in result:
        kept[x.untyped_storage().data_ptr()] = x
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@EVERY_CHANGE
@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("work", ["blocked", "tiled"])
def test_activation_bytes_are_about_what_autograd_keeps(
    change: dict[str, Any], element: int, checkpointing: bool, work: cost.AttentionWork
) -> None:
    config = SpadeConfig(**{**BASE, **change})
    model = build(config).train()
    model.set_activation_checkpointing(ActivationCheckpointing("full" if checkpointing else "none"))
    model.set_attention_backend("reference" if config.attention == "full" else work)
    work = "reference" if config.attention == "full" else work
    source, target = 128, 40

    def measured(batch: int) -> int:
        return saved_bytes(
            model, lambda: (run(model, batch, source, target).logits,), bfloat16=element == 2
        )

    def estimated(batch: int) -> int:
        return memory_cost.activation_bytes(
            config,
            batch,
            source,
            0 if config.is_causal_lm else target,
            bytes_per_element=element,
            activation_checkpointing="full" if checkpointing else "none",
            work=work,
        )

    # One sample more: what does not grow with the batch, such as cast weights, drops out.
    measured_sample, estimated_sample = measured(3) - measured(2), estimated(3) - estimated(2)
    if checkpointing:
        assert measured_sample <= estimated_sample  # The layer that is computed again is extra.
    else:
        assert abs(measured_sample - estimated_sample) <= 0.1 * measured_sample


def allocated_bytes() -> int:
    """What the C library has given out and not got back."""

    class Counts(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = Counts
    counts = library.mallinfo2()
    in_maps, in_heaps = counts.e, counts.h
    return int(in_maps + in_heaps)


@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("every_layers", [1, 2])
@pytest.mark.parametrize("work", ["blocked", "tiled"])
def test_selective_checkpointing_keeps_the_products(
    element: int, every_layers: int, work: cost.AttentionWork
) -> None:
    """Hooks of autograd do not see what it keeps, so the allocator is asked."""
    config = SpadeConfig(**BASE)
    model = build(config).train()
    model.set_activation_checkpointing(ActivationCheckpointing("selective", every_layers))
    model.set_attention_backend(work)

    def measured(batch: int) -> int:
        before = allocated_bytes()
        with torch.autocast("cpu", torch.bfloat16, enabled=element == 2):
            output = run(model, batch, 512, 160)
        kept = allocated_bytes() - before
        output.loss.backward()
        return kept

    def estimated(batch: int) -> int:
        return memory_cost.activation_bytes(
            config,
            batch,
            512,
            160,
            bytes_per_element=element,
            activation_checkpointing="selective",
            every_layers=every_layers,
            work=work,
        )

    for batch in (2, 5):  # libraries keep something for each shape
        measured(batch)
    measured_sample, estimated_sample = measured(5) - measured(2), estimated(5) - estimated(2)
    largest = saved_bytes_of_the_largest_layer(config, element, work)
    kept = estimated_sample - 3 * largest  # a layer computed again is not there yet
    assert abs(measured_sample - kept) <= 0.1 * measured_sample


def saved_bytes_of_the_largest_layer(
    config: SpadeConfig, element: int, work: cost.AttentionWork
) -> int:
    """Of one sample, as the estimates have it: what a layer more that keeps all adds."""
    both = [
        memory_cost.activation_bytes(
            dataclasses.replace(config, num_encoder_layers=layers, state_space_layers=layers),
            1,
            512,
            160,
            bytes_per_element=element,
            activation_checkpointing="none",
            work=work,
        )
        for layers in (1, 2)
    ]
    once = memory_cost.kernel_bytes(config, 512) + memory_cost.spectrum_bytes(config, 512)
    return both[1] - both[0] - once


@pytest.mark.parametrize("length", [60, 512, 1000])
@pytest.mark.parametrize(
    "learned", [("C", "D", "log_dt"), ("C", "D"), ("D",), ("C", "D", "log_dt", "A", "B", "P")]
)
def test_kernel_bytes(length: int, learned: tuple[str, ...]) -> None:
    config = SpadeConfig(**{**BASE, "state_dim": 32, "trainable_state_space": learned})
    layer = make_sequence_mixer(config, causal=False)
    measured = saved_bytes(
        layer, lambda: [] if layer.kernel(length).numel() else None, bfloat16=False
    )
    assert abs(memory_cost.kernel_bytes(config, length) - measured) <= 0.15 * measured
