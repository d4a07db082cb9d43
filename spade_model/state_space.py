"""The bidirectional S4 layer: parameters, kernel, convolution, skip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spade_model.config import SpadeConfig
from spade_model.fft_convolution import fft_convolution
from spade_model.hippo import normal_plus_low_rank_legs
from spade_model.state_space_kernel import state_space_kernel

# The names that `trainable_state_space` uses, and the tensors that hold each of them.
_TENSORS_OF = {
    "C": ("C",),
    "D": ("D",),
    "log_dt": ("log_dt",),
    "A": ("log_decay", "frequency"),
    "B": ("B",),
    "P": ("P",),
}


class StateSpace(nn.Module):
    """S4 over a whole sequence, forwards and backwards (arXiv 2111.00396, SPADE section 3).

    ``y[t] = sum_{j>=0} K0[j] u[t-j] + sum_{j>=0} K1[j] u[t+1+j] + D u[t]`` for each feature, with
    the kernels of `spade_model.state_space_kernel`. Everything is computed in float32 at least,
    outside autocast. What is not in `trainable_state_space` is a buffer, saved with the weights;
    gradients reach the input in any case.

    Shapes, with H = d_model, n = state_dim / 2 and S = num_state_space_copies: C [2, H, n, 2]
    (past and future; real pairs), D [H], log_dt [H], B and P [S, n, 2], and ``A = diag(w) - P P^H``
    by ``log_decay = log(-Re w)`` and ``frequency = Im w`` [S, n].
    """

    C: Tensor
    D: Tensor
    log_dt: Tensor
    log_decay: Tensor
    frequency: Tensor
    B: Tensor
    P: Tensor

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.dt_range = (config.dt_min, config.dt_max)
        features, half = config.d_model, config.state_dim // 2
        copies = config.num_state_space_copies
        shapes = {
            "C": (2, features, half, 2),
            "D": (features,),
            "log_dt": (features,),
            "log_decay": (copies, half),
            "frequency": (copies, half),
            "B": (copies, half, 2),
            "P": (copies, half, 2),
        }
        for quantity, names in _TENSORS_OF.items():
            for name in names:
                values = torch.empty(shapes[name], dtype=torch.float32)
                if quantity in config.trainable_state_space:
                    self.register_parameter(name, nn.Parameter(values))
                else:
                    self.register_buffer(name, values)
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

    def kernel(self, length_tokens: int) -> Tensor:
        """Return the kernels for past and future [2, H, L], float32 or float64."""
        with torch.autocast(self.C.device.type, enabled=False):
            return state_space_kernel(
                C=self.C,
                B=self.B,
                P=self.P,
                log_decay=self.log_decay,
                frequency=self.frequency,
                log_dt=self.log_dt,
                length_tokens=length_tokens,
            )

    def forward(self, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """Run the layer.

        Args:
            hidden: [B, L, H].
            valid: Bool [B, L], False where padded, or None. Padded inputs count as zero; outputs
                at padded positions are not.

        Returns:
            [B, L, H] in the type of `hidden`.
        """
        kernel = self.kernel(hidden.shape[1])
        masked = hidden if valid is None else hidden.masked_fill(~valid[:, :, None], 0)
        # Nothing below is a matrix product, so autocast leaves it in the type of the kernel.
        u = masked.to(kernel.dtype).transpose(1, 2).contiguous()
        y = fft_convolution(u, kernel[0], kernel[1]) + self.D.to(u.dtype)[:, None] * u
        return y.transpose(1, 2).to(hidden.dtype)
