"""What the ranks of a step tell each other, and how long that takes.

Gradients and weights travel in float32. A ring over W ranks makes each of them send (W - 1) / W of
a buffer to gather or to scatter it and twice that to reduce it for all, which is the least possible
(Patarasuk and Yuan 2009). DeepSpeed 0.19 reduces the buckets of stages 1 and 2 for all ranks
although each needs only its share, so ZeRO's promise that they cost no more than plain data
parallelism does not hold with it.

Ranks that share inputs (`parallel.context`) also send each other what the layers ask for, in both
passes; `spade_model.context_parallel.cost` has the formulas. None of it grows with the length.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.planning.devices import Device
from pretrain.planning.memory import FLOAT32_BYTES, Sharding

LINK_EFFICIENCY = 0.75
"""Share of a link's rate that large collectives reach."""


@dataclass(frozen=True)
class Communication:
    """One optimizer step, as each rank sees it."""

    reduced_bytes: int
    """Gradients that are summed, counted once however often a ring sends them."""
    gathered_bytes: int
    """Weights that are collected from all ranks."""
    sent_bytes: int
    """What a rank sends of these."""
    context_ranks: int = 1
    """Ranks that share inputs."""
    context_bytes: int = 0
    """What a rank sends to those of its inputs; of the rank that sends most."""

    def seconds(self, device: Device, nodes: int, devices_per_node: int) -> float:
        """Time of gradients and weights on the wire at `LINK_EFFICIENCY`, if nothing else goes on.

        Rings over several nodes use all adapters of a node at once, so that the slower of the link
        within a node and a node's adapters together sets the pace.

        Args:
            device: Whose links.
            nodes: Number of nodes.
            devices_per_node: Ranks on each.
        """
        rate = device.link_bytes_per_second
        if nodes > 1:
            rate = min(rate, devices_per_node * device.network_bytes_per_second)
        return self.sent_bytes / (LINK_EFFICIENCY * rate)

    def context_seconds(self, device: Device, nodes: int, devices_per_node: int) -> float:
        """The same of what is sent to the ranks of the same inputs, for which layers wait.

        Such ranks are neighbours. Where they are not all on one node, each is counted as if it sent
        everything through its own adapter.

        Args:
            device: Whose links.
            nodes: Number of nodes.
            devices_per_node: Ranks on each.
        """
        rate = device.link_bytes_per_second
        if nodes > 1 and devices_per_node % self.context_ranks:
            rate = min(rate, device.network_bytes_per_second)
        return self.context_bytes / (LINK_EFFICIENCY * rate)


def plan_communication(
    parameters: int,
    embedding_parameters: int,
    sharding: Sharding,
    micro_batches: int,
    *,
    context_ranks: int = 1,
    context_bytes: int = 0,
) -> Communication:
    """Count the bytes of one optimizer step.

    Args:
        parameters: Numbers that are trained.
        embedding_parameters: Those of the embedding, which encoder, decoder and head share.
        sharding: Stage and ranks.
        micro_batches: Of one step on one rank.
        context_ranks: Ranks that share inputs.
        context_bytes: What a rank sends to these for one micro-batch.
    """
    whole = FLOAT32_BYTES * parameters
    ranks = sharding.world_size
    part = (ranks - 1) / ranks
    stage = sharding.zero_stage
    reduced = whole * (micro_batches if stage >= 2 else 1)
    gathered = whole if stage in (1, 2) else 0
    if stage == 3:
        gathered = whole * micro_batches  # kept from the forward to the backward pass
        if sharding.live_elements < parameters:
            gathered = 2 * (whole + FLOAT32_BYTES * embedding_parameters) * micro_batches
    passes = 1 if stage == 3 else 2
    return Communication(
        reduced_bytes=reduced,
        gathered_bytes=gathered,
        sent_bytes=round(part * (passes * reduced + gathered)),
        context_ranks=context_ranks,
        context_bytes=micro_batches * context_bytes,
    )
