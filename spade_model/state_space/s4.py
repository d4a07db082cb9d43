"""S4: HiPPO-LegS in diagonal-plus-low-rank form, discretised by the bilinear rule."""

from __future__ import annotations

import torch
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.state_space.continuous import ContinuousStateSpace
from spade_model.state_space.hippo import normal_plus_low_rank_legs
from spade_model.state_space.recurrence import DenseRecurrence, Recurrence
from spade_model.state_space.s4_kernel import discretize_increment, real_output, s4_kernel
from spade_model.state_space.two_level import product_dtype


class S4(ContinuousStateSpace):
    """S4 (arXiv 2111.00396, SPADE section 3); the equations are in `s4_kernel`.

    Beside the tensors of its base class P [S, n, 2], and ``A = diag(w) - P P^H``.
    """

    P: Tensor

    def __init__(self, config: SpadeConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal, low_rank=True)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Set HiPPO-LegS, ``C`` complex normal, ``D`` normal, ``dt`` log-uniform."""
        legs = normal_plus_low_rank_legs(2 * self.frequency.shape[-1])
        self.log_decay.copy_(torch.log(-legs.w.real).expand_as(self.log_decay))
        self.frequency.copy_(legs.w.imag.expand_as(self.frequency))
        self.B.copy_(torch.view_as_real(legs.B).expand_as(self.B))
        self.P.copy_(torch.view_as_real(legs.P).expand_as(self.P))
        self.draw_outputs_and_steps()

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
