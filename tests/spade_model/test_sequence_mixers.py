"""What every sequence mixer promises, whatever it computes inside."""

from __future__ import annotations

import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixers import EVERY_KIND, KINDS, make_mixer
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from spade_model.config import SpadeConfig
from spade_model.config_checks import STATE_SPACE_NAMES
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.registry import SEQUENCE_MIXERS

EITHER_WAY = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both"])


def direct(mixer: SequenceMixer, hidden: Tensor, valid: Tensor | None) -> Tensor:
    """The sum that the class promises, from its kernel."""
    u = hidden.double() if valid is None else hidden.double() * valid[:, :, None]
    length = u.shape[1]
    kernel = mixer.kernel(length).detach().double()
    u = u.repeat(1, 1, mixer.num_channels)
    y = mixer.D.detach().double() * u
    for t in range(length):
        for j in range(t + 1):
            y[:, t] += kernel[0, :, j] * u[:, t - j]
        if not mixer.causal:
            for j in range(length - 1 - t):
                y[:, t] += kernel[1, :, j] * u[:, t + 1 + j]
    return y


def test_every_name_of_the_configuration_has_a_mixer() -> None:
    names = typing.get_args(typing.get_type_hints(SpadeConfig)["state_space"])
    assert {*SEQUENCE_MIXERS, "none"} == set(names)


@EVERY_KIND
@EITHER_WAY
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_forward_is_the_promised_sum(kind: str, causal: bool, channels: int, length: int) -> None:
    mixer = make_mixer(kind, causal=causal, state_space_channels=channels)
    hidden = torch.randn(3, length, 6)
    valid = torch.rand(3, length) < 0.7
    for mask in (None, valid):
        output = mixer(hidden, mask)
        assert output.shape == (3, length, channels * 6)
        expected = direct(mixer, hidden, mask).float()
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@EVERY_KIND
@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 40),
    split=st.integers(0, 40),
    middle=st.integers(0, 40),
    left=st.integers(0, 6),
    channels=st.integers(1, 2),
    frozen=st.booleans(),
)
def test_stepping_is_the_forward_pass(
    kind: str, length: int, split: int, middle: int, left: int, channels: int, frozen: bool
) -> None:
    """Two prompts of any length, then token by token; one row is padded on the left."""
    learned = () if frozen else ("C", "D", "log_dt")
    mixer = make_mixer(
        kind, causal=True, state_space_channels=channels, trainable_state_space=learned
    ).eval()
    split = min(split, length)
    middle = min(middle, split)
    hidden = torch.randn(2, length, 6)
    valid = torch.ones(2, length, dtype=torch.bool)
    valid[1, :left] = False
    with torch.no_grad():
        state, outputs = mixer.initial_state(2), []
        assert state.is_floating_point()
        assert state.shape[:2] == (2, 6)
        for start, stop in ((0, middle), (middle, split)):
            if stop > start:
                part, state = mixer.prefill(hidden[:, start:stop], valid[:, start:stop], state)
                outputs.append(part)
        for t in range(split, length):
            u = hidden[:, t] * valid[:, t, None]
            output, state = mixer.step(u, state)
            outputs.append(output[:, None])
        expected = mixer(hidden, valid)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=1e-5, atol=1e-5)


@EVERY_KIND
def test_stepping_keeps_to_the_forward_pass_for_thousands_of_tokens(kind: str) -> None:
    mixer = make_mixer(kind, causal=True, state_dim=64, d_model=4).eval()
    hidden = torch.randn(1, 3000, 4)
    with torch.no_grad():
        expected = mixer(hidden, None)
        outputs, state = mixer.prefill(hidden[:, :2500], None, mixer.initial_state(1))
        torch.testing.assert_close(outputs, expected[:, :2500], rtol=1e-5, atol=1e-5)
        for t in range(2500, 3000):
            output, state = mixer.step(hidden[:, t], state)
            torch.testing.assert_close(output, expected[:, t], rtol=1e-5, atol=1e-5)


