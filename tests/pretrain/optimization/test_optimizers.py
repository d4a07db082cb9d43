"""Each optimizer makes the step its definition says, and goes on from saved states bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pretrain.errors import ConfigError
from pretrain.optimization.optimizers import make_optimizer
from pretrain.optimization.settings import OptimizerKind, OptimizerSettings
from spade_model import SpadeConfig, SpadeForSeq2Seq

KINDS = get_args(OptimizerKind)
RATE = 0.02


def make_model() -> SpadeForSeq2Seq:
    torch.manual_seed(0)
    return SpadeForSeq2Seq(
        SpadeConfig(
            vocab_size=30,
            d_model=16,
            num_heads=2,
            head_dim=8,
            d_ff=32,
            state_dim=4,
            num_encoder_layers=2,
            num_decoder_layers=1,
        )
    )


def settings_of(kind: str, **changes: Any) -> OptimizerSettings:
    return OptimizerSettings(kind=kind, learning_rate=RATE, **changes)  # type: ignore[arg-type]


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["base_learning_rate"] / (1 + step)
        set_gradients(model, step)
        optimizer.step()


def changes_of_a_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, value before, and difference that one step made."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    set_gradients(model, step)
    optimizer.step()
    for name, value in model.named_parameters():
        yield name, before[name], value.detach() - before[name]


@pytest.mark.parametrize("kind", KINDS)
def test_states_put_into_a_fresh_optimizer_go_on_bit_for_bit(kind: str) -> None:
    whole, first, second = make_model(), make_model(), make_model()
    settings = settings_of(kind, learning_rate_multipliers={"*.decoder.*": 0.5})
    optimizers = [make_optimizer(model, settings, zero_stage=0) for model in (whole, first, second)]
    train(whole, optimizers[0], range(6))
    train(first, optimizers[1], range(3))

    # As the engine does it: states are made by a step that changes nothing, then filled by name.
    start = [parameter.detach().clone() for parameter in second.parameters()]
    for parameter in second.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizers[2].param_groups:
        group["lr"] = 0.0
    optimizers[2].step()
    assert all(map(torch.equal, start, second.parameters())), "a step at rate 0 changes nothing"
    with torch.no_grad():
        for old, new in zip(first.parameters(), second.parameters(), strict=True):
            new.copy_(old)
            saved, fresh = optimizers[1].state[old], optimizers[2].state[new]
            assert saved.keys() == fresh.keys()
            for name, value in saved.items():
                assert torch.is_tensor(value), "all that is kept is numbers"
                fresh[name].copy_(value)
    train(second, optimizers[2], range(3, 6))
    assert all(map(torch.equal, whole.parameters(), second.parameters()))


def test_rms_steps_equal_adamw_times_the_size_of_the_tensor() -> None:
    """Moments do not depend on the weights: AdamW beside it makes the steps to be scaled."""
    scaled, plain = make_model(), make_model()
    settings = settings_of("adamw_rms", weight_decay=0.0)
    ours = make_optimizer(scaled, settings, zero_stage=0)
    theirs = torch.optim.AdamW(
        plain.parameters(), lr=RATE, betas=settings.betas, eps=settings.epsilon, weight_decay=0.0
    )
    sizes = []
    for step in range(4):
        steps = {name: change for name, _, change in changes_of_a_step(plain, theirs, step)}
        for name, before, change in changes_of_a_step(scaled, ours, step):
            rms = math.sqrt(before.double().square().mean())
            sizes.append(max(1e-3, rms))
            torch.testing.assert_close(change, steps[name] * sizes[-1], rtol=1e-3, atol=2e-7)
    assert min(sizes) == 1e-3, "the floor is reached"
    assert max(sizes) > 0.5, "and large tensors are among them"


def test_rms_steps_decay_matrices_by_the_unscaled_rate() -> None:
    plain, decayed = make_model(), make_model()
    without = make_optimizer(plain, settings_of("adamw_rms", weight_decay=0.0), zero_stage=0)
    with_decay = make_optimizer(decayed, settings_of("adamw_rms", weight_decay=0.5), zero_stage=0)
    steps = {name: change for name, _, change in changes_of_a_step(plain, without, 0)}
    matrices = {id(x) for g in with_decay.param_groups if g["weight_decay"] for x in g["params"]}
    names = {name for name, x in decayed.named_parameters() if id(x) in matrices}
    assert "model.shared.weight" in names
    assert len(names) < len(steps)
    for name, before, change in changes_of_a_step(decayed, with_decay, 0):
        expected = steps[name] - RATE * 0.5 * before if name in names else steps[name]
        torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-6)


def test_muon_makes_orthogonal_steps_for_matrices_of_layers_and_adamw_the_rest() -> None:
    model, plain = make_model(), make_model()
    settings = settings_of("muon", weight_decay=0.0)
    ours = make_optimizer(model, settings, zero_stage=0)
    theirs = torch.optim.AdamW(
        plain.parameters(), lr=RATE, betas=settings.betas, eps=settings.epsilon, weight_decay=0.0
    )
    (matrices,) = [group for group in ours.param_groups if group["name"] == "matrix"]
    members = {id(parameter) for parameter in matrices["params"]}
    named = dict(model.named_parameters())
    orthogonal = {name for name, parameter in named.items() if id(parameter) in members}
    assert orthogonal == {
        name
        for name, parameter in named.items()
        if ".layers." in name
        and parameter.ndim == 2
        and "bias" not in name
        and ".state_space." not in name
    }
    steps = {name: change for name, _, change in changes_of_a_step(plain, theirs, 0)}
    for name, before, change in changes_of_a_step(model, ours, 0):
        if name not in orthogonal:
            torch.testing.assert_close(change, steps[name], rtol=1e-3, atol=1e-7)
            continue
        # All singular values alike, in units of the rate: those of five Newton-Schulz rounds
        # lie within 0.3 of 1, those of a random gradient would differ by far more.
        values = torch.linalg.svdvals(change) / (RATE * 0.2 * math.sqrt(max(before.shape)))
        assert values.min() > 0.5, name
        assert values.max() < 1.35, name


def test_adafactor_keeps_rows_and_columns_instead_of_second_moments() -> None:
    model = make_model()
    optimizer = make_optimizer(model, settings_of("adafactor"), zero_stage=0)
    train(model, optimizer, range(1))
    kept = sum(value.numel() for state in optimizer.state.values() for value in state.values())
    assert kept < 0.5 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_only_adamw_may_be_sharded(kind: str, zero_stage: int) -> None:
    if kind == "adamw":
        make_optimizer(make_model(), settings_of(kind), zero_stage=zero_stage)
        return
    with pytest.raises(ConfigError, match=f"kind {kind} needs whole tensors.*zero_stage to 0"):
        make_optimizer(make_model(), settings_of(kind), zero_stage=zero_stage)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "adafactor", "betas": (0.9, 0.95)}, "leave both out"),
        ({"kind": "adafactor", "epsilon": 1e-6}, "leave both out"),
        ({"kind": "adamw", "momentum": 0.9}, "optimizer.momentum 0.9 is muon's"),
        ({"kind": "adamw", "learning_rate": float("inf")}, "finite"),
        ({"learning_rate_multipliers": {"*": 0.0}}, "greater than 0"),
        ({"kind": "sgd"}, "adamw_rms"),
    ],
)
def test_impossible_optimizers_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        OptimizerSettings(**({"learning_rate": 1.0} | values))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_out_can_be_read_again(kind: str) -> None:
    settings = settings_of(kind)
    assert OptimizerSettings(**settings.model_dump()) == settings
