"""Kernels against their definition: dense matrices by scipy, stepped one token at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixers import EVERY_KIND, EVERYTHING, KINDS, make_mixer
from torch import Tensor

from spade_model import published
from spade_model.config_checks import STATE_SPACE_NAMES
from spade_model.state_space.hippo import hippo_legs, normal_plus_low_rank_legs
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.s4_kernel import discretize, s4_kernel


def complex_array(pairs: Tensor) -> np.ndarray:
    return torch.view_as_complex(pairs.detach().double()).numpy()


def continuous_kernel(
    mixer: SequenceMixer, rule: str, length: int, *, low_rank: bool
) -> np.ndarray:
    """S4 and S4D with the full matrices of all conjugate pairs, [K, H, L]."""
    C, B = complex_array(mixer.C), complex_array(mixer.B)
    w = -mixer.log_decay.detach().double().exp().numpy()
    w = w + 1j * mixer.frequency.detach().double().numpy()
    steps = mixer.log_dt.detach().double().exp().numpy()
    kernel = np.zeros((*C.shape[:2], length))
    for feature, dt in enumerate(steps):
        copy = feature % len(w)
        A = np.diag(np.concatenate([w[copy], w[copy].conj()]))
        if low_rank:
            P = complex_array(mixer.P)[copy]
            column = np.concatenate([P, P.conj()])[:, None]
            A = A - column @ column.conj().T
        b = np.concatenate([B[copy], B[copy].conj()])[:, None]
        identity = np.eye(len(A))
        if rule == "bilinear":
            Ad = scipy.linalg.solve(identity - dt / 2 * A, identity + dt / 2 * A)
            state = scipy.linalg.solve(identity - dt / 2 * A, dt * b)
        else:  # The exponential of the system with a constant input as one more state.
            held = np.block([[A, b], [np.zeros((1, len(A) + 1))]])
            exponential = scipy.linalg.expm(dt * held)
            Ad, state = exponential[:-1, :-1], exponential[:-1, -1:]
        rows = np.concatenate([C[:, feature], C[:, feature].conj()], axis=-1)
        for t in range(length):
            kernel[:, feature, t] = (rows @ state)[:, 0].real
            state = Ad @ state
    return kernel


def moving_average_kernel(mixer: SequenceMixer, length: int) -> np.ndarray:
    """Equations 2 to 4 of MEGA on an impulse, [directions, channels, H, L]."""
    alpha, delta = (
        torch.sigmoid(getattr(mixer, name).detach().double()).numpy()
        for name in ("alpha_logit", "delta_logit")
    )
    beta, eta = mixer.beta.detach().double().numpy(), mixer.eta.detach().double().numpy()
    directions, features, states = alpha.shape
    channels = len(eta) // directions
    kernel = np.zeros((directions, channels, features, length))
    for direction in range(directions):
        averages = np.zeros((features, states))
        for t in range(length):
            u = beta[direction] * (t == 0)
            averages = alpha[direction] * u + (1 - alpha[direction] * delta[direction]) * averages
            for channel in range(channels):
                weights = eta[direction * channels + channel]
                kernel[direction, channel, :, t] = (weights * averages).sum(-1) / math.sqrt(states)
    return kernel


@EVERY_KIND
@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 70),
    half=st.integers(1, 5),
    copies=st.sampled_from([1, 2, 4]),
    channels=st.integers(1, 2),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernel_is_the_dense_recurrence(
    kind: str, length: int, half: int, copies: int, channels: int, causal: bool, seed: int
) -> None:
    mixer = make_mixer(
        kind,
        causal=causal,
        seed=seed,
        d_model=4,
        state_dim=2 * half,
        state_space_copies=copies,
        state_space_channels=channels,
    ).double()
    with torch.no_grad():  # Far from where it starts, and every copy different.
        for name, x in mixer.state_dict().items():
            if name != "log_dt":
                x.add_(torch.randn_like(x) * 0.5)
        kernel = mixer.kernel(length)
    assert kernel.shape == (1 if causal else 2, channels * 4, length)
    if kind == "ema":
        expected = moving_average_kernel(mixer, length)
    else:
        rule = KINDS[kind].get("state_space_discretization", "bilinear")
        expected = continuous_kernel(mixer, rule, length, low_rank=kind == "s4")
    exact = torch.from_numpy(expected).reshape(kernel.shape)
    torch.testing.assert_close(kernel, exact, rtol=1e-9, atol=1e-9)


@EVERY_KIND
@pytest.mark.parametrize("learned", ["everything", "the default"])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_kernel_gradients(kind: str, learned: str, length: int) -> None:
    names = ("C", "D", "log_dt")
    if learned == "everything":
        names = STATE_SPACE_NAMES if kind == "s4" else EVERYTHING
    mixer = make_mixer(
        kind,
        causal=False,
        d_model=2,
        state_dim=4,
        state_space_channels=2,
        trainable_state_space=names,
        dt_min=0.05,
        dt_max=0.5,
    ).double()
    leaves = {name: x for name, x in mixer.named_parameters() if name != "D"}

    def function(*values: Tensor) -> Tensor:
        for name, x in zip(leaves, values, strict=True):
            del mixer._parameters[name]
            mixer._parameters[name] = x  # type: ignore[assignment]
        return mixer.compute_kernel(length)

    inputs = tuple(x.detach().clone().requires_grad_() for x in leaves.values())
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
def test_gradients_with_a_constant_system_are_those_of_the_differentiable_one(length: int) -> None:
    """The hand-written backward pass against automatic differentiation, over several chunks."""
    mixer = make_mixer("s4", causal=False, d_model=70, state_dim=8).double()
    weight = torch.randn(2, 70, length, dtype=torch.float64)
    found = []
    for system_learned in (False, True):
        names = ("C", "B", "P", "log_decay", "frequency", "log_dt")
        leaves = {name: getattr(mixer, name).detach().clone() for name in names}
        for name in names if system_learned else ("C", "log_dt"):
            leaves[name].requires_grad_()
        (s4_kernel(**leaves, length_tokens=length) * weight).sum().backward()
        found.append((leaves["C"].grad, leaves["log_dt"].grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@EVERY_KIND
@pytest.mark.parametrize("trained_length_tokens", [1024, 65536])
def test_float32_kernels_are_accurate_at_any_length(kind: str, trained_length_tokens: int) -> None:
    mixer = make_mixer(
        kind,
        causal=False,
        d_model=8,
        state_dim=64,
        trained_length_tokens=trained_length_tokens,
    )
    with torch.no_grad():
        rounded = mixer.kernel(65536)
        exact = mixer.double().kernel(65536)
    assert rounded.dtype == torch.float32
    assert bool(rounded.isfinite().all())
    for length, tolerance in ((4096, 1e-5), (65536, 1e-4)):
        difference = (rounded - exact)[..., :length]
        assert difference.norm() <= tolerance * exact[..., :length].norm()


@EVERY_KIND
@settings(max_examples=10, deadline=None)
@given(length=st.integers(1, 300), shorter=st.integers(1, 300))
def test_a_kernel_is_its_own_beginning(kind: str, length: int, shorter: int) -> None:
    mixer = make_mixer(kind, causal=True).double()
    shorter = min(shorter, length)
    with torch.no_grad():
        torch.testing.assert_close(
            mixer.kernel(length)[..., :shorter], mixer.kernel(shorter), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("kind", ["s4", "s4d_legs"])
def test_first_time_steps_span_the_configured_range(kind: str) -> None:
    mixer = make_mixer(kind, causal=True, d_model=4000, state_dim=2, trained_length_tokens=10**5)
    steps = mixer.log_dt.detach().exp()
    assert 2e-5 <= float(steps.min()) < 2.2e-5
    assert 0.09 < float(steps.max()) <= 0.1 * (1 + 1e-6)
    median = math.sqrt(2e-5 * 0.1)  # Uniform in its logarithm.
    assert 0.8 * median < float(steps.median()) < 1.25 * median


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


@pytest.mark.parametrize("length_at_conversion", [16, 4096])
def test_published_output_matrix_converts_back(length_at_conversion: int) -> None:
    mixer = make_mixer("s4", causal=False, d_model=4, state_dim=16)
    Ad, _ = discretize(mixer.log_decay, mixer.frequency, mixer.P, mixer.B, mixer.log_dt)
    C = torch.view_as_complex(mixer.C.detach().double())
    rows = torch.cat([C.real, -C.imag], dim=-1).transpose(0, 1)
    rows = (rows - rows @ torch.linalg.matrix_power(Ad, length_at_conversion)).transpose(0, 1)
    real, imaginary = rows.chunk(2, dim=-1)
    converted = torch.stack([real, -imaginary], dim=-1)
    back = published.output_matrix(converted, Ad, length_at_conversion)
    torch.testing.assert_close(back, mixer.C.double(), rtol=1e-9, atol=1e-9)
    assert published.output_matrix(converted, Ad, 0) is converted


@EVERY_KIND
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_kernels_ignore_the_matmul_precision_setting(kind: str, precision: str) -> None:
    mixer = make_mixer(kind, causal=False, state_dim=16)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        kernel = mixer.kernel(300)
    finally:
        torch.set_float32_matmul_precision(before)
    assert kernel.dtype == torch.float32
    exact = mixer.double().kernel(300)
    assert (kernel - exact).norm() <= 1e-7 * exact.norm()  # As from float64, rounded once.
