"""S4 and S4D against the published modules: kernels, outputs, states and all gradients."""

from __future__ import annotations

import pytest
import torch
from golden import NEEDS_GOLDEN, PRECISIONS, Case, cases
from torch import Tensor
from torch.func import functional_call

from spade_model import published
from spade_model.config import SpadeConfig
from spade_model.state_space.fft_convolution import fft_convolution
from spade_model.state_space.hippo import hippo_legs, normal_plus_low_rank_legs
from spade_model.state_space.recurrence import DenseRecurrence
from spade_model.state_space.registry import make_sequence_mixer
from spade_model.state_space.s4_kernel import discretize, real_output, s4_kernel
from spade_model.state_space.s4d import initial_frequencies

pytestmark = NEEDS_GOLDEN


def test_hippo_legs() -> None:
    case = Case("s4_hippo_legs_init", torch.float64)
    for N in case.config["N"]:
        A, B = hippo_legs(N)
        case.check(f"N{N}.A_hippo", A)
        case.check(f"N{N}.B_hippo", B[:, None])
        legs = normal_plus_low_rank_legs(N)
        case.check(f"N{N}.w", torch.view_as_real(legs.w))
        case.check(f"N{N}.abs_P_sq", legs.P.abs() ** 2)
        case.check(f"N{N}.abs_B_sq", legs.B.abs() ** 2)
        case.check(f"N{N}.B_times_conj_P", torch.view_as_real(legs.B * legs.P.conj()))


def convolved(case: Case, kernel: Tensor, skip: Tensor) -> Tensor:
    """The output for the case's input [B, channels * H, L], from kernels [K, H, L]."""
    directions = 2 if case.config["bidirectional"] else 1
    kernels = kernel.reshape(directions, -1, kernel.shape[-1])
    return fft_convolution(case["in.u"].mT, kernels, skip).mT


