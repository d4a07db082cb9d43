"""The sequence mixers by the names that `SpadeConfig.state_space` uses."""

from __future__ import annotations

from spade_model.config import SpadeConfig
from spade_model.state_space.exponential_moving_average import ExponentialMovingAverage
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.s4 import S4
from spade_model.state_space.s4d import S4D

SEQUENCE_MIXERS: dict[str, type[SequenceMixer]] = {
    "s4": S4,
    "s4d_lin": S4D,
    "s4d_inv": S4D,
    "s4d_legs": S4D,
    "ema": ExponentialMovingAverage,
}


def make_sequence_mixer(config: SpadeConfig, causal: bool) -> SequenceMixer:
    """Build the mixer that a configuration names, with initial weights.

    Args:
        config: Its `state_space` is not ``none``.
        causal: Whether outputs may depend on the past alone.
    """
    return SEQUENCE_MIXERS[config.state_space](config, causal=causal)
