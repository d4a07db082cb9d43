"""Every backend computes the attention that its definition says, gradients included."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spade_model.attention.backends import check_backend, make_plan
from spade_model.attention.geometry import MASKED_SCORE, Geometry, make_geometry
from spade_model.attention.long import LongSelfAttention, attention_context
from spade_model.attention.positions import (
    alibi_bias,
    alibi_slopes,
    relative_position_bucket,
    rotary_angles,
    rotate,
)
from spade_model.attention.tiled import TiledAttention
from spade_model.config import SpadeConfig
from spade_model.cuts import Reach, cut

CPU = torch.device("cpu")


def config(**changes: Any) -> SpadeConfig:
    sizes = {"d_model": 12, "num_heads": 2, "head_dim": 6, "d_ff": 16}
    return SpadeConfig(**{"vocab_size": 9, "state_space": "none", **sizes, **changes})


def definition(qkv: Tensor, scale: float, bias: Tensor, geometry: Geometry) -> Tensor:
    """Attention one query at a time, in float64, from the words of `Geometry`."""
    rows, length = qkv.shape[:2]
    query, key, value = qkv.double().unbind(2)
    output = torch.zeros_like(query)
    for row in range(rows):
        for i in range(length):
            visible = []
            for j in range(length):
                near = -geometry.left_tokens <= j - i <= geometry.right_tokens
                chunk = geometry.chunk_tokens
                near &= chunk is None or i // chunk == j // chunk
                if geometry.segments is not None:
                    near &= bool(geometry.segments[row, j] >= 0)
                    if geometry.segmented:
                        near &= bool(geometry.segments[row, j] == geometry.segments[row, i])
                if near:
                    visible.append(j)
            if not visible:
                continue
            scores = torch.einsum("hd,khd->hk", query[row, i] * scale, key[row, visible])
            scores = scores + bias.double()[:, [j - i + geometry.left_tokens for j in visible]]
            weights = scores.softmax(dim=-1)
            output[row, i] = torch.einsum("hk,khd->hd", weights, value[row, visible])
    return output


def some_batch(
    rows: int, length: int, *, masked: bool, segmented: bool, seed: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Projections, a mask with holes that keeps the first token, segment ids."""
    torch.manual_seed(seed)
    qkv = torch.randn(rows, length, 3, 2, 6, dtype=torch.float64)
    valid = torch.rand(rows, length) < 0.7 if masked else None
    segment_ids = (torch.rand(rows, length) < 0.2).cumsum(1) if segmented else None
    return qkv, valid, segment_ids


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["window", "chunk", "full"]),
    causal=st.booleans(),
    radius=st.integers(1, 20),
    length=st.integers(1, 90),
    masked=st.booleans(),
    segmented=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_backends_equal_the_definition(
    kind: str,
    causal: bool,
    radius: int,
    length: int,
    masked: bool,
    segmented: bool,
    biased: bool,
    seed: int,
) -> None:
    qkv, valid, segment_ids = some_batch(2, length, masked=masked, segmented=segmented, seed=seed)
    geometry = make_geometry(
        config(attention=kind, local_radius_tokens=radius),
        length,
        causal=causal,
        valid=valid,
        segment_ids=segment_ids,
    )
    bias = torch.randn(2, geometry.num_distances, dtype=torch.float64)
    bias = bias if biased else torch.zeros_like(bias)
    expected = definition(qkv, 0.4, bias, geometry)
    seen = torch.ones(2, length, dtype=torch.bool) if valid is None else valid
    for backend in ("reference", "blocked", "tiled"):
        plan = make_plan(check_backend(backend), geometry, CPU)
        actual = plan.attend(qkv, 0.4, bias if biased else None, 0.0)
        assert torch.isfinite(actual).all()
        torch.testing.assert_close(actual[seen], expected[seen], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(
    ("kind", "causal"), [("window", False), ("window", True), ("chunk", False), ("full", True)]
)
def test_flex_equals_the_reference(kind: str, causal: bool, segmented: bool) -> None:
    qkv, valid, segment_ids = some_batch(2, 70, masked=True, segmented=segmented, seed=1)
    geometry = make_geometry(
        config(attention=kind, local_radius_tokens=9),
        70,
        causal=causal,
        valid=valid,
        segment_ids=segment_ids,
    )
    bias = torch.randn(2, geometry.num_distances)
    with torch.no_grad():
        outputs = [
            make_plan(check_backend(backend), geometry, CPU).attend(qkv.float(), 0.4, bias, 0.0)
            for backend in ("flex", "reference")
        ]
    assert valid is not None
    torch.testing.assert_close(outputs[0][valid], outputs[1][valid], rtol=1e-5, atol=1e-5)
    plan = make_plan("flex", geometry, CPU)
    with pytest.raises(ValueError, match="no gradient on a CPU"):
        plan.attend(qkv.float().requires_grad_(), 0.4, bias, 0.0)


@pytest.mark.parametrize("backend", ["blocked", "tiled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "causal", "length", "segmented"),
    [("window", False, 150, False), ("window", True, 33, True), ("chunk", False, 70, True)],
)
def test_gradients_are_those_of_the_reference(
    backend: str, dtype: torch.dtype, kind: str, causal: bool, length: int, segmented: bool
) -> None:
    qkv, valid, segment_ids = some_batch(2, length, masked=True, segmented=segmented, seed=2)
    geometry = make_geometry(
        config(attention=kind, local_radius_tokens=7),
        length,
        causal=causal,
        valid=valid,
        segment_ids=segment_ids,
    )
    assert valid is not None
    precise = torch.promote_types(dtype, torch.float32)
    bias = torch.randn(2, geometry.num_distances, dtype=precise)
    weights = torch.randn(2, length, 2, 6) * valid[:, :, None, None]
    results = []
    for name in ("reference", backend):
        inputs = [qkv.to(dtype).requires_grad_(), bias.clone().requires_grad_()]
        plan = make_plan(check_backend(name), geometry, CPU)
        output = plan.attend(inputs[0], 0.4, inputs[1], 0.0)
        results.append(torch.autograd.grad((output * weights).sum(), inputs))
    tolerance = 1e-9 if dtype == torch.float64 else 0.03
    for expected, actual in zip(*results, strict=True):
        error = (actual - expected).double().norm() / expected.double().norm()
        assert error < tolerance


def test_tiles_span_many_blocks_and_rows() -> None:
    # More blocks than one tile holds, with holes in one row only.
    valid = torch.ones(2, 1500, dtype=torch.bool)
    valid[1, 700:800] = False
    geometry = make_geometry(config(local_radius_tokens=127), 1500, causal=False, valid=valid)
    plan = TiledAttention.prepare(geometry, CPU)
    assert plan.blocks.num_blocks > 20
    assert sum(plan.masked[0]) < 6 < sum(plan.masked[1])
    torch.manual_seed(0)
    qkv = torch.randn(2, 1500, 3, 2, 6, dtype=torch.float64)
    bias = torch.randn(2, geometry.num_distances, dtype=torch.float64)
    expected = make_plan("reference", geometry, CPU).attend(qkv, 0.4, bias, 0.0)
    torch.testing.assert_close(plan.attend(qkv, 0.4, bias, 0.0)[valid], expected[valid])


def test_dropout_repeats_in_the_gradient_and_keeps_the_mean() -> None:
    geometry = make_geometry(config(local_radius_tokens=3), 80, causal=False)
    plan = TiledAttention.prepare(geometry, CPU)
    qkv = torch.randn(1, 80, 3, 2, 6, dtype=torch.float64)
    bias = torch.zeros(2, geometry.num_distances, dtype=torch.float64)

    def attend(x: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(3)
        return plan.attend(x, 0.4, b, 0.3)

    inputs = (qkv.requires_grad_(), bias.requires_grad_())
    assert torch.autograd.gradcheck(attend, inputs, nondet_tol=0.0, fast_mode=True)
    undropped = plan.attend(qkv, 0.4, bias, 0.0)
    assert not torch.equal(attend(*inputs), undropped)
    mean = torch.stack([plan.attend(qkv, 0.4, bias, 0.3).detach() for _ in range(400)]).mean(0)
    assert (mean - undropped).abs().mean() < 0.1 * undropped.abs().mean()


def test_half_precision_scores_become_float32() -> None:
    # One key's score is 64 above the other's in bfloat16 products; 256 more by the bias would
    # swallow a difference of 1 in bfloat16, whose spacing there is 2.
    geometry = make_geometry(config(local_radius_tokens=1), 2, causal=False)
    for backend in ("reference", "blocked", "tiled"):
        qkv = torch.zeros(1, 2, 3, 1, 2, dtype=torch.bfloat16)
        qkv[0, 0, 2], qkv[0, 1, 2] = 0.0, 1.0
        bias = torch.tensor([[256.0, 256.0, 257.0]])
        output = make_plan(check_backend(backend), geometry, CPU).attend(qkv, 1.0, bias, 0.0)
        expected = 1 / (1 + math.exp(-1.0))  # the right neighbour's share, as the first token sees
        assert output.dtype == torch.bfloat16
        assert abs(float(output[0, 0, 0, 0]) - expected) < 0.01


@given(
    length=st.integers(1, 3000),
    block=st.integers(1, 200),
    left=st.integers(0, 400),
    right=st.integers(0, 400),
    whole=st.booleans(),
)
def test_blocks_hold_every_key_in_reach(
    length: int, block: int, left: int, right: int, whole: bool
) -> None:
    left, right = min(left, length - 1), min(right, length - 1)
    blocks = cut(Reach(length, left, right), block, whole_neighbours=whole)
    assert (blocks.num_blocks - 1) * block < length <= blocks.num_blocks * block
    assert blocks.left_tokens >= left
    assert blocks.right_tokens >= right
    assert blocks.num_keys % block == 0
    if whole:
        assert blocks.left_tokens % block == blocks.right_tokens % block == 0


def test_unknown_backends_are_explained() -> None:
    with pytest.raises(ValueError, match="'fast' is unknown; use one of auto"):
        check_backend("fast")


@settings(max_examples=50)
@given(
    buckets=st.sampled_from([4, 8, 32, 64]),
    factor=st.integers(2, 40),
    bidirectional=st.booleans(),
)
def test_buckets_are_monotone_and_tell_the_sides_apart(
    buckets: int, factor: int, bidirectional: bool
) -> None:
    distance = torch.arange(-2000, 2001)
    bucket = relative_position_bucket(
        distance,
        num_buckets=buckets,
        max_distance=buckets // 2 * factor,
        bidirectional=bidirectional,
    )
    past, future = bucket[distance <= 0], bucket[distance > 0]
    assert int(bucket.min()) == 0
    assert (past.diff() <= 0).all()
    if bidirectional:
        assert int(bucket.max()) == buckets - 1
        assert (future.diff() >= 0).all()
        assert int(past.max()) < buckets // 2 <= int(future.min())
    else:
        assert int(past.max()) == buckets - 1
        assert (future == 0).all()


def test_alibi_slopes_are_those_of_its_paper() -> None:
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)]
    # Twelve heads: the eight, and every second slope of sixteen.
    assert alibi_slopes(12)[8:] == [2.0 ** -(k / 2) for k in (1, 3, 5, 7)]
    bias = alibi_bias(torch.tensor([-2, 0, 3]), 8)
    assert bias[0].tolist() == [-1.0, 0.0, -1.5]


def test_rotated_products_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        turned = (
            rotate(x, rotary_angles(torch.tensor([position]), 8))
            for x, position in ((query, i), (key, j))
        )
        return float(torch.stack(list(turned)).prod(dim=0).sum())

    assert abs(product(5, 9) - product(1_000_005, 1_000_009)) < 1e-9
    assert abs(product(5, 9) - product(5, 10)) > 1e-3
    assert abs(product(7, 7) - float((query * key).sum())) < 1e-12


@pytest.mark.parametrize("position", ["relative_bias", "alibi", "rope", "none"])
def test_positions_tell_order_unless_there_are_none(position: str) -> None:
    settings_ = config(position=position, attention="full")
    torch.manual_seed(0)
    layer = LongSelfAttention(settings_, 0).eval()
    if layer.relative_attention_bias is not None:
        layer.relative_attention_bias.weight.data.normal_()
    hidden = torch.randn(1, 10, 12)
    context = attention_context(
        settings_, 10, causal=False, valid=None, segment_ids=None, device=CPU, backend="auto"
    )
    forward = layer(hidden, context)
    # The mean output of a set does not depend on its order.
    shuffled = layer(hidden[:, torch.randperm(10)], context)
    same = torch.allclose(forward.mean(1), shuffled.mean(1), atol=1e-5)
    assert same == (position == "none")


def test_local_attention_projects_scales_and_joins_heads() -> None:
    settings_ = config(attention_bias=True, position="none", attention="full")
    torch.manual_seed(0)
    layer = LongSelfAttention(settings_, 0)
    hidden = torch.randn(2, 7, 12)
    context = attention_context(
        settings_, 7, causal=False, valid=None, segment_ids=None, device=CPU, backend="tiled"
    )
    q, k, v = layer.query_key_value(hidden).view(2, 7, 3, 2, 6).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(6)).softmax(-1)
    expected = layer.output((weights @ v).transpose(1, 2).reshape(2, 7, 12))
    torch.testing.assert_close(layer(hidden, context), expected)


def test_masked_keys_have_exactly_no_influence() -> None:
    assert math.exp(MASKED_SCORE + 1e4) == 0.0
    valid = torch.ones(1, 200, dtype=torch.bool)
    valid[0, ::3] = False
    geometry = make_geometry(config(local_radius_tokens=20), 200, causal=False, valid=valid)
    torch.manual_seed(0)
    qkv = torch.randn(1, 200, 3, 2, 6)
    other = torch.where(valid[:, :, None, None, None], qkv, 1e4 * torch.randn_like(qkv))
    for backend in ("reference", "blocked", "tiled"):
        plan = make_plan(check_backend(backend), geometry, CPU)
        outputs = [plan.attend(x, 0.4, None, 0.0)[valid] for x in (qkv, other)]
        assert torch.equal(*outputs)
