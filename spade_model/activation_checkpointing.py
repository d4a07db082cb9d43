"""Which activations a layer keeps for its backward pass, and which it computes again.

Chen et al. 2016 (arXiv 1604.06174) keep each layer's input alone; Korthikanti et al. 2022
(arXiv 2205.05198) keep what is dear to compute and small, and compute the rest again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from spade_model.config import CheckpointingKind

_PRODUCTS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.baddbmm.default,
    }
)


@dataclass(frozen=True)
class ActivationCheckpointing:
    """How the layers of a stack are run while training.

    Raises:
        ValueError: The kind is unknown, or `every_layers` is not positive.
    """

    kind: CheckpointingKind = "none"
    """`none` keeps all; `full` keeps a layer's input and computes the layer again; `selective`
    keeps the outputs of matrix products too, and computes only what is cheap again."""
    every_layers: int = 1
    """Of so many layers one is treated so, beginning with the first; 1 means all."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(CheckpointingKind):
            raise ValueError(
                f"activation checkpointing {self.kind!r} is unknown; use "
                f"{', '.join(get_args(CheckpointingKind))}"
            )
        if self.every_layers < 1:
            raise ValueError(f"every_layers is {self.every_layers}; give 1 or more")

    def __bool__(self) -> bool:
        return self.kind != "none"

    def run(self, layer: nn.Module, layer_index: int, *inputs: Any) -> Tensor:
        """Call a layer so that it keeps what this says.

        Args:
            layer: The layer.
            layer_index: Its place in the stack, from 0.
            inputs: Its arguments.
        """
        output: Tensor
        if not self or layer_index % self.every_layers:
            output = layer(*inputs)
        elif self.kind == "full":
            output = checkpoint(layer, *inputs, use_reentrant=False)
        else:
            contexts = partial(create_selective_checkpoint_contexts, _keep_products)
            output = checkpoint(layer, *inputs, use_reentrant=False, context_fn=contexts)
        return output


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operation in _PRODUCTS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
