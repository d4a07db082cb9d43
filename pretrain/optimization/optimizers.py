"""The four optimizers, each over the same parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pretrain.optimization.parameter_groups import MATRIX, parameter_groups
from pretrain.optimization.settings import OptimizerSettings

SMALLEST_SCALE = 1e-3
"""Tensors that are smaller than this, such as biases that start at zero, move as if they had it."""


def make_optimizer(
    model: nn.Module, settings: OptimizerSettings, *, zero_stage: int
) -> torch.optim.Optimizer:
    """Build the optimizer of a run.

    Args:
        model: The module to train, its parameters whole and on their device.
        settings: Kind, rates and decay.
        zero_stage: How DeepSpeed will shard it.

    Returns:
        ``adamw``: torch's, fused. Its states are ``step``, ``exp_avg`` and ``exp_avg_sq``, and so
        are those of ``adamw_rms``. ``adafactor``: torch's, after Shazeer and Stern (2018): ``step``
        and ``row_var`` and ``col_var``, or ``variance`` for vectors; it caps its rate at
        ``1 / sqrt(updates)``. ``muon``: those of AdamW, or ``momentum_buffer`` for matrices.

    Raises:
        ConfigError: If the kind does not work at this stage or a pattern of the multipliers is
            wrong.
    """
    settings.check_sharding(zero_stage)
    groups = parameter_groups(model, settings)
    if settings.kind == "adamw_rms":
        return AdamWRms(groups, betas=settings.betas, epsilon=settings.epsilon)
    if settings.kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=settings.learning_rate)
    if settings.kind == "muon":
        return MuonWithAdamW(groups, settings)
    return _adamw(groups, settings)


class AdamWRms(torch.optim.Optimizer):
    """AdamW whose step is scaled by the size of what it changes, as Adafactor's is.

    ``p <- (1 - rate * decay) * p - rate * max(1e-3, RMS(p)) * m / (sqrt(v) + epsilon)`` with
    ``RMS(p) = |p| / sqrt(numbers of p)`` before the update, and ``m``, ``v`` Adam's bias-corrected
    moments. The recipe that nanoT5 found best for T5 (Nawrot 2023, arXiv 2309.02373), with
    epsilon where torch's AdamW has it.

    Tensors are updated one after another: no temporary memory beyond the largest one.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], epsilon: float
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": epsilon})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        count = int(state["step"])
        beta1, beta2 = group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = square.sqrt().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
        # The scale stays on the device: nobody waits for it.
        scale = (parameter.norm() / parameter.numel() ** 0.5).clamp_(min=SMALLEST_SCALE)
        update = denominator.reciprocal_().mul_(mean).mul_(scale)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] / (1 - beta1**count))


class MuonWithAdamW(torch.optim.Optimizer):
    """Orthogonal steps for the matrices of the layers, AdamW for everything else.

    Muon (Jordan et al. 2024) replaces the mean gradient of a matrix by the nearest matrix whose
    singular values are all alike. Its steps are brought to the size of AdamW's (``0.2 *
    sqrt(longer side)``; Liu et al. 2025, arXiv 2502.16982), so one learning rate serves both.
    torch's implementations do the work; both share this optimizer's groups and states.
    """

    def __init__(self, groups: list[dict[str, Any]], settings: OptimizerSettings) -> None:
        super().__init__(groups, {})
        matrices = [group for group in self.param_groups if _is_of_matrices(group)]
        others = [group for group in self.param_groups if not _is_of_matrices(group)]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices, momentum=settings.momentum, adjust_lr_fn="match_rms_adamw"
                )
            )
        if others:
            self._parts.append(_adamw(others, settings))
        for part in self._parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for part in self._parts:
            part.step()


def _is_of_matrices(group: dict[str, Any]) -> bool:
    return str(group["name"]).partition("_x")[0] == MATRIX


def _adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )
