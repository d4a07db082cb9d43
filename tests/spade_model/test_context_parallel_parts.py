"""The pieces of context parallelism, in one process: halos, states, merged attention, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixers import EVERY_KIND, make_mixer
from seq2seq_models import SMALL, build, tokens
from torch import Tensor

from spade_model.context_parallel import cross_attention
from spade_model.context_parallel.boundary import boundaries
from spade_model.context_parallel.checks import check_context, cut_lengths
from spade_model.context_parallel.cross_attention import sharded_attention
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.halo import make_halo
from spade_model.context_parallel.part import ContextPart
from spade_model.recording import StackRecord

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(LENGTHS, st.integers(0, 20), st.integers(0, 20))
def test_halos_are_the_neighbouring_tokens(lengths: list[int], left: int, right: int) -> None:
    """What the ranks send, put where they say, are the tokens beside each part, once each."""
    total = list(range(sum(lengths)))
    starts = [sum(lengths[:rank]) for rank in range(len(lengths))]
    halos = [make_halo(lengths, rank, left, right) for rank in range(len(lengths))]
    for rank, halo in enumerate(halos):
        low = max(0, starts[rank] - left)
        expected = total[low : starts[rank] + lengths[rank] + right]
        wide: list[int | None] = [None] * halo.wide_tokens
        wide[halo.left_tokens : halo.left_tokens + lengths[rank]] = total[
            starts[rank] : starts[rank] + lengths[rank]
        ]
        for owner, other in enumerate(halos):
            first, behind = other.sent[rank]
            begin, end = halo.received[owner]
            assert wide[begin:end] == [None] * (behind - first)
            wide[begin:end] = total[starts[owner] + first : starts[owner] + behind]
        assert wide == expected


@given(st.integers(1, 1000), st.integers(1, 50))
def test_cuts_are_even(length: int, size: int) -> None:
    if length < size:
        with pytest.raises(ValueError, match="cannot be cut"):
            cut_lengths(length, size)
        return
    lengths = cut_lengths(length, size)
    assert sum(lengths) == length
    assert len(lengths) == size
    assert max(lengths) - min(lengths) <= 1


@EVERY_KIND
@pytest.mark.parametrize(("before", "between", "behind"), [(13, 1, 9), (1, 6, 2), (20, 3, 16)])
def test_a_state_stands_for_the_tokens_it_has_seen(
    kind: str, before: int, between: int, behind: int
) -> None:
    """Taken in, moved over a silence and answered, tokens act as they do in the convolution."""
    mixer = make_mixer(kind, causal=False, state_space_channels=2).double()
    hidden = torch.randn(2, before + between + behind, 6, dtype=torch.float64)
    first, last = hidden.clone(), hidden.clone()
    first[:, before:], last[:, : before + between] = 0, 0
    past, future = boundaries(mixer, 20)
    u = hidden.transpose(1, 2)
    state = past.advance(past.take_in(u[..., :before].flip(-1)), between + 1)
    answer = past.emit(state, behind).flatten(1, 2).transpose(1, 2)
    torch.testing.assert_close(answer, mixer(first, None)[:, before + between :])
    state = future.advance(future.take_in(u[..., before + between :]), between)
    answer = future.emit(state, before).flip(-1).flatten(1, 2).transpose(1, 2)
    torch.testing.assert_close(answer, mixer(last, None)[:, :before])


def attention_inputs(length: int, width: int = 4) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 1, 3, width), (2, 1, length, width), (2, 1, length, width)]
    inputs = [torch.randn(x, dtype=torch.float64, requires_grad=True) for x in shapes]
    mask = torch.rand(2, 1, 1, length) < 0.6
    mask[1] = False  # A row that sees nothing.
    return inputs, mask


@pytest.mark.parametrize("masked", [False, True])
def test_attention_across_is_attention(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pieces the keys are seen in."""
    monkeypatch.setattr(cross_attention, "_CPU_SCORES", 1)  # 64 keys at a time
    inputs, mask = attention_inputs(150)
    seen = mask if masked else None
    group = ContextGroup.alone()
    found = sharded_attention(*inputs, seen, group, scale=0.7, dropout=0.0, seed=0)
    scores = inputs[0] @ inputs[1].mT * 0.7
    if masked:
        scores = scores.masked_fill(~mask, float("-inf"))
    expected = torch.softmax(scores, dim=-1).nan_to_num() @ inputs[2]
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weights).sum(), inputs)
    scores = (inputs[0] @ inputs[1].mT * 0.7).masked_fill(~mask if masked else ~mask & mask, -1e9)
    expected = torch.softmax(scores, dim=-1) @ inputs[2]
    expected = expected.masked_fill(~(mask.any(dim=-1, keepdim=True) | (not masked)), 0)
    for gradient, other in zip(
        gradients, torch.autograd.grad((expected * weights).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(gradient, other)


def test_attention_across_differentiates_its_dropout() -> None:
    inputs, mask = attention_inputs(6, width=2)
    group = ContextGroup.alone()

    def attend(*x: Tensor) -> Tensor:
        return sharded_attention(*x, mask, group, scale=0.7, dropout=0.4, seed=11)

    assert torch.autograd.gradcheck(attend, inputs)
    plain = sharded_attention(*inputs, mask, group, scale=0.7, dropout=0.0, seed=11)
    assert not torch.allclose(attend(*inputs), plain)


@pytest.mark.parametrize(
    ("size", "length", "changes", "message"),
    [
        (0, None, {}, "context=0 is below 1"),
        (2, None, {"attention": "full"}, "attention='full' .* cannot be cut"),
        (8, 7, {}, "7 tokens cannot be cut into context=8"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    size: int, length: int | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_context(dataclasses.replace(SMALL, **changes), size, length)
    check_context(SMALL, 2, 100)


def test_parts_without_tokens_and_looks_inside_are_refused() -> None:
    group = ContextGroup.alone()
    for lengths in ((), (0,), (3, 4)):
        with pytest.raises(ValueError, match="are no parts for a context group of 1"):
            ContextPart(group, lengths)
    model, ids = build(SMALL).model, tokens(1, 6)
    part, record = ContextPart(group, (6,)), StackRecord(attention_weights=[])
    with pytest.raises(ValueError, match="attention weights"):
        model.encoder(model.shared(ids), part=part, record=record)
    hidden = model.encode(ids, part=part)
    with pytest.raises(ValueError, match="attention weights"):
        model.decoder(model.shared(ids), hidden, part=part, record=record)


def test_parts_draw_their_own_random_numbers() -> None:
    """Each part others, the same in every run; behind them the generators stand as they would."""

    def draw(rank: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        part = ContextPart(ContextGroup(None, rank, 3), (4, 4, 4))
        with part.own_randomness(torch.device("cpu")):
            own = torch.rand(100)
        return own, torch.rand(5)

    drawn = [draw(rank) for rank in (0, 1, 2, 0)]
    torch.testing.assert_close(drawn[3], drawn[0], rtol=0, atol=0)
    assert all(torch.equal(after, drawn[0][1]) for _, after in drawn)
    between = torch.corrcoef(torch.stack([own for own, _ in drawn[:3]])).tril(-1)
    assert float(between.abs().max()) < 0.4


def test_an_encoder_draws_from_its_part() -> None:
    model = build(dataclasses.replace(SMALL, dropout=0.2)).train()
    torch.manual_seed(0)
    model.encode(tokens(1, 6), part=ContextPart(ContextGroup.alone(), (6,)))
    after = torch.rand(5)
    torch.manual_seed(0)
    tokens(1, 6), torch.randint(2**62, ())
    assert torch.equal(torch.rand(5), after)
