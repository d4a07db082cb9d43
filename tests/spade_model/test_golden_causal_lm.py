"""The layers of the language model against the published ones: values and gradients."""

from __future__ import annotations

import pytest
import torch
from golden import NEEDS_GOLDEN, PRECISIONS, Case, cases, convert_outputs
from torch import Tensor, nn
from torch.func import functional_call

from spade_model.attention.backends import check_backend
from spade_model.config import SpadeConfig
from spade_model.decoding import CausalCache
from spade_model.published import causal_layers_state
from spade_model.stack import LongStack

pytestmark = NEEDS_GOLDEN
LAYERS = cases("lm_layers_concat_post", "lm_layers_add_pre", "lm_layers_stack_post")
KERNEL = "0.s4_module.s4.kernel.kernel."


def layers_of(case: Case) -> LongStack:
    facts = case.config
    config = SpadeConfig(
        vocab_size=2,
        d_model=facts["embed_dim"],
        num_heads=facts["heads"],
        head_dim=facts["embed_dim"] // facts["heads"],
        d_ff=facts["ffn"],
        num_encoder_layers=0,
        num_decoder_layers=facts["layers"],
        state_dim=facts["s4_state_dim"],
        state_space_copies=facts["s4_n_ssm"],
        trainable_state_space=("A", "B", "C", "D", "P", "log_dt"),
        combine=facts["combine"],
        combine_weight=facts["s4_weight"],
        local_radius_tokens=facts["local_radius"],
        shared_relative_bias=True,
        relative_attention_num_buckets=facts["relative_attention_num_buckets"],
        relative_attention_max_distance_tokens=facts["relative_attention_max_distance"],
        normalization="pre" if facts["normalize_before"] else "post",
        norm_epsilon=1e-5,
        final_norm=False,
        feed_forward_bias=True,
    )
    stack = LongStack(config, causal=True)
    stack.first_norm = nn.Identity()  # The case begins behind it.
    return stack


def state_of(case: Case, stack: LongStack) -> dict[str, Tensor]:
    return case.rounded(causal_layers_state(case.weights(), stack.config))


@pytest.mark.parametrize("backend", ["reference", "blocked", "tiled"])
@PRECISIONS
@LAYERS
def test_values_and_gradients(case: Case, backend: str) -> None:
    stack = layers_of(case)
    stack.attention_backend = check_backend(backend)
    case.weights()
    convert_outputs(case, KERNEL, case.config["max_target_positions(l_max)"])
    state = case.rounded(causal_layers_state(case.leaves, stack.config))
    assert set(state) == set(stack.state_dict())
    valid = case["in.nonpad"].bool()
    hidden = case["in.x"].requires_grad_()
    outputs: list[Tensor] = []
    for layer in stack.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    result = functional_call(stack, state, (hidden, valid), strict=True)
    for index, output in enumerate(outputs):
        case.check(f"mid.layer_{index}", output, valid)
    case.check("out.x", result, valid)
    (result * case["in.g"]).sum().backward()
    case.check("grad.x", hidden.grad, valid)
    case.check_gradients()


@PRECISIONS
@LAYERS
def test_decoding_gives_the_published_values(case: Case) -> None:
    """A token at a time, which the published code cannot do."""
    stack = layers_of(case).to(case.dtype).eval()
    with torch.no_grad():
        stack.load_state_dict(state_of(case, stack))
        valid, hidden = case["in.nonpad"].bool(), case["in.x"]
        cache = CausalCache(stack.config)
        steps = [stack(hidden[:, [t]], valid[:, [t]], cache=cache) for t in range(hidden.shape[1])]
    case.check("out.x", torch.cat(steps, dim=1), valid)
