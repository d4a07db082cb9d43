"""Which ranks work on the same samples: one each, or those that share the input's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from pretrain.ranks import Ranks
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart

_ALONG_THE_INPUT = ("input_ids", "attention_mask", "segment_ids")


@dataclass(frozen=True)
class SampleGroup:
    """This rank's group among those that see different samples."""

    number: int
    """From 0; samples and dropout follow from it, so that they are the same within a group."""
    count: int
    """Groups of the run."""
    context: ContextGroup
    """The ranks of the group, in the order of their parts."""

    @property
    def speaks(self) -> bool:
        """Whether this rank tells what all ranks of its group know."""
        return self.context.rank == 0

    def share(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keep what this rank is to read.

        Args:
            inputs: Of whole samples, as `pretrain.model_inputs` makes them; the same on all ranks
                of the group.

        Returns:
            Arguments of `SpadeForSeq2Seq.forward`: this rank's part of the input, whole targets,
            and `part`, by which the ranks find each other. Inputs of fewer tokens than ranks are
            padded first.
        """
        if self.context.size == 1:
            return dict(inputs)
        padded = _at_least(inputs, self.context.size)
        part = ContextPart.of(self.context, padded["input_ids"].shape[1])
        own = {
            # Copied, so that the whole can be let go.
            name: value[:, part.tokens].contiguous() if name in _ALONG_THE_INPUT else value
            for name, value in padded.items()
        }
        return {**own, "part": part}


def make_sample_group(ranks: Ranks, context: int) -> SampleGroup:
    """Divide the ranks into groups of neighbours; every rank must call this.

    Args:
        ranks: This process's place.
        context: Ranks of a group, a divisor of their number.
    """
    assert ranks.world_size % context == 0, "checked with the configuration"
    number, count = ranks.rank // context, ranks.world_size // context
    if context == 1:
        return SampleGroup(number, count, ContextGroup.alone())
    own = None
    for first in range(0, ranks.world_size, context):
        group = dist.new_group(list(range(first, first + context)))
        if first == number * context:
            own = group
    assert own is not None, "every rank is in a group"
    return SampleGroup(number, count, ContextGroup.of(own))


def _at_least(inputs: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Pad inputs to so many tokens; what is added is masked."""
    missing = tokens - inputs["input_ids"].shape[1]
    if missing <= 0:
        return dict(inputs)
    mask = inputs.get("attention_mask")
    if mask is None:
        mask = inputs["input_ids"].new_ones(inputs["input_ids"].shape).bool()
    whole = {**inputs, "attention_mask": mask}
    return {
        name: functional.pad(value, (0, missing)) if name in _ALONG_THE_INPUT else value
        for name, value in whole.items()
    }