def run_s4(case: Case, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Kernel and output of a published S4 layer."""
    length, limit = case.config["L"], case.config["l_max"]
    state = case.rounded(published.state_space_state(weights))
    skip = state.pop("D")
    kernel = s4_kernel(**state, length_tokens=min(length, limit or length))
    return kernel, convolved(case, kernel, skip)


S4_CASES = cases(
    "s4_nplr_causal_n16",
    "s4_nplr_bidir_n16",
    "s4_nplr_bidir_n64_nssm4",
    "s4_nplr_bidir_shorter_than_lmax",
    "s4_nplr_bidir_longer_than_lmax",
    "s4_nplr_causal_channels2",
    "s4_nplr_causal_lmax_none",
    "s4_nplr_bidir_1k",
)


@PRECISIONS
@S4_CASES
def test_s4(case: Case) -> None:
    kernel, y = run_s4(case, case.weights("w.init."))
    case.check("mid.kernel", kernel)
    case.check("out.y", y)


@pytest.mark.parametrize("name", ["s4_nplr_causal_n16", "s4_nplr_bidir_n16"])
def test_the_published_fallback_is_another_kernel(name: str) -> None:
    """Its Cauchy sum leaves out the conjugates: no approximation of the kernel, but all wrong."""
    case = Case(name, torch.float64)
    kernel, _ = run_s4(case, case.weights("w.init."))
    error = (case["legacy_wrong.kernel_half_sum"] - kernel).norm() / kernel.norm()
    assert 0.9 < error < 1.1


@PRECISIONS
@S4_CASES
@pytest.mark.parametrize("learned", ["everything", "the default"])
def test_s4_gradients(case: Case, learned: str) -> None:
    """The published gradients are those of the converted C, so we start from it too.

    Without gradients for A, B and P the others are computed by a function of their own.
    """
    weights = case.weights("w.init.")
    weights["kernel.kernel.L"] = case["w.after_first_forward.kernel.kernel.L"]
    converted = case["w.after_first_forward.kernel.kernel.C"].double()
    weights["kernel.kernel.C"] = converted.requires_grad_()
    if learned == "the default":
        for name in ("inv_w_real", "w_imag", "B", "P"):
            weights[f"kernel.kernel.{name}"].requires_grad_(False)
            case.tensors.pop(f"grad.kernel.kernel.{name}")
    u = case["in.u"].requires_grad_()
    case.tensors["in.u"] = u
    initial = case.tensors["w.init.kernel.kernel.C"].double()
    assert (published.state_space_state(weights)["C"] - initial).norm() <= 1e-6 * initial.norm()
    _, y = run_s4(case, weights)
    (y * case["in.g"]).sum().backward()
    case.check("grad.u", u.grad)
    case.check_gradients()


@PRECISIONS
@cases("s4_nplr_recurrence_n16")
def test_s4_as_a_recurrence(case: Case) -> None:
    """Stepping, taking in a prompt and what a state still says agree with the published system."""
    state = published.state_space_state(case.weights("w.init."))
    skip, C = state.pop("D"), state.pop("C")
    with torch.no_grad():
        Ad, Bd = discretize(**state)
        half = case.config["d_state"] // 2
        dA, dB = case.tensors["mid.dA"][:, :half], case.tensors["mid.dB"][:, :half]
        # Rows that act on (z, z*) act on (Re z, Im z) by the sum and i times the difference.
        first, second = torch.view_as_complex(dA).chunk(2, dim=-1)
        rows = torch.cat([first + second, 1j * (first - second)], dim=-1)
        expected = torch.cat([rows.real, rows.imag], dim=1)
        assert (Ad - expected).norm() <= 1e-9 * expected.norm()
        pair = torch.cat([dB[..., 0], dB[..., 1]], dim=-1)
        assert (Bd - pair).norm() <= 1e-9 * pair.norm()
        kernel = s4_kernel(**state, C=C, length_tokens=case.config["T"])
        y = fft_convolution(case["in.u"].mT, kernel, skip).mT
        case.check("out.y_conv", y)
        case.check("out.y_step", y)
        recurrence = DenseRecurrence(
            (Ad - torch.eye(2 * half, dtype=torch.float64)).to(case.dtype),
            Bd.to(case.dtype),
            real_output(C).transpose(0, 1).to(case.dtype),
        )
        start = case["in.state0"]
        start = torch.cat([start[..., 0], start[..., 1]], dim=-1)
        case.check("out.k_state_response", recurrence.response(start, case.config["T"]))
        real, imaginary = recurrence.final_state(case["in.u"], start).chunk(2, dim=-1)
        case.check("out.next_state", torch.stack([real, imaginary], dim=-1))


S4D_CASES = cases(
    *(f"s4d_diag-{kind}_{rule}" for kind in ("lin", "inv", "legs") for rule in ("bilinear", "zoh"))
)


@PRECISIONS
@S4D_CASES
def test_s4d(case: Case) -> None:
    """The whole layer as `make_sequence_mixer` builds it, with every gradient."""
    kind = case.config["init"].removeprefix("diag-")
    config = SpadeConfig(
        vocab_size=9,
        d_model=case.config["d_model"],
        state_dim=case.config["d_state"],
        state_space=f"s4d_{kind}",
        state_space_discretization={"zoh": "zero_order_hold"}.get(
            case.config["disc"], case.config["disc"]
        ),
        state_space_copies=case.config["n_ssm"],
        state_space_channels=case.config["channels"],
        trainable_state_space=("C", "D", "log_dt", "A", "B"),
    )
    mixer = make_sequence_mixer(config, not case.config["bidirectional"])
    weights = case.weights()
    state = {
        "C": weights["kernel.C"],
        "D": weights["D"].flatten(),
        "log_dt": weights["kernel.inv_dt"].flatten(),
        "log_decay": weights["kernel.A_real"],
        "frequency": -weights["kernel.A_imag"],
        "B": weights["kernel.B"][0],
    }
    assert set(state) == set(mixer.state_dict())
    u = case["in.u"].requires_grad_()
    y = functional_call(mixer, state, (u.mT, None), strict=True).mT
    case.check("out.y", y)
    for name, x in state.items():
        getattr(mixer, name).data = x.detach()
    kernel = mixer.compute_kernel(case.config["L"])
    case.check("mid.kernel", kernel.view(case["mid.kernel"].shape))
    frequencies = initial_frequencies(f"s4d_{kind}", case.config["d_state"])
    # The published code keeps frequencies 1e-4 away from 0, in lin there is one at 0.
    torch.testing.assert_close(
        state["frequency"].detach().double(),
        frequencies.expand_as(state["frequency"]),
        rtol=1e-6,
        atol=1.1e-4,
    )
    (y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).sum().backward()
    case.check("grad.u", u.grad)
    case.check_gradients()