@EVERY_KIND
@EITHER_WAY
def test_padded_values_change_nothing(kind: str, causal: bool) -> None:
    mixer = make_mixer(kind, causal=causal)
    hidden, valid = torch.randn(2, 20, 6), torch.rand(2, 20) < 0.6
    expected = mixer(hidden, valid)
    other = torch.where(valid[:, :, None], hidden, 1e6 * torch.randn_like(hidden))
    assert torch.equal(mixer(other, valid), expected)


@EVERY_KIND
def test_gradients_reach_every_parameter_and_the_input(kind: str) -> None:
    names = tuple(n for n in STATE_SPACE_NAMES if n != "P" or kind == "s4")
    mixer = make_mixer(
        kind, causal=False, state_space_channels=2, trainable_state_space=names
    ).double()
    hidden = torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 9) < 0.8
    parameters = dict(mixer.named_parameters())
    assert parameters.keys() == mixer.state_dict().keys()
    assert torch.autograd.gradcheck(lambda u: mixer(u, valid), (hidden,))
    weight = torch.randn(2, 9, 12, dtype=torch.float64)
    (mixer(hidden, valid) * weight).sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        direction = torch.randn_like(parameter)
        step = 1e-6 / direction.norm()
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=float(sign * step))
                values.append((mixer(hidden, valid) * weight).sum())
                parameter.sub_(direction, alpha=float(sign * step))
        slope = (values[0] - values[1]) / (2 * step)
        expected = (parameter.grad * direction).sum()
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["s4", "s4d_lin"])
@pytest.mark.parametrize("learned", [(), ("C",), ("A", "B"), ("C", "D", "log_dt", "A", "B")])
def test_what_is_not_learned_is_a_saved_constant(kind: str, learned: tuple[str, ...]) -> None:
    mixer = make_mixer(kind, causal=False, trainable_state_space=learned)
    expected = set(learned) - {"A"} | ({"log_decay", "frequency"} if "A" in learned else set())
    assert {name for name, _ in mixer.named_parameters()} == expected
    names = {"C", "D", "log_dt", "log_decay", "frequency", "B"}
    assert set(mixer.state_dict()) == names | ({"P"} if kind == "s4" else set())


def test_a_moving_average_learns_all_but_its_skip_in_any_case() -> None:
    mixer = make_mixer("ema", causal=False, trainable_state_space=())
    learned = {"alpha_logit", "delta_logit", "beta", "eta"}
    assert {name for name, _ in mixer.named_parameters()} == learned
    assert set(mixer.state_dict()) == learned | {"D"}


@EVERY_KIND
@EITHER_WAY
def test_gradients_reach_the_input_of_a_fixed_state_space(kind: str, causal: bool) -> None:
    mixer = make_mixer(kind, causal=causal, trainable_state_space=())
    hidden = torch.randn(1, 9, 6, requires_grad=True)
    mixer(hidden, None)[0, 4].sum().backward()
    reached = (hidden.grad[0].abs() > 3e-6).all(dim=-1)  # What is above rounding.
    assert reached.tolist() == [t <= 4 or not causal for t in range(9)]


