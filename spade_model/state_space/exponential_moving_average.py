"""The multi-dimensional damped exponential moving average of MEGA (arXiv 2209.10655)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from spade_model.config import SpadeConfig
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.recurrence import DiagonalRecurrence, Recurrence
from spade_model.state_space.symbolic import is_symbolic, symbolic_diagonal_kernel
from spade_model.state_space.two_level import diagonal_kernel, product_dtype, state_space_dtype


class ExponentialMovingAverage(SequenceMixer):
    """N damped averages for each feature, real and diagonal (equations 2 to 4 of the paper).

    ``x_t = alpha beta u_t + (1 - alpha delta) x_{t-1}, y_t = eta x_t / sqrt(N)`` with alpha and
    delta in (0, 1), so ``K[t] = sum_n eta alpha beta (1 - alpha delta)^t / sqrt(N)``. The future
    has averages of its own. D is the weight that the paper calls omega; all but D is learned in
    any case.

    Shapes: alpha_logit, delta_logit and beta [directions, H, N], eta
    [directions * channels, H, N], D [channels * H].
    """

    alpha_logit: Tensor
    delta_logit: Tensor
    beta: Tensor
    eta: Tensor

    def __init__(self, config: SpadeConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        system = (self.num_directions, config.d_model, config.state_dim)
        self.declare(
            {
                "averages": {"alpha_logit": system, "delta_logit": system, "beta": system},
                "eta": {"eta": (self.num_directions * self.num_channels, *system[1:])},
                "D": {"D": (self.num_channels * config.d_model,)},
            },
            {"averages", "eta", *config.trainable_state_space},
        )
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Start near one half: logits N(0, 0.2^2), beta N(0, 0.02^2) about +1 and -1 in turn.

        The averages of a feature would be alike but for these signs. eta and D are normal.
        """
        self.alpha_logit.normal_(std=0.2)
        self.delta_logit.normal_(std=0.2)
        self.beta.normal_(std=0.02)
        self.beta[..., ::2] += 1
        self.beta[..., 1::2] -= 1
        self.eta.normal_()
        self.D.normal_()

    def _system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return log a and b [directions * H, N] and C [channels, directions * H, N], float64."""
        log_alpha = functional.logsigmoid(self.alpha_logit.double())
        log_both = log_alpha + functional.logsigmoid(self.delta_logit.double())
        # Logits of 40 and above make the product round to 1; its transition is as good as 0.
        log_a = torch.log1p(-torch.exp(log_both).clamp(max=1 - 1e-15))
        inputs = torch.exp(log_alpha) * self.beta.double()
        outputs = self.eta.double() * self.eta.shape[-1] ** -0.5
        outputs = outputs.view(self.num_directions, self.num_channels, *outputs.shape[1:])
        return log_a.flatten(0, 1), inputs.flatten(0, 1), outputs.transpose(0, 1).flatten(1, 2)

    def compute_kernel(self, length_tokens: int) -> Tensor:
        """Return the kernels [directions, channels * H, L]."""
        log_a, inputs, outputs = self._system()
        make = symbolic_diagonal_kernel if is_symbolic(length_tokens) else diagonal_kernel
        kernels = make(outputs * inputs, log_a, length_tokens, product_dtype(self.eta))
        kernels = kernels.view(self.num_channels, self.num_directions, -1, length_tokens)
        return kernels.transpose(0, 1).flatten(1, 2).to(state_space_dtype(self.eta))

    def compute_recurrence(self) -> Recurrence:
        """Return the diagonal real recurrence."""
        return DiagonalRecurrence(*self._system(), dtype=state_space_dtype(self.eta))
