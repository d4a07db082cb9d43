"""S4D: a diagonal state matrix with one of three initial spectra."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.state_space.continuous import ContinuousStateSpace
from spade_model.state_space.hippo import normal_plus_low_rank_legs
from spade_model.state_space.recurrence import DiagonalRecurrence, Recurrence
from spade_model.state_space.s4_kernel import tile
from spade_model.state_space.symbolic import is_symbolic, symbolic_diagonal_kernel
from spade_model.state_space.two_level import diagonal_kernel, product_dtype, state_space_dtype


def initial_frequencies(kind: str, state_dim: int) -> Tensor:
    """Return Im w of an initial spectrum (arXiv 2206.11893, section 4).

    ``s4d_lin``: ``-pi n``; ``s4d_inv``: ``-(N / pi) (N / (2 n + 1) - 1)``; ``s4d_legs``: what
    HiPPO-LegS has without its low-rank part.

    Args:
        kind: One of the three.
        state_dim: N.

    Returns:
        [N / 2] float64.
    """
    index = torch.arange(state_dim // 2, dtype=torch.float64, device="cpu")
    if kind == "s4d_lin":
        return -math.pi * index
    if kind == "s4d_inv":
        return -state_dim / math.pi * (state_dim / (2 * index + 1) - 1)
    assert kind == "s4d_legs"
    return normal_plus_low_rank_legs(state_dim).w.imag


def discretize_diagonal(
    log_decay: Tensor, frequency: Tensor, B: Tensor, log_dt: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """Discretise ``w = -exp(log_decay) + i frequency``, in float64.

    ``bilinear``: ``a = (1 + dt/2 w) / (1 - dt/2 w)``, ``b = dt B / (1 - dt/2 w)``;
    ``zero_order_hold``: ``a = exp(dt w)``, ``b = (a - 1) / w B``.

    Args:
        log_decay: [S, n].
        frequency: [S, n].
        B: Real pairs [S, n, 2].
        log_dt: [H], S divides H.
        rule: One of the two.

    Returns:
        log a and b, complex128 [H, n].
    """
    num_features = log_dt.shape[0]
    w = tile(torch.complex(-torch.exp(log_decay.double()), frequency.double()), num_features)
    inputs = tile(torch.view_as_complex(B.double()), num_features)
    dt = torch.exp(log_dt.double())[:, None]
    if rule == "zero_order_hold":
        log_a = dt * w
        return log_a, (torch.exp(log_a) - 1) / w * inputs
    half = dt / 2 * w
    return torch.log(1 + half) - torch.log(1 - half), dt * inputs / (1 - half)


class S4D(ContinuousStateSpace):
    """S4D (arXiv 2206.11893): ``A = diag(w)``, ``K[t] = 2 Re sum_n C_n a_n^t b_n``."""

    def __init__(self, config: SpadeConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal, low_rank=False)
        self.kind = config.state_space
        self.rule = config.state_space_discretization
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Set ``Re w = -1/2`` and the spectrum, ``B = 1``, C, D and dt as S4 does."""
        frequencies = initial_frequencies(self.kind, 2 * self.frequency.shape[-1])
        self.log_decay.fill_(math.log(0.5))
        self.frequency.copy_(frequencies.expand_as(self.frequency))
        self.B.copy_(torch.tensor([1.0, 0.0], device="cpu").expand_as(self.B))
        self.draw_outputs_and_steps()

    def _system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return log a [H, n], b [H, n] and 2 C [K, H, n], complex128."""
        log_a, inputs = discretize_diagonal(
            self.log_decay, self.frequency, self.B, self.log_dt, self.rule
        )
        return log_a, inputs, 2 * torch.view_as_complex(self.C.double())

    def compute_kernel(self, length_tokens: int) -> Tensor:
        """Return the kernels [directions, channels * H, L]."""
        log_a, inputs, outputs = self._system()
        make = symbolic_diagonal_kernel if is_symbolic(length_tokens) else diagonal_kernel
        kernels = make(outputs * inputs, log_a, length_tokens, product_dtype(self.C))
        kernels = kernels.to(state_space_dtype(self.C))
        return kernels.reshape(self.num_directions, -1, length_tokens)

    def compute_recurrence(self) -> Recurrence:
        """Return the diagonal complex recurrence."""
        return DiagonalRecurrence(*self._system(), dtype=state_space_dtype(self.C))