@EVERY_KIND
@pytest.mark.parametrize("learned", [(), ("C", "D", "log_dt")])
def test_autocast_changes_nothing(kind: str, learned: tuple[str, ...]) -> None:
    mixer = make_mixer(kind, causal=True, trainable_state_space=learned)
    values, results = torch.randn(2, 50, 6), []
    for enabled in (True, False):
        mixer.forget_kernels()
        mixer.zero_grad()
        hidden = values.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = mixer(hidden, None)
            output.square().sum().backward()
            stepped, _ = mixer.step(hidden[:, 0], mixer.initial_state(2))
            taken_in, _ = mixer.prefill(hidden, None, mixer.initial_state(2))
        gradients = [hidden.grad, *(x.grad for x in mixer.parameters())]
        results.append([mixer.kernel(50), output, stepped, taken_in, *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@EVERY_KIND
def test_bfloat16_inputs_are_computed_in_float32(kind: str) -> None:
    mixer = make_mixer(kind, causal=False)
    hidden = torch.randn(2, 50, 6).bfloat16().requires_grad_()
    exact = hidden.detach().float().requires_grad_()
    output, reference = mixer(hidden, None), mixer(exact, None)
    assert torch.equal(output, reference.bfloat16())
    weight = torch.randn(2, 50, 6).bfloat16()
    (output * weight).sum().backward()
    (reference * weight).sum().backward()
    assert torch.equal(hidden.grad, exact.grad.bfloat16())


@EVERY_KIND
def test_a_float64_module_computes_in_float64(kind: str) -> None:
    mixer = make_mixer(kind, causal=True).double()
    hidden = torch.randn(1, 30, 6, dtype=torch.float64)
    output = mixer(hidden, None)
    assert output.dtype == mixer.kernel(3).dtype == mixer.initial_state(1).dtype == torch.float64
    torch.testing.assert_close(output, direct(mixer, hidden, None), rtol=1e-11, atol=1e-11)


@EVERY_KIND
def test_construction_on_the_meta_device(kind: str) -> None:
    with torch.device("meta"):
        mixer = make_mixer(kind, causal=True)
        assert mixer(torch.empty(2, 9, 6), None).shape == (2, 9, 6)
    assert all(x.is_meta for x in mixer.state_dict().values())
    real = make_mixer(kind, causal=True)
    mixer.to_empty(device="cpu").load_state_dict(real.state_dict())
    hidden = torch.randn(1, 9, 6)
    assert torch.equal(mixer(hidden, None), real(hidden, None))


@EVERY_KIND
@pytest.mark.parametrize("learned", [(), ("C", "D", "log_dt")])
def test_functional_calls_use_the_weights_they_are_given(
    kind: str, learned: tuple[str, ...]
) -> None:
    mixer, other = (
        make_mixer(kind, causal=False, seed=seed, trainable_state_space=learned).eval()
        for seed in (1, 2)
    )
    hidden = torch.randn(1, 9, 6)
    with torch.no_grad():
        own = mixer(hidden, None)
        given = functional_call(mixer, other.state_dict(), (hidden, None), strict=True)
        assert torch.equal(given, other(hidden, None))
        assert torch.equal(mixer(hidden, None), own)
    leaves = {name: x.clone().requires_grad_() for name, x in other.state_dict().items()}
    functional_call(mixer, leaves, (hidden, None), strict=True).sum().backward()
    assert all(x.grad is not None for name, x in leaves.items())


@EVERY_KIND
@pytest.mark.parametrize("learned", [(), ("C", "D", "log_dt")])
def test_activation_checkpointing_changes_nothing(kind: str, learned: tuple[str, ...]) -> None:
    mixer = make_mixer(kind, causal=False, trainable_state_space=learned)
    results = []
    for checkpointed in (False, True):
        mixer.zero_grad()
        mixer.forget_kernels()
        hidden = torch.linspace(-1, 1, 2 * 9 * 6).view(2, 9, 6).requires_grad_()
        if checkpointed:
            output = checkpoint(mixer, hidden, None, use_reentrant=False)
        else:
            output = mixer(hidden, None)
        output.square().sum().backward()
        results.append([output, hidden.grad, *(x.grad for x in mixer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_stay_finite(kind: str) -> None:
    mixer = make_mixer(kind, causal=False, d_model=4, state_dim=64)
    hidden = torch.randn(1, 65536, 4, requires_grad=True)
    output = mixer(hidden, None)
    output.sum().backward()
    assert bool(output.isfinite().all())
    assert bool(hidden.grad.isfinite().all())
    assert all(bool(x.grad.isfinite().all()) for x in mixer.parameters())
