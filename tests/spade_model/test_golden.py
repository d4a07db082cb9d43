"""Parity with the published modules: values and gradients, in float32 and float64.

The rule is in `golden`; the state space alone is in `test_golden_state_space`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from golden import NEEDS_GOLDEN, PRECISIONS, Case, cases, convert_outputs
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from spade_model import published
from spade_model.attention.backends import check_backend
from spade_model.attention.cache import DecoderCache
from spade_model.attention.long import LongSelfAttention, attention_context
from spade_model.attention.positions import relative_position_bucket
from spade_model.config import SpadeConfig
from spade_model.layers import GlobalLocalMixing, TokenContext
from spade_model.seq2seq import SpadeForSeq2Seq
from spade_model.stack import LongStack
from spade_model.state_space.mixer import SequenceMixer

pytestmark = NEEDS_GOLDEN


@contextmanager
def blocked_state_space(model: nn.Module, blocked: bool) -> Iterator[None]:
    """Cut the gradient behind S4, as the published training does; ours never does."""
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: output.detach())
        for module in model.modules()
        if isinstance(module, SequenceMixer) and blocked
    ]
    yield
    for hook in hooks:
        hook.remove()


def context_of(
    config: SpadeConfig, hidden: Tensor, valid: Tensor, backend: str = "auto"
) -> TokenContext:
    """Describe a batch to one layer of an encoder."""
    attention = attention_context(
        config,
        hidden.shape[1],
        causal=False,
        valid=valid,
        segment_ids=None,
        device=hidden.device,
        backend=check_backend(backend),
    )
    return TokenContext(valid, None, attention)


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules return."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    yield seen
    for hook in hooks:
        hook.remove()


def test_relative_position_buckets() -> None:
    case = Case("rel_buckets", torch.float64)
    for num_buckets, max_distance in case.config["specs"]:
        buckets = relative_position_bucket(
            case["in.relative_position"], num_buckets=num_buckets, max_distance=max_distance
        )
        expected = case[f"enc_local.nb{num_buckets}.md{max_distance}.bidirectional"]
        assert torch.equal(buckets, expected)


@PRECISIONS
@cases("local_attn_r7", "local_attn_r7_ragged", "local_attn_r15_bias", "local_attn_holes")
@pytest.mark.parametrize("backend", ["reference", "blocked", "tiled"])
def test_local_attention(case: Case, backend: str) -> None:
    config = published.published_config(case.config | {"s4_n_ssm": 1})
    biased = "w.q.bias" in case.tensors
    layer = LongSelfAttention(dataclasses.replace(config, attention_bias=biased), 0)
    hidden = case["in.hidden_states"].requires_grad_()
    valid = case["in.attention_mask"].bool()
    state = case.rounded(published.local_attention_state(case.weights()))
    context = context_of(config, hidden, valid, backend).attention
    output = functional_call(layer, state, (hidden, context), strict=True)
    case.check("out.attention_output", output, valid)
    (output * case["in.g"]).sum().backward()
    case.check("grad.hidden_states", hidden.grad, valid)
    case.check_gradients()


@PRECISIONS
@cases("spade_layer_post_frozen", "spade_layer_post_trainable", "spade_layer_pre_trainable")
def test_global_local_layer(case: Case) -> None:
    config = published.published_config(case.config)
    layer = GlobalLocalMixing(config, 0, causal=False)
    hidden = case["in.hidden_states"].requires_grad_()
    valid = case["in.attention_mask"].bool()
    context = context_of(config, hidden, valid)
    weights = case.weights()
    convert_outputs(case, "s4.s4.kernel.kernel.", case.config["max_position_embeddings"])
    state = case.rounded(published.mixing_state(weights))
    modules: dict[str, nn.Module] = {
        "mid.s4_output": layer.state_space,
        "mid.norm_global": layer.global_norm,
        "mid.norm_local": layer.local_norm,
        "mid.aggregate": layer.aggregate,
    }
    blocked = not case.config["trainable_s4"]
    with outputs_of(modules) as seen, blocked_state_space(layer, blocked):
        output = functional_call(layer, state, (hidden, context), strict=True)
    for name, value in seen.items():
        case.check(name, value, valid)
    case.check("out.hidden_states", output, valid)
    (output * case["in.g"]).sum().backward()
    case.check("grad.hidden_states", hidden.grad, valid)
    case.check_gradients()


@PRECISIONS
@cases("encoder_post_frozen", "encoder_pre_trainable_n64")
def test_encoder(case: Case) -> None:
    config = published.published_config(case.config)
    encoder = LongStack(config, causal=False)
    weights = case.weights()
    convert_outputs(
        case, "encoder.block.0.layer.0.s4.s4.kernel.kernel.", case.config["max_position_embeddings"]
    )
    encoder_weights = {
        name.removeprefix("encoder."): x
        for name, x in weights.items()
        if name.startswith("encoder.")
    }
    state = case.rounded(published.encoder_state(encoder_weights, config))
    valid = case["in.attention_mask"].bool()
    embeddings = functional.embedding(case["in.input_ids"], weights["shared.weight"])
    modules: dict[str, nn.Module] = {"mid.encoder_hidden_0": encoder.first_norm}
    modules |= {f"mid.encoder_hidden_{i + 1}": layer for i, layer in enumerate(encoder.layers)}
    blocked = not case.config["trainable_s4"]
    with outputs_of(modules) as seen, blocked_state_space(encoder, blocked):
        hidden = functional_call(encoder, state, (embeddings, valid), strict=True)
    for name, value in seen.items():
        case.check(name, value, valid)
    case.check("out.encoder_last_hidden_state", hidden, valid)
    loss = (hidden * case["in.g"]).sum()
    case.check("out.loss", loss)
    loss.backward()
    case.check_gradients()


@PRECISIONS
@cases("seq2seq_post_frozen", "seq2seq_post_trainable", "seq2seq_pre_gated_haveBias")
def test_seq2seq(case: Case) -> None:
    config = published.published_config(case.config)
    model = SpadeForSeq2Seq(config)
    weights = case.weights()
    convert_outputs(
        case, "encoder.block.0.layer.0.s4.s4.kernel.kernel.", case.config["max_position_embeddings"]
    )
    state = case.rounded(published.seq2seq_state(weights, config))
    assert set(state) == set(model.state_dict())
    valid, labels = case["in.attention_mask"].bool(), case["in.labels"]
    decoder = model.model.decoder
    modules: dict[str, nn.Module] = {"mid.decoder_hidden_0": decoder.first_norm}
    modules |= {f"mid.decoder_hidden_{i + 1}": layer for i, layer in enumerate(decoder.layers)}
    blocked = not case.config["trainable_s4"]
    with outputs_of(modules) as seen, blocked_state_space(model, blocked):
        output = functional_call(
            model, state, (case["in.input_ids"], labels), {"attention_mask": valid}, strict=True
        )
    for name, value in seen.items():
        case.check(name, value, labels != -100)
    case.check("out.encoder_last_hidden_state", output.encoder_hidden_states, valid)
    case.check("out.logits", output.logits, labels != -100)
    case.check("out.loss", output.loss)
    output.loss.backward()
    case.check_gradients()


@PRECISIONS
@cases("seq2seq_post_frozen")
def test_greedy_generation(case: Case) -> None:
    expected, logits = case["out.greedy_ids_no_eos_stop"], case["out.greedy_logits"]
    config = published.published_config(case.config)
    never = next(token for token in range(config.vocab_size) if not (expected == token).any())
    config = dataclasses.replace(config, eos_token_id=never)
    model = SpadeForSeq2Seq(config).to(case.dtype)
    with torch.no_grad():
        model.load_state_dict(published.seq2seq_state(case.weights(), config))
    source, valid = case["in.input_ids"], case["in.attention_mask"].bool()
    steps = logits.shape[1]
    generated = model.generate(source, attention_mask=valid, max_new_tokens=steps)
    assert torch.equal(generated, expected[:, 1 : 1 + steps])
    with torch.no_grad():
        encoded = model.encode(source, valid)
        cache = DecoderCache()
        stepwise = [
            model.decode(expected[:, i : i + 1], encoded, attention_mask=valid, cache=cache)
            for i in range(steps)
        ]
    case.check("out.greedy_logits", torch.cat(stepwise, dim=1))
