"""What S4 and S4D have in common: a system in continuous time, sampled at steps of dt."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.state_space.mixer import SequenceMixer


class ContinuousStateSpace(SequenceMixer):
    """Tensors of a system ``x' = A x + B u, y = C x`` with one time step for each feature.

    Shapes, with H = d_model, n = state_dim / 2, S = num_state_space_copies, K = directions *
    channels: C [K, H, n, 2] (real pairs; the channels of the past, then those of the future),
    D [channels * H], log_dt [H], B [S, n, 2], and the eigenvalues w of A by
    ``log_decay = log(-Re w)`` and ``frequency = Im w`` [S, n]. Feature h uses copy ``h % S``.
    What is not in `trainable_state_space` is a buffer, saved with the weights.
    """

    C: Tensor
    log_dt: Tensor
    log_decay: Tensor
    frequency: Tensor
    B: Tensor

    def __init__(self, config: SpadeConfig, *, causal: bool, low_rank: bool) -> None:
        super().__init__(config, causal=causal)
        self.dt_range = (config.smallest_time_step, config.dt_max)
        features, half = config.d_model, config.state_dim // 2
        copies = config.num_state_space_copies
        quantities: dict[str, dict[str, tuple[int, ...]]] = {
            "C": {"C": (self.num_directions * self.num_channels, features, half, 2)},
            "D": {"D": (self.num_channels * features,)},
            "log_dt": {"log_dt": (features,)},
            "A": {"log_decay": (copies, half), "frequency": (copies, half)},
            "B": {"B": (copies, half, 2)},
        }
        if low_rank:
            quantities["P"] = {"P": (copies, half, 2)}
        self.declare(quantities, config.trainable_state_space)

    @torch.no_grad()
    def draw_outputs_and_steps(self) -> None:
        """Draw C complex normal, D normal, dt log-uniform: what does not depend on the system."""
        self.C.normal_(std=math.sqrt(0.5))
        self.D.normal_()
        dt_min, dt_max = self.dt_range
        self.log_dt.uniform_(math.log(dt_min), math.log(dt_max))
