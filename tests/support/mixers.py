"""Small sequence mixers of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spade_model.config import SpadeConfig
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.registry import make_sequence_mixer

KINDS: dict[str, dict[str, Any]] = {
    "s4": {"state_space": "s4"},
    "s4d_lin": {"state_space": "s4d_lin"},
    "s4d_inv": {"state_space": "s4d_inv", "state_space_discretization": "zero_order_hold"},
    "s4d_legs": {"state_space": "s4d_legs"},
    "s4d_legs_hold": {
        "state_space": "s4d_legs",
        "state_space_discretization": "zero_order_hold",
    },
    "ema": {"state_space": "ema"},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERYTHING = ("C", "D", "log_dt", "A", "B")


def make_mixer(kind: str, *, causal: bool, seed: int = 0, **changes: Any) -> SequenceMixer:
    """A mixer of 6 features and 8 states, unless changed."""
    torch.manual_seed(seed)
    values = {"vocab_size": 9, "d_model": 6, "state_dim": 8} | KINDS[kind] | changes
    return make_sequence_mixer(SpadeConfig(**values), causal)
