"""What a rank sends, from a configuration alone: nothing of it grows with the length.

Per layer and sample, r the radius, i the width of all heads, N the state size, d the width of the
model, T target tokens, R ranks:

    local attention    4 r i numbers forward, as many gradients backward: r keys and values to
                       either neighbour (half of it if causal)
    state space        (R - 1) d N numbers forward, as many gradients backward: one state to every
                       other rank
    cross-attention    (R - 1) T (i + h) numbers forward, h heads, and (R - 1) T i gradients

Beside these a rank tells the others a few whole numbers about each batch before the layers begin,
and its neighbours which tokens of a window are padded and whose they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spade_model.config import SpadeConfig
from spade_model.context_parallel.checks import cut_lengths
from spade_model.context_parallel.halo import make_halo

_INTEGER_BYTES = 8
_AGREED_INTEGERS = 7
"""What `spade_model.context_parallel.part` compares between ranks."""
_EDGE_INTEGERS = 4
"""Of each row, what all ranks are told of a part's padding and documents."""
_PRECISE_BYTES = 4
"""States, and the decoder's attention before it is merged, are float32 whatever the activations."""


@dataclass(frozen=True)
class LayerTraffic:
    """Bytes that one rank sends to the others for one layer."""

    forward_bytes: int
    """Once more wherever activation checkpointing computes the layer again."""
    backward_bytes: int

    def step_bytes(self, *, again: bool) -> int:
        """Return what a forward and a backward pass send.

        Args:
            again: Whether activation checkpointing computes the layer again.
        """
        return (2 if again else 1) * self.forward_bytes + self.backward_bytes


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


def batch_traffic(
    config: SpadeConfig, lengths_tokens: Sequence[int], rank: int, *, batch_size: int, masked: bool
) -> int:
    """Return the bytes that a rank sends before the layers begin, in each forward pass.

    Args:
        config: The architecture.
        lengths_tokens: Of the parts of all ranks.
        rank: Whose.
        batch_size: Sequences.
        masked: Whether there is a mask, or segment ids.
    """
    others = len(lengths_tokens) - 1
    integers = others * _AGREED_INTEGERS
    if masked:
        halo = make_halo(lengths_tokens, rank, *[config.local_radius_tokens] * 2)
        integers += batch_size * (2 * halo.num_sent + _EDGE_INTEGERS * others)
    return _INTEGER_BYTES * integers


def training_traffic(
    config: SpadeConfig,
    size: int,
    *,
    batch_size: int,
    input_tokens: int,
    target_tokens: int,
    activation_bytes: int,
    masked: bool,
    recomputed_every_layers: int | None = None,
) -> int:
    """Return the bytes that a rank sends for one forward and backward pass of an encoder-decoder.

    Of the rank that sends most, which has neighbours on both sides if any rank has.

    Args:
        config: The architecture.
        size: Ranks of the group; inputs are cut as equally as can be.
        batch_size: Sequences.
        input_tokens: Of whole inputs.
        target_tokens: T.
        activation_bytes: Of one number: 4 in float32, 2 in half precision.
        masked: Whether rows are padded or packed.
        recomputed_every_layers: Of so many layers of a stack the first is computed again in the
            backward pass, by either kind of activation checkpointing; None: no layer is.

    Raises:
        ValueError: There are fewer tokens than ranks.
    """
    if size == 1:
        return 0
    every, lengths = recomputed_every_layers, cut_lengths(input_tokens, size)
    across = cross_attention_traffic(
        config,
        size,
        batch_size=batch_size,
        target_tokens=target_tokens,
        activation_bytes=activation_bytes,
    )
    decoder = sum(
        across.step_bytes(again=every is not None and index % every == 0)
        for index in range(config.num_decoder_layers)
    )

    def encoder(rank: int) -> int:
        attention = attention_traffic(
            config, lengths, rank, batch_size=batch_size, activation_bytes=activation_bytes
        )
        states = state_space_traffic(config, size, rank, batch_size=batch_size)
        total = batch_traffic(config, lengths, rank, batch_size=batch_size, masked=masked)
        for index in range(config.num_encoder_layers):
            again = every is not None and index % every == 0
            total += attention.step_bytes(again=again)
            if index in config.state_space_layer_indices:
                total += states.step_bytes(again=again)
        return total

    return decoder + max(encoder(rank) for rank in range(size))
