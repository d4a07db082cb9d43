"""The norms of the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from spade_model.config import SpadeConfig


class RootMeanSquareNorm(nn.RMSNorm):
    """RMSNorm in the precision of its weight, as autocast runs LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return super().forward(x.to(self.weight.dtype))


def make_norm(config: SpadeConfig, width: int | None = None) -> nn.Module:
    """Return the configured norm: LayerNorm with mean and bias, or RMSNorm.

    Args:
        config: The architecture.
        width: Features to normalise over; `SpadeConfig.d_model` if not given.
    """
    width = config.d_model if width is None else width
    if config.norm == "rms_norm":
        return RootMeanSquareNorm(width, eps=config.norm_epsilon)
    return nn.LayerNorm(width, eps=config.norm_epsilon)
