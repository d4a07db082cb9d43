"""S4: HiPPO-LegS in diagonal-plus-low-rank form, discretised by the bilinear rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.state_space.hippo import normal_plus_low_rank_legs
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.recurrence import DenseRecurrence, Recurrence
from spade_model.state_space.s4_kernel import discretize_increment, real_output, s4_kernel
from spade_model.state_space.two_level import product_dtype


class S4(SequenceMixer):
    """S4 (arXiv 2111.00396, SPADE section 3); the equations are in `s4_kernel`.

    Shapes, with H = d_model, n = state_dim / 2, S = num_state_space_copies, K = directions *
    channels: C [K, H, n, 2] (real pairs; the channels of the past, then those of the future),
    D [channels * H], log_dt [H], B and P [S, n, 2], and ``A = diag(w) - P P^H`` by
    ``log_decay = log(-Re w)`` and ``frequency = Im w`` [S, n]. Feature h uses copy ``h % S``.
    What is not in `trainable_state_space` is a buffer, saved with the weights.
    """

    C: Tensor
    log_dt: Tensor
    log_decay: Tensor
    frequency: Tensor
    B: Tensor
    P: Tensor

    def __init__(self, config: SpadeConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.dt_range = (config.smallest_time_step, config.dt_max)
        features, half = config.d_model, config.state_dim // 2
        copies = config.num_state_space_copies
        self.declare(
            {
                "C": {"C": (self.num_directions * self.num_channels, features, half, 2)},
                "D": {"D": (self.num_channels * features,)},
                "log_dt": {"log_dt": (features,)},
                "A": {"log_decay": (copies, half), "frequency": (copies, half)},
                "B": {"B": (copies, half, 2)},
                "P": {"P": (copies, half, 2)},
            },
            config.trainable_state_space,
        )
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Set HiPPO-LegS, ``C`` complex normal, ``D`` normal, ``dt`` log-uniform."""
        legs = normal_plus_low_rank_legs(2 * self.frequency.shape[-1])
        self.log_decay.copy_(torch.log(-legs.w.real).expand_as(self.log_decay))
        self.frequency.copy_(legs.w.imag.expand_as(self.frequency))
        self.B.copy_(torch.view_as_real(legs.B).expand_as(self.B))
        self.P.copy_(torch.view_as_real(legs.P).expand_as(self.P))
        self.C.normal_(std=math.sqrt(0.5))
        self.D.normal_()
        dt_min, dt_max = self.dt_range
        self.log_dt.uniform_(math.log(dt_min), math.log(dt_max))

    def compute_kernel(self, length_tokens: int) -> Tensor:
        """Return the kernels [directions, channels * H, L]."""
        kernels = s4_kernel(
            C=self.C,
            B=self.B,
            P=self.P,
            log_decay=self.log_decay,
            frequency=self.frequency,
            log_dt=self.log_dt,
            length_tokens=length_tokens,
        )
        return kernels.reshape(self.num_directions, -1, length_tokens)

    def compute_recurrence(self) -> Recurrence:
        """Return the dense real recurrence."""
        dtype = product_dtype(self.C)
        increment, Bd = discretize_increment(
            self.log_decay, self.frequency, self.P, self.B, self.log_dt
        )
        outputs = real_output(self.C.to(dtype)).transpose(0, 1).contiguous()
        return DenseRecurrence(increment.to(dtype), Bd.to(dtype), outputs)
