"""Packed documents do not see one another, as if each had been convolved alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixers import EVERY_KIND, make_mixer
from torch import Tensor

from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.segments import SegmentLayout


def runs(ids: Tensor) -> list[tuple[int, int, int]]:
    """Row, first token and end of every run of equal ids."""
    found = []
    for row, values in enumerate(ids.tolist()):
        start = 0
        for t in range(1, len(values) + 1):
            if t == len(values) or values[t] != values[start]:
                found.append((row, start, t))
                start = t
    return found


def alone(mixer: SequenceMixer, hidden: Tensor, valid: Tensor | None, ids: Tensor) -> Tensor:
    """Each run in a forward pass of its own."""
    output = hidden.new_zeros(*hidden.shape[:2], mixer.num_channels * hidden.shape[2])
    pieces = []
    for row, start, end in runs(ids):
        mask = None if valid is None else valid[row : row + 1, start:end]
        if mask is None or bool(mask.any()):
            pieces.append((row, start, end, mixer(hidden[row : row + 1, start:end], mask)[0]))
    for row, start, end, piece in pieces:
        output[row, start:end] = piece
    return output


def draw_ids(batch: int, length: int, change: float) -> Tensor:
    return (torch.rand(batch, length) < change).cumsum(dim=1)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 60),
    change=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    padded=st.booleans(),
    causal=st.booleans(),
    channels=st.integers(1, 2),
)
def test_segments_are_as_if_each_were_alone(
    batch: int, length: int, change: float, padded: bool, causal: bool, channels: int
) -> None:
    mixer = make_mixer(
        "s4", causal=causal, d_model=3, state_dim=4, state_space_channels=channels
    ).double()
    ids = draw_ids(batch, length, change)
    valid = torch.rand(batch, length) < 0.6 if padded else None
    layout = SegmentLayout.from_ids(ids, valid)
    hidden = torch.randn(batch, length, 3, dtype=torch.float64)
    weight = torch.randn(batch, length, 3 * channels, dtype=torch.float64)
    results = []
    for function in (
        lambda u: mixer(u, valid, layout),
        lambda u: alone(mixer, u, valid, ids),
    ):
        mixer.zero_grad()
        u = hidden.clone().requires_grad_()
        output = function(u)
        (output * weight + 0 * u.sum()).sum().backward()
        results.append((output, u.grad, *(x.grad for x in mixer.parameters())))
    for ours, theirs in zip(*results, strict=True):
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        else:  # Nothing but padding.
            assert ours is None
            assert theirs is None


@EVERY_KIND
def test_a_segment_does_not_depend_on_the_others_at_all(kind: str) -> None:
    mixer = make_mixer(kind, causal=False)
    ids = draw_ids(2, 80, 0.1)
    layout = SegmentLayout.from_ids(ids, None)
    hidden = torch.randn(2, 80, 6)
    expected = mixer(hidden, None, layout)
    for row, start, end in runs(ids):
        other = 1e20 * torch.randn_like(hidden)
        other[row, start:end] = hidden[row, start:end]
        output = mixer(other, None, layout)[row, start:end]
        assert torch.equal(output, expected[row, start:end])
    # Without the layout they do: the test can fail.
    assert not torch.equal(mixer(hidden, None), expected)


def test_gradients() -> None:
    mixer = make_mixer("s4d_lin", causal=False, d_model=2, state_dim=4).double()
    ids = draw_ids(2, 9, 0.3)
    valid = torch.rand(2, 9) < 0.8
    layout = SegmentLayout.from_ids(ids, valid)
    hidden = torch.randn(2, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: mixer(u, valid, layout), (hidden,))


@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 300),
    change=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    padded=st.booleans(),
)
def test_layouts_waste_less_than_half_and_place_every_token_once(
    batch: int, length: int, change: float, padded: bool
) -> None:
    ids = draw_ids(batch, length, change)
    valid = torch.rand(batch, length) < 0.5 if padded else None
    layout = SegmentLayout.from_ids(ids, valid)
    kept = [
        (row * length + start, row * length + end)
        for row, start, end in runs(ids)
        if valid is None or bool(valid[row, start:end].any())
    ]
    tokens = sum(end - start for start, end in kept)
    slots = sum(rows * size for rows, size in layout.shapes)
    assert tokens <= slots < 2 * max(tokens, 1)
    assert sum(rows for rows, _ in layout.shapes) == len(kept)
    assert len(layout.shapes) <= (length - 1).bit_length() + 1
    assert layout.longest == max((end - start for start, end in kept), default=0)
    filled = layout.token_of_slot[layout.filled]
    assert sorted(filled.tolist()) == [t for start, end in kept for t in range(start, end)]
    assert torch.equal(layout.slot_of_token[filled], layout.filled.nonzero()[:, 0])
    assert torch.equal(layout.placed.nonzero()[:, 0], filled.sort().values)


def test_one_document_costs_no_padding() -> None:
    layout = SegmentLayout.from_ids(torch.zeros(3, 1000, dtype=torch.int64), None)
    assert layout.shapes == ((3, 1000),)


@pytest.mark.parametrize("kind", ["s4", "ema"])
def test_a_batch_of_padding_alone_gives_zeros(kind: str) -> None:
    mixer = make_mixer(kind, causal=True)
    valid = torch.zeros(2, 5, dtype=torch.bool)
    layout = SegmentLayout.from_ids(torch.zeros(2, 5, dtype=torch.int64), valid)
    assert torch.equal(mixer(torch.randn(2, 5, 6), valid, layout), torch.zeros(2, 5, 6))


def test_bfloat16_rows_keep_their_type() -> None:
    mixer = make_mixer("s4", causal=False)
    ids = draw_ids(2, 30, 0.2)
    layout = SegmentLayout.from_ids(ids, None)
    hidden = torch.randn(2, 30, 6).bfloat16().requires_grad_()
    output = mixer(hidden, None, layout)
    output.sum().backward()
    assert output.dtype == hidden.grad.dtype == torch.bfloat16
    expected = mixer(hidden.detach().float(), None, layout)
    assert torch.equal(output, expected.bfloat16())
