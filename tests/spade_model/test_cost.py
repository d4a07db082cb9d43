"""The arithmetic of cost against the real modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spade_model import cost
from spade_model.config import SpadeConfig
from spade_model.seq2seq import SpadeForSeq2Seq
from spade_model.state_space import StateSpace

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
    {"state_space_layers": 0},
    {"state_space_layers": 3, "state_space_copies": 4},
    {"trainable_state_space": ()},
    {"trainable_state_space": ("A", "P"), "state_space_copies": 1},
    {"feed_forward": "gated_gelu", "decoder_bias": True},
    {"normalization": "post", "final_layer_norm": False, "feed_forward_bias": True},
]
EVERY_CHANGE = pytest.mark.parametrize("change", CHANGES, ids=str)


@EVERY_CHANGE
def test_parameters_are_counted_exactly(change: dict[str, Any]) -> None:
    config = SpadeConfig(**{**BASE, **change})
    model = SpadeForSeq2Seq(config)
    count = cost.count_parameters(config)

    def size(named: Any, part: str = "") -> int:
        return sum(x.numel() for name, x in named if part in name)

    assert count.total == size(model.named_parameters())
    assert count.embedding == model.model.shared.weight.numel()
    assert count.encoder == size(model.model.encoder.named_parameters())
    assert count.decoder == size(model.model.decoder.named_parameters())
    assert count.state_space == size(model.named_parameters(), ".state_space.")
    assert count.state_space_constants == size(model.named_buffers())


@EVERY_CHANGE
@pytest.mark.parametrize(("source", "target"), [(128, 40), (100, 33), (7, 1)])
def test_flops_are_those_of_the_real_forward(
    change: dict[str, Any], source: int, target: int
) -> None:
    config = SpadeConfig(**{**BASE, **change})
    model = SpadeForSeq2Seq(config)
    batch = 3
    inputs = torch.randint(0, 500, (batch, source)), torch.randint(0, 500, (batch, target))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    # The counter knows matrix products only, so the transforms are left out of the comparison.
    without = SpadeConfig(**{**BASE, **change, "state_space_layers": 0})
    joined = config.state_space_layers * source * 4 * config.d_model**2
    products = cost.forward_flops_per_sample(without, source, target) + joined
    expected = batch * products + cost.kernel_flops_per_forward(config, source)
    assert abs(counter.get_total_flops() - expected) <= 0.02 * expected
    assert cost.forward_flops_per_sample(config, source, target) >= products
    training = cost.training_flops_per_sample(config, source, target)
    assert training == 3 * cost.forward_flops_per_sample(config, source, target)


def saved_bytes(module: torch.nn.Module, run: Any, *, bfloat16: bool) -> int:
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
        result = run()
    for x in result:
        kept[x.untyped_storage().data_ptr()] = x
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@EVERY_CHANGE
@pytest.mark.parametrize("element", [2, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activation_bytes_are_about_what_autograd_keeps(
    change: dict[str, Any], element: int, checkpointing: bool
) -> None:
    config = SpadeConfig(**{**BASE, **change})
    model = SpadeForSeq2Seq(config).train()
    model.set_activation_checkpointing(checkpointing)
    source, target = 128, 40

    def measured(batch: int) -> int:
        inputs = torch.randint(0, 500, (batch, source)), torch.randint(0, 500, (batch, target))
        return saved_bytes(model, lambda: (model(*inputs).logits,), bfloat16=element == 2)

    def estimated(batch: int) -> int:
        return cost.activation_bytes(config, batch, source, target, element, checkpointing)

    # One sample more: what does not grow with the batch, such as cast weights, drops out.
    measured_sample, estimated_sample = measured(3) - measured(2), estimated(3) - estimated(2)
    if checkpointing:
        assert measured_sample <= estimated_sample  # The layer that is computed again is extra.
    else:
        assert abs(measured_sample - estimated_sample) <= 0.1 * measured_sample


@pytest.mark.parametrize("length", [60, 512, 1000])
def test_kernel_bytes(length: int) -> None:
    config = SpadeConfig(**{**BASE, "state_dim": 32})
    layer = StateSpace(config)
    measured = saved_bytes(layer, lambda: (layer.kernel(length),), bfloat16=False)
    assert abs(cost.kernel_bytes(config, length) - measured) <= 0.15 * measured
