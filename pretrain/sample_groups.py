"""Which ranks work on the same samples: one each, or those that share the input's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from data_pipeline.objectives.batch import Batch, SamplePart
from data_pipeline.permutation import IntegerArray
from data_pipeline.reading.quarantine import QuarantineEntry
from data_pipeline.reading.stream import PretrainingStream
from pretrain.model_inputs import model_inputs
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
    host: Any = None
    """The same ranks as a group of gloo, for what lies in the hosts' memory; None for one rank."""

    @property
    def part(self) -> SamplePart:
        """What this rank reads of each sample."""
        return SamplePart(self.context.rank, self.context.size)

    @property
    def speaks(self) -> bool:
        """Whether this rank tells what all ranks of its group know."""
        return self.context.rank == 0

    def read(self, stream: PretrainingStream, sample_indices: IntegerArray) -> Batch:
        """Read samples, each rank its part; every rank of the group must call this.

        Args:
            stream: Opened for `part` on each rank.
            sample_indices: [n] numbers of samples, the same on all ranks.

        Raises:
            DataError: If data are damaged and may not be gone around.
        """

        def make_whole(known: Iterable[QuarantineEntry]) -> Batch:
            return stream.make_whole(sample_indices, known)

        return self.complete(
            stream.batch(sample_indices), make_whole, lambda: stream.quarantine.entries
        )

    def complete(
        self,
        batch: Batch,
        make_whole: Callable[[Iterable[QuarantineEntry]], Batch],
        found: Callable[[], Iterable[QuarantineEntry]],
    ) -> Batch:
        """Give this rank what it must know of the other parts; every rank of the group calls this.

        Labels go round, as every rank needs all of them. Where a rank has met damage, all of them
        make the samples again, whole, until what is damaged is the same to all.

        Args:
            batch: This rank's part of some samples.
            make_whole: Makes the same samples whole, going around damage that it is told of.
            found: Tells the damage that this rank knows of.

        Returns:
            The batch with whole labels, or where there is damage the whole batch without it.

        Raises:
            DataError: If data are damaged and may not be gone around.
        """
        if batch.part is None:
            return batch
        labels, all_sound = self._gather_labels(batch)
        if all_sound:
            return replace(batch, labels=labels)
        known: set[QuarantineEntry] = set()
        while True:
            whole = make_whole(known)
            everyone: list[Any] = [None] * self.context.size
            dist.all_gather_object(everyone, tuple(found()), group=self.host)
            together = {entry for entries in everyone for entry in entries}
            if together == known:
                return whole
            known = together

    def _gather_labels(self, batch: Batch) -> tuple[np.ndarray, bool]:
        """All columns of the labels, and whether no rank has met damage."""
        assert batch.part is not None, "the caller looks"
        rows, dtype = len(batch.labels), batch.labels.dtype
        widths = batch.part.part.widths(batch.part.label_columns)
        mine = np.zeros(1 + rows * max(widths) * dtype.itemsize, dtype=np.uint8)
        mine[0] = not batch.part.is_sound
        mine[1 : 1 + batch.labels.nbytes] = np.frombuffer(batch.labels.tobytes(), dtype=np.uint8)
        everyone = [torch.empty(len(mine), dtype=torch.uint8) for _ in widths]
        dist.all_gather(everyone, torch.from_numpy(mine), group=self.host)
        pieces = [
            np.frombuffer(one.numpy()[1:].tobytes(), dtype, rows * width).reshape(rows, width)
            for one, width in zip(everyone, widths, strict=True)
        ]
        return np.concatenate(pieces, axis=1), not any(int(one[0]) for one in everyone)

    def inputs(self, batch: Batch, device: torch.device) -> dict[str, Any]:
        """Make of a batch what this rank's model is given.

        Args:
            batch: From `complete`.
            device: Where the model is.

        Returns:
            As of `share`.
        """
        made = model_inputs(batch, device)
        if batch.part is None:
            return self.share(made)
        lengths = batch.part.part.widths(batch.part.input_columns)
        return {**made, "part": ContextPart(self.context, lengths)}

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
    own = host = None
    for first in range(0, ranks.world_size, context):
        members = list(range(first, first + context))
        group, of_gloo = dist.new_group(members), dist.new_group(members, backend="gloo")
        if first == number * context:
            own, host = group, of_gloo
    assert own is not None, "every rank is in a group"
    return SampleGroup(number, count, ContextGroup.of(own), host)


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
