"""What gradients mean where one sequence is on several ranks, and how they become those of it.

Every rank computes the same loss l and calls ``backward`` on it. Each exchange passes gradients on
to the rank whose numbers it took, so a rank's gradient of a parameter is that of the *sum* of the
R equal losses by that rank's copy of it. The copies together have the gradient of R l. Hence

    gradient of the unsharded loss = mean over the group of the ranks' gradients,

for all parameters alike: those of the encoder, which sees each token on one rank, and those of the
decoder, which every rank computes. Gradients of one rank alone have no other meaning. An average
over all ranks of data x context parallelism is the mean over the samples of the gradients of whole
sequences, so whatever averages over all ranks (DDP, ZeRO) needs to know nothing of the groups.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spade_model.context_parallel.group import ContextGroup


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], group: ContextGroup) -> None:
    """Replace gradients by their mean over the group, which is that of the unsharded loss.

    For training loops that do not average over all ranks anyway. One message for each type.

    Args:
        parameters: The same on all ranks; those without a gradient are left out.
        group: Of the ranks.
    """
    if group.size == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_type.values():
        flat = torch.cat([x.reshape(-1) for x in gradients])
        dist.all_reduce(flat, group=group.process_group)
        flat /= group.size
        pieces = torch.split(flat, [x.numel() for x in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
