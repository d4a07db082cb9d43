"""S4 against its definition: a dense complex recurrence, stepped one token at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spade_model import published
from spade_model.config import STATE_SPACE_NAMES, SpadeConfig
from spade_model.fft_convolution import fast_fft_length, fft_convolution
from spade_model.hippo import hippo_legs, normal_plus_low_rank_legs
from spade_model.state_space import StateSpace
from spade_model.state_space_kernel import discretize, state_space_kernel


def random_parameters(features: int, half: int, copies: int, kernels: int) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    return {
        "C": normal(kernels, features, half, 2),
        "B": normal(copies, half, 2),
        "P": normal(copies, half, 2),
        "log_decay": normal(copies, half) - 1,
        "frequency": normal(copies, half) * 5,
        "log_dt": normal(features) - 3,
    }


def recurrence(parameters: dict[str, Tensor], length: int) -> Tensor:
    """The kernels by the definition, for each feature with full complex matrices."""
    C = torch.view_as_complex(parameters["C"])
    B, P = (torch.view_as_complex(parameters[name]) for name in "BP")
    w = torch.complex(-parameters["log_decay"].exp(), parameters["frequency"])
    kernels = torch.zeros(*C.shape[:2], length, dtype=torch.float64)
    for feature, log_dt in enumerate(parameters["log_dt"]):
        copy = feature % len(w)
        column = torch.cat([P[copy], P[copy].conj()])[:, None]
        A = torch.diag(torch.cat([w[copy], w[copy].conj()])) - column @ column.mH
        step = torch.exp(log_dt) / 2
        identity = torch.eye(len(A), dtype=A.dtype)
        Ad = torch.linalg.solve(identity - step * A, identity + step * A)
        both = torch.cat([B[copy], B[copy].conj()])
        state = torch.linalg.solve(identity - step * A, 2 * step * both)
        rows = torch.cat([C[:, feature], C[:, feature].conj()], dim=-1)
        for t in range(length):
            kernels[:, feature, t] = (rows @ state).real
            state = Ad @ state
    return kernels


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 70),
    half=st.integers(1, 5),
    copies=st.integers(1, 3),
    repeats=st.integers(1, 2),
    kernels=st.integers(1, 2),
)
def test_two_level_kernel_is_the_recurrence(
    length: int, half: int, copies: int, repeats: int, kernels: int
) -> None:
    parameters = random_parameters(copies * repeats, half, copies, kernels)
    kernel = state_space_kernel(**parameters, length_tokens=length)
    torch.testing.assert_close(kernel, recurrence(parameters, length), rtol=1e-9, atol=1e-9)


def test_float32_kernel_is_accurate_over_thousands_of_steps() -> None:
    torch.manual_seed(0)
    layer = StateSpace(SpadeConfig(vocab_size=9, d_model=8, state_dim=64))
    kernel = layer.kernel(4096)
    exact = layer.double().kernel(4096)
    assert kernel.dtype == torch.float32
    assert (kernel - exact).norm() <= 2e-5 * exact.norm()
    # A kernel is its own beginning, whatever length it was made for.
    assert (layer.kernel(1000) - exact[..., :1000]).norm() <= 1e-10 * exact.norm()


def test_diagonalised_legs_is_legs() -> None:
    for N in (2, 8, 64):
        A, B = hippo_legs(N)
        legs = normal_plus_low_rank_legs(N)
        assert bool((legs.w.imag < 0).all())
        assert bool((legs.w.imag.diff() > 0).all())
        # The transfer function C (s - A)^-1 B does not depend on the basis; take C = B^T.
        column = torch.cat([legs.P, legs.P.conj()])[:, None]
        full = torch.diag(torch.cat([legs.w, legs.w.conj()])) - column @ column.mH
        both = torch.cat([legs.B, legs.B.conj()])
        for s in (0.3, 2.0 + 1.0j):
            shift = s * torch.eye(N, dtype=full.dtype)
            theirs = both.conj() @ torch.linalg.solve(shift - full, both)
            ours = B.to(full.dtype) @ torch.linalg.solve(shift - A, B.to(full.dtype))
            assert abs(theirs - ours) <= 1e-8 * abs(ours)


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


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 20),
    taps=st.integers(1, 30),
    both=st.booleans(),
    leading=st.sampled_from([(), (2,), (2, 1)]),
)
def test_convolution_is_its_definition(
    length: int, taps: int, both: bool, leading: tuple[int, ...]
) -> None:
    u = torch.randn(*leading, 3, length, dtype=torch.float64)
    past, future = torch.randn(2, 3, taps, dtype=torch.float64)
    expected = torch.zeros_like(u)
    for t in range(length):
        for j in range(taps):
            if t - j >= 0:
                expected[..., t] += past[:, j] * u[..., t - j]
            if both and t + 1 + j < length:
                expected[..., t] += future[:, j] * u[..., t + 1 + j]
    torch.testing.assert_close(fft_convolution(u, past, future if both else None), expected)


def test_convolution_gradients() -> None:
    u = torch.randn(2, 1, 3, 7, dtype=torch.float64, requires_grad=True)
    kernels = [torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(fft_convolution, (u, *kernels))


def test_kernel_gradients() -> None:
    parameters = random_parameters(2, 2, 1, 2)
    leaves = {name: x.requires_grad_() for name, x in parameters.items()}

    def function(*values: Tensor) -> Tensor:
        return state_space_kernel(**dict(zip(leaves, values, strict=True)), length_tokens=11)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@pytest.mark.parametrize("length_at_conversion", [16, 4096])
def test_published_output_matrix_converts_back(length_at_conversion: int) -> None:
    torch.manual_seed(0)
    layer = StateSpace(SpadeConfig(vocab_size=9, d_model=4, state_dim=16))
    Ad, _ = discretize(layer.log_decay, layer.frequency, layer.P, layer.B, layer.log_dt)
    C = torch.view_as_complex(layer.C.detach().double())
    rows = torch.cat([C.real, -C.imag], dim=-1).transpose(0, 1)
    rows = (rows - rows @ torch.linalg.matrix_power(Ad, length_at_conversion)).transpose(0, 1)
    real, imaginary = rows.chunk(2, dim=-1)
    converted = torch.stack([real, -imaginary], dim=-1)
    back = published.output_matrix(converted, Ad, length_at_conversion)
    torch.testing.assert_close(back, layer.C.double(), rtol=1e-9, atol=1e-9)
    assert published.output_matrix(converted, Ad, 0) is converted


@pytest.mark.parametrize("learned", [(), ("C",), ("A", "P"), STATE_SPACE_NAMES])
def test_what_is_not_learned_is_a_saved_constant(learned: tuple[str, ...]) -> None:
    config = SpadeConfig(vocab_size=9, d_model=4, state_dim=4, trainable_state_space=learned)
    layer = StateSpace(config)
    expected = set(learned) - {"A"} | ({"log_decay", "frequency"} if "A" in learned else set())
    assert {name for name, _ in layer.named_parameters()} == expected
    assert len(layer.state_dict()) == 7


def test_gradients_reach_the_input_of_a_fixed_state_space() -> None:
    layer = StateSpace(SpadeConfig(vocab_size=9, d_model=4, state_dim=4, trainable_state_space=()))
    hidden = torch.randn(1, 9, 4, requires_grad=True)
    layer(hidden, None)[0, 4].sum().backward()
    assert bool((hidden.grad[0] != 0).all())  # From before, from behind, from the same place.


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_kernel_ignores_the_matmul_precision_setting(precision: str) -> None:
    torch.manual_seed(0)
    layer = StateSpace(SpadeConfig(vocab_size=9, d_model=8, state_dim=16))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        kernel = layer.kernel(300)
    finally:
        torch.set_float32_matmul_precision(before)
    assert kernel.dtype == torch.float32
    exact = layer.double().kernel(300)
    assert (kernel - exact).norm() <= 1e-7 * exact.norm()  # As from float64, rounded once.


def test_kernel_is_the_same_under_autocast() -> None:
    layer = StateSpace(SpadeConfig(vocab_size=9, d_model=8, state_dim=16))
    hidden = torch.randn(2, 50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        kernel, output = layer.kernel(50), layer(hidden, None)
    assert torch.equal(kernel, layer.kernel(50))
    assert torch.equal(output, layer(hidden, None))
    assert layer(hidden.bfloat16(), None).dtype == torch.bfloat16
