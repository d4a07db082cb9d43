"""Blocked local attention against a dense one with a band mask."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.local_attention import (
    LocalSelfAttention,
    local_attention,
    local_windows,
    window_bias,
)
from spade_model.relative_position import relative_position_bucket


def small_config(radius: int, **changes: object) -> SpadeConfig:
    fields = {"vocab_size": 9, "d_model": 8, "num_heads": 2, "head_dim": 4, "d_ff": 8}
    return SpadeConfig(**{**fields, "local_radius_tokens": radius, **changes})


def dense_attention(
    config: SpadeConfig, query: Tensor, key: Tensor, value: Tensor, table: Tensor, valid: Tensor
) -> Tensor:
    length = query.shape[1]
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    buckets = relative_position_bucket(
        distance,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance_tokens,
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) + table[buckets].permute(2, 0, 1)
    allowed = (distance.abs() <= config.local_radius_tokens) & valid[:, None, None, :]
    weights = torch.softmax(scores.masked_fill(~allowed, -math.inf), dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights.nan_to_num(), value)


@settings(max_examples=60, deadline=None)
@given(
    radius=st.integers(1, 9),
    length=st.integers(1, 40),
    masked=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_blocks_equal_the_band(radius: int, length: int, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    config = small_config(radius)
    query, key, value = torch.randn(3, 2, length, 2, 4, dtype=torch.float64)
    table = torch.randn(config.relative_attention_num_buckets, 2, dtype=torch.float64)
    valid = torch.rand(2, length) < 0.7 if masked else torch.ones(2, length, dtype=torch.bool)
    windows = local_windows(config, length, valid if masked else None, query.device)
    actual = local_attention(query, key, value, window_bias(table, windows), windows)
    expected = dense_attention(config, query, key, value, table, valid)
    torch.testing.assert_close(actual[valid], expected[valid])
    assert bool(actual.isfinite().all())


def test_gradients() -> None:
    config = small_config(3)
    leaves = [torch.randn(1, 10, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    table = torch.randn(32, 2, dtype=torch.float64, requires_grad=True)
    for valid in (None, torch.arange(10)[None, :] < 8):
        windows = local_windows(config, 10, valid, table.device)

        def function(
            query: Tensor, key: Tensor, value: Tensor, table: Tensor, windows: object = windows
        ) -> Tensor:
            bias = window_bias(table, windows)
            return local_attention(query, key, value, bias, windows)[:, :8]

        assert torch.autograd.gradcheck(function, (*leaves, table))


@given(
    buckets=st.integers(1, 16).map(lambda n: 4 * n),
    extra=st.integers(1, 500),
    distances=st.lists(st.integers(-4000, 4000), min_size=1),
)
def test_buckets_are_monotone_and_tell_the_sides_apart(
    buckets: int, extra: int, distances: list[int]
) -> None:
    relative = torch.tensor(sorted(set(distances)))
    rows = relative_position_bucket(
        relative, num_buckets=buckets, max_distance=buckets // 4 + extra
    )
    future = relative > 0
    assert bool(((rows >= buckets // 2) == future).all())
    assert int(rows.min()) >= 0
    assert int(rows.max()) < buckets
    assert bool((rows[future].diff() >= 0).all())
    assert bool((rows[~future].diff() <= 0).all())
    near = relative.abs() < buckets // 4
    assert torch.equal(rows[near] % (buckets // 2), relative[near].abs())


def test_softmax_is_float32_under_autocast() -> None:
    """Weights are rounded once, after the softmax: they sum to 1 within bfloat16's last bit."""
    torch.manual_seed(0)
    config = small_config(7, d_model=32, head_dim=16)
    layer = LocalSelfAttention(config)
    layer.relative_attention_bias.weight.data.normal_()
    hidden = torch.randn(2, 40, 32)
    windows = local_windows(config, 40, None, hidden.device)
    exact = layer(hidden, windows)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(hidden, windows)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() <= 1e-2 * exact.norm()
    rounded.float().sum().backward()
    assert layer.relative_attention_bias.weight.grad.dtype == torch.float32
