"""The convolution against its definition as a sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spade_model.state_space import fft_convolution as module
from spade_model.state_space.fft_convolution import (
    fast_fft_length,
    fft_convolution,
    kernel_spectrum,
    spectral_convolution,
)


@given(minimum=st.integers(1, 5000))
def test_fft_length_is_the_smallest_even_smooth_one(minimum: int) -> None:
    def smooth(n: int) -> bool:
        for factor in (2, 3, 5):
            while n % factor == 0:
                n //= factor
        return n == 1

    expected = minimum + minimum % 2
    while not smooth(expected):
        expected += 2
    assert fast_fft_length(minimum) == max(2, expected)


def by_definition(hidden: Tensor, kernel: Tensor, skip: Tensor, valid: Tensor | None) -> Tensor:
    """One term at a time; rows of the kernel are channel by channel."""
    u = hidden if valid is None else hidden * valid[:, :, None]
    length, features = hidden.shape[1:]
    u = u.repeat(1, 1, kernel.shape[1] // features)
    y = skip * u
    for t in range(length):
        for j in range(kernel.shape[2]):
            if t - j >= 0:
                y[:, t] += kernel[0, :, j] * u[:, t - j]
            if len(kernel) == 2 and t + 1 + j < length:
                y[:, t] += kernel[1, :, j] * u[:, t + 1 + j]
    return y


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 20),
    taps=st.integers(1, 30),
    directions=st.integers(1, 2),
    channels=st.integers(1, 3),
    features=st.sampled_from([1, 2, 17, 35]),
    batch=st.integers(1, 3),
    padded=st.booleans(),
)
def test_convolution_is_its_definition(
    length: int,
    taps: int,
    directions: int,
    channels: int,
    features: int,
    batch: int,
    padded: bool,
) -> None:
    hidden = torch.randn(batch, length, features, dtype=torch.float64)
    before = hidden.clone()
    kernel = torch.randn(directions, channels * features, taps, dtype=torch.float64)
    skip = torch.randn(channels * features, dtype=torch.float64)
    valid = torch.rand(batch, length) < 0.7 if padded else None
    expected = by_definition(hidden, kernel, skip, valid)
    torch.testing.assert_close(fft_convolution(hidden, kernel, skip, valid=valid), expected)
    assert torch.equal(hidden, before)
    if taps >= length:
        spectrum = kernel_spectrum(kernel, length)
        again = spectral_convolution(hidden, spectrum, skip, valid=valid)
        torch.testing.assert_close(again, expected)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_BLOCK", 1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("taps", [5, 9])
@pytest.mark.parametrize("directions", [1, 2])
def test_gradients_over_several_blocks_of_features(taps: int, directions: int) -> None:
    hidden = torch.randn(2, 7, 18, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(directions, 36, taps, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(36, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 7) < 0.7

    def function(hidden: Tensor, kernel: Tensor, skip: Tensor) -> Tensor:
        return fft_convolution(hidden, kernel, skip, valid=valid)

    inputs = (hidden, kernel, skip)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    weight = torch.randn(2, 7, 36, dtype=torch.float64)
    ours = torch.autograd.grad((function(*inputs) * weight).sum(), inputs)
    theirs = torch.autograd.grad((by_definition(*inputs, valid) * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_each_gradient_alone(needed: tuple[int, ...]) -> None:
    shapes = ((2, 7, 3), (2, 3, 7), (3,))
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for i in needed:
        inputs[i].requires_grad_()
    leaves = [inputs[i] for i in needed]
    ours = torch.autograd.grad(fft_convolution(*inputs).square().sum(), leaves)
    theirs = torch.autograd.grad(by_definition(*inputs, None).square().sum(), leaves)
    torch.testing.assert_close(ours, theirs)


def test_gradients_with_a_constant_spectrum() -> None:
    hidden = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    skip = torch.randn(3, dtype=torch.float64, requires_grad=True)
    spectrum = kernel_spectrum(torch.randn(2, 3, 7, dtype=torch.float64), 7)
    assert torch.autograd.gradcheck(
        lambda u, d: spectral_convolution(u, spectrum, d), (hidden, skip)
    )


@pytest.mark.parametrize("length", [1, 2, 50, 97])
def test_both_directions_are_two_causal_convolutions(length: int) -> None:
    hidden = torch.randn(2, length, 3, dtype=torch.float64)
    past, future = torch.randn(2, 1, 3, length, dtype=torch.float64)
    zero, skip = torch.zeros(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    behind = fft_convolution(hidden, past, skip)
    # The future starts one token away.
    ahead = fft_convolution(hidden.flip(1), future, zero).flip(1)
    ahead = torch.cat([ahead[:, 1:], torch.zeros_like(ahead[:, :1])], dim=1)
    both = fft_convolution(hidden, torch.cat([past, future]), skip)
    torch.testing.assert_close(both, behind + ahead)


def test_padded_values_are_not_read() -> None:
    hidden = torch.randn(1, 9, 3)
    valid = torch.tensor([[False, True, True, False, True, True, True, False, False]])
    kernel, skip = torch.randn(2, 3, 9), torch.randn(3)
    expected = fft_convolution(hidden, kernel, skip, valid=valid)
    hidden[~valid] = torch.tensor([float("nan"), float("inf"), 1e30])
    assert torch.equal(fft_convolution(hidden, kernel, skip, valid=valid), expected)
