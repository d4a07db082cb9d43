"""What a rank sends, from a configuration alone: nothing of it grows with the length.

Per layer and sample, r the radius, i the width of all heads, N the state size, d the width of the
model, T target tokens, R ranks:

    local attention    4 r i numbers forward, as many gradients backward: r keys and values to
                       either neighbour (half of it if causal)
    state space        (R - 1) d N numbers forward, as many gradients backward: one state to every
                       other rank
    cross-attention    (R - 1) T (i + h) numbers forward, h heads, and (R - 1) T i gradients
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spade_model.config import SpadeConfig
from spade_model.context_parallel.halo import make_halo

_PRECISE_BYTES = 4
"""States, and the decoder's attention before it is merged, are float32 whatever the activations."""


@dataclass(frozen=True)
class LayerTraffic:
    """Bytes that one rank sends to the others for one layer."""

    forward_bytes: int
    """Once more wherever activation checkpointing computes the layer again."""
    backward_bytes: int


def attention_traffic(
    config: SpadeConfig,
    lengths_tokens: Sequence[int],
    rank: int,
    *,
    batch_size: int,
    activation_bytes: int,
    causal: bool = False,
) -> LayerTraffic:
    """Return what local attention of one layer sends.

    Args:
        config: The architecture.
        lengths_tokens: Of the parts of all ranks. Only where parts are shorter than the radius does
            it matter what they are.
        rank: Whose.
        batch_size: Sequences.
        activation_bytes: Of one number: 4 in float32, 2 in half precision.
        causal: Whether tokens see no future.
    """
    reach = config.local_radius_tokens
    halo = make_halo(lengths_tokens, rank, reach, 0 if causal else reach)
    token_bytes = batch_size * 2 * config.inner_dim * activation_bytes
    # What comes in goes back as gradients.
    returned = halo.left_tokens + halo.right_tokens
    return LayerTraffic(halo.num_sent * token_bytes, returned * token_bytes)


def state_space_traffic(
    config: SpadeConfig,
    size: int,
    rank: int,
    *,
    batch_size: int,
    state_bytes: int = _PRECISE_BYTES,
    causal: bool = False,
) -> LayerTraffic:
    """Return what the state space of one layer sends.

    Args:
        config: The architecture.
        size: Ranks of the group.
        rank: Whose.
        batch_size: Sequences.
        state_bytes: Of one number of a state: 8 if the model is float64.
        causal: Whether states pass in one direction only.
    """
    one = batch_size * config.d_model * config.state_dim * state_bytes
    to, back = (size - 1 - rank, rank) if causal else (size - 1, size - 1)
    return LayerTraffic(to * one, back * one)


def cross_attention_traffic(
    config: SpadeConfig,
    size: int,
    *,
    batch_size: int,
    target_tokens: int,
    activation_bytes: int,
) -> LayerTraffic:
    """Return what the cross-attention of one decoder layer sends.

    Args:
        config: The architecture.
        size: Ranks of the group.
        batch_size: Sequences.
        target_tokens: T, 1 for a step of decoding.
        activation_bytes: Of one number: 4 in float32, 2 in half precision.
    """
    precise = max(_PRECISE_BYTES, activation_bytes)
    rows = (size - 1) * batch_size * target_tokens
    return LayerTraffic(
        rows * (config.inner_dim + config.num_heads) * precise,
        rows * config.inner_dim * activation_bytes,
    )
