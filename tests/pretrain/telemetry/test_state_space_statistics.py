"""Spectral radii and time steps against the discretised systems themselves."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.telemetry.state_space import state_space_statistics
from spade_model import SpadeConfig, SpadeForSeq2Seq
from spade_model.state_space.recurrence import DenseRecurrence
from spade_model.state_space.s4_kernel import discretize

LAYER = "state_space/encoder.layers.0"


def make_model(**choices: object) -> SpadeForSeq2Seq:
    torch.manual_seed(1)
    values = {
        "vocab_size": 64,
        "d_model": 16,
        "num_heads": 2,
        "head_dim": 8,
        "d_ff": 16,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
        "state_dim": 8,
        "local_radius_tokens": 7,
    }
    return SpadeForSeq2Seq(SpadeConfig(**{**values, **choices}))  # type: ignore[arg-type]


@pytest.mark.parametrize("state_space", ["s4", "s4d_lin", "s4d_inv", "s4d_legs", "ema"])
@pytest.mark.parametrize("copies", [None, 2])
def test_the_radius_is_that_of_the_transition(state_space: str, copies: int | None) -> None:
    model = make_model(state_space=state_space, state_space_copies=copies)
    mixer = model.model.encoder.layers[0].mixing.state_space
    with torch.no_grad():
        for values in mixer.state_dict().values():
            values.add_(torch.randn_like(values) * 0.05)  # as if all of it had been trained
    found = state_space_statistics(model)
    recurrence = mixer.compute_recurrence()
    if isinstance(recurrence, DenseRecurrence):
        Ad, _ = discretize(mixer.log_decay, mixer.frequency, mixer.P, mixer.B, mixer.log_dt)
        expected = torch.linalg.eigvals(Ad).abs().max().item()
        assert Ad.shape == (16, 8, 8)
    else:
        expected = recurrence.transition.abs().max().item()
    assert found[f"{LAYER}/spectral_radius"] == pytest.approx(expected, rel=1e-6)
    memory = found[f"{LAYER}/memory_tokens"]
    assert math.exp(-1 / memory) == pytest.approx(found[f"{LAYER}/spectral_radius"])
    if state_space == "ema":
        assert len(found) == 2
    else:
        dt = mixer.log_dt.detach().exp()
        assert found[f"{LAYER}/dt_min"] == pytest.approx(dt.min().item())
        assert found[f"{LAYER}/dt_max"] == pytest.approx(dt.max().item())


def test_every_layer_is_named_and_nothing_is_changed() -> None:
    model = make_model(state_space_layers=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = state_space_statistics(model)
    assert {name.split("/")[1] for name in found} == {"encoder.layers.0", "encoder.layers.1"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert state_space_statistics(make_model(state_space="none")) == {}


def test_a_broken_layer_says_so_and_does_not_end_the_run() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.encoder.layers[0].mixing.state_space.log_dt[3] = math.nan
    assert math.isnan(state_space_statistics(model)[f"{LAYER}/spectral_radius"])
