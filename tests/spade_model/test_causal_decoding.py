"""Decoding with a window and a state: equal to whole sequences, in constant memory and time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from causal_models import EVERY_VARIANT, SMALL, build, close, decode, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from spade_model.attention.chunks import leading_padding


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, Any]:
    position = draw(st.sampled_from(["relative_bias", "shared", "rope", "alibi", "none"]))
    kinds = ["s4", "s4d_lin", "s4d_inv", "s4d_legs", "ema", "none"]
    return {
        "state_space": draw(st.sampled_from(kinds)),
        "state_space_layers": draw(st.sampled_from([1, 2, (1,)])),
        "combine": draw(st.sampled_from(["concat", "add", "stack"])),
        "attention": draw(st.sampled_from(["window", "chunk", "full"])),
        "position": "relative_bias" if position == "shared" else position,
        "shared_relative_bias": position == "shared",
        "norm": draw(st.sampled_from(["layer_norm", "rms_norm"])),
    }


@st.composite
def splits(draw: st.DrawFn, length: int) -> list[int]:
    cuts = draw(st.sets(st.integers(1, length - 1)))
    ends = [0, *sorted(cuts), length]
    return [b - a for a, b in itertools.pairwise(ends)]


@given(changes=architectures(), lengths=splits(27), padding=st.booleans(), learns=st.booleans())
@settings(max_examples=40)
def test_cached_equals_uncached_from_any_split(
    changes: dict[str, Any], lengths: list[int], padding: bool, learns: bool
) -> None:
    """Rows of different lengths included: each gives what it gives alone, unpadded."""
    model = build(**changes)
    ids, starts = tokens(3, 27), [0, 4, 13] if padding else [0, 0, 0]
    valid = (torch.arange(27)[None] >= torch.tensor(starts)[:, None]) if padding else None
    with torch.set_grad_enabled(learns):
        cached, cache = decode(model, ids, valid, lengths)
    whole = model(ids, attention_mask=valid).logits
    assert cache.num_tokens == 27
    for row, start in enumerate(starts):
        alone = model(ids[[row], start:]).logits[0]
        close(whole[row, start:], alone)
        close(cached[row, start:], alone)


@given(changes=architectures(), lengths=splits(20), bits=st.integers(0, (1 << 20) - 1))
@settings(max_examples=20)
def test_padding_anywhere(changes: dict[str, Any], lengths: list[int], bits: int) -> None:
    model = build(**changes)
    holes = torch.tensor([bool(bits >> i & 1) for i in range(20)])
    valid = torch.stack([holes, torch.ones(20, dtype=torch.bool)])
    ids = tokens(2, 20)
    other = ids.where(valid, tokens(2, 20))
    whole = model(ids, attention_mask=valid).logits
    assert bool(whole.isfinite().all())
    with torch.no_grad():
        cached, _ = decode(model, other, valid, lengths)
    close(cached[valid], whole[valid])
    # Not even in the last bit.
    assert torch.equal(model(other, attention_mask=valid).logits[valid], whole[valid])


@torch.no_grad()
def test_a_mask_may_come_late() -> None:
    for name in ("default", "chunk", "full"):
        model, ids = build(name), tokens(2, 18)
        valid = torch.ones(2, 18, dtype=torch.bool)
        valid[1, 9:12] = False
        cache = model.new_cache()
        parts = [model.decode(ids[:, :9], cache)]
        parts.append(model.decode(ids[:, 9:14], cache, attention_mask=valid[:, 9:14]))
        parts += [model.decode(ids[:, [t]], cache) for t in range(14, 18)]
        whole = model(ids, attention_mask=valid).logits
        close(torch.cat(parts, dim=1)[valid], whole[valid])


@pytest.mark.parametrize("name", ["default", "stack", "chunk", "local"])
@torch.no_grad()
def test_a_token_costs_the_same_forever(name: str) -> None:
    """Memory and multiplications; the benchmark measures the time."""
    model, cache = build(name), None
    cache = model.new_cache()
    model.decode(tokens(2, 100), cache)
    sizes, costs = set(), set()
    for _ in range(30):
        with FlopCounterMode(display=False) as counter:
            model.decode(tokens(2, 1), cache)
        sizes.add(cache.num_bytes)
        costs.add(counter.get_total_flops())
    model.decode(tokens(2, 1000), cache)
    sizes.add(cache.num_bytes)
    assert len(sizes) == len(costs) == 1
    config = model.config
    floats = 2 * config.inner_dim * (config.local_radius_tokens + 1) * config.num_decoder_layers
    carriers = len(config.state_space_layer_indices)
    floats += carriers * config.d_model * config.state_dim
    assert sizes.pop() == 2 * 4 * floats


@torch.no_grad()
def test_full_attention_keeps_everything() -> None:
    model = build("full", state_space="none", state_space_channels=1)
    cache = model.new_cache()
    for length in (1, 70, 1, 100, *[1] * 100):
        model.decode(tokens(1, length), cache)
    needed = 2 * 4 * SMALL.inner_dim * 2 * cache.num_tokens
    assert needed <= cache.num_bytes <= 1.5 * needed


@EVERY_VARIANT
@torch.no_grad()
def test_rows_can_be_reordered_and_repeated(name: str) -> None:
    model, ids = build(name), tokens(3, 14)
    valid = torch.arange(14)[None] >= torch.tensor([[0], [6], [2]])
    cache = model.new_cache()
    cache.select_rows(torch.tensor([0]))  # Before there are any.
    model.decode(ids[:, :9], cache, attention_mask=valid[:, :9])
    rows = torch.tensor([2, 2, 0, 1])
    cache.select_rows(rows)
    assert cache.batch_size == 4
    after = [model.decode(ids[rows][:, [t]], cache) for t in range(9, 14)]
    whole = model(ids[rows], attention_mask=valid[rows]).logits
    close(torch.cat(after, dim=1), whole[:, 9:])


@pytest.mark.parametrize("length", [1, 12])
def test_gradients_reach_all_tokens_of_a_call(length: int) -> None:
    model, ids = build(), tokens(2, length)
    gradients = []
    for logits in (model(ids).logits, model.decode(ids, model.new_cache())):
        model.zero_grad()
        logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for whole, cached in zip(*gradients, strict=True):
        torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-5)


def test_no_gradient_passes_the_cache() -> None:
    """So that memory does not grow, and every step has a graph of its own."""
    model, ids = build(), tokens(2, 12)
    cache = model.new_cache()
    for t in range(12):
        model.decode(ids[:, [t]], cache).sum().backward()


@torch.no_grad()
def test_bfloat16_decodes_close_to_float32() -> None:
    model, ids = build(), tokens(2, 30)
    exact = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded, cache = decode(model, ids, None, [10, *[1] * 20])
    assert cache.layers[0].state is not None
    assert cache.layers[0].state.dtype == torch.float32
    assert (rounded - exact).norm() <= 3e-2 * exact.norm()


def test_segments_need_whole_sequences() -> None:
    model, ids = build(), tokens(1, 4)
    with pytest.raises(ValueError, match="segment_ids"):
        model.model(ids, None, torch.zeros_like(ids), model.new_cache())


@given(bits=st.integers(0, 255))
def test_leading_padding(bits: int) -> None:
    row = [bool(bits >> i & 1) for i in range(8)]
    expected = row.index(True) if True in row else 8
    assert leading_padding(torch.tensor([row])).tolist() == [expected]
