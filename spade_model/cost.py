"""What a configuration costs, by arithmetic alone: parameters and floating-point operations.

Nothing is built, so a planner can ask about models that no machine at hand could hold. The tests
compare every number with the real modules. Bytes of activations are in `memory_cost`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from spade_model.config import SpadeConfig
from spade_model.cuts import attention_reach, cut_for_products, cut_for_tiles, split_length

AttentionWork = Literal["exact", "reference", "blocked", "tiled"]
"""Which scores are counted: those that may be seen, or those a backend computes."""


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of learned values; `total` is the sum of embedding, encoder and decoder."""

    total: int
    """Everything that receives a gradient, the tied head counted once."""
    embedding: int
    """The token embedding, which is also the output head."""
    encoder: int
    """The encoder with its state space."""
    decoder: int
    """The decoder with its positions, or the causal language model with its state space."""
    state_space: int
    """The learned part of the state-space layers, contained in the stack."""
    state_space_constants: int
    """Values saved with the state-space layers but not learned, in no other number."""


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations by component; a multiply-add is two.

    Not counted are element-wise operations, and the state-space kernels: they are made once for a
    batch, see `kernel_flops_per_forward`.
    """

    projections: int
    """Of all attentions: queries, keys, values, outputs."""
    attention: int
    """Scores and weighted sums."""
    feed_forward: int
    """Both projections of all feed-forward sublayers."""
    aggregate: int
    """Joining global and local."""
    convolution: int
    """Transforms and products of the state space's long convolution."""
    head: int
    """Logits."""

    @property
    def total(self) -> int:
        """The sum."""
        return sum(dataclasses.astuple(self))


def learned_and_constant_state_space_values(config: SpadeConfig) -> tuple[int, int]:
    """Return how many values of one state-space layer are learned and how many are not."""
    half, copies, width = config.state_dim // 2, config.num_state_space_copies, config.d_model
    outputs = config.state_space_channels * width
    directions = 1 if config.is_causal_lm else 2
    if config.state_space == "ema":
        averages = directions * (3 * width + outputs) * config.state_dim
        return (
            (averages + outputs, 0) if "D" in config.trainable_state_space else (averages, outputs)
        )
    sizes = {
        "C": directions * outputs * half * 2,
        "D": outputs,
        "log_dt": width,
        "A": copies * half * 2,
        "B": copies * half * 2,
    }
    if config.state_space == "s4":
        sizes["P"] = copies * half * 2
    learned = sum(sizes[name] for name in config.trainable_state_space)
    return learned, sum(sizes.values()) - learned


def _norm_parameters(config: SpadeConfig, width: int) -> int:
    return width * (2 if config.norm == "layer_norm" else 1)


def _feed_forward_inputs(config: SpadeConfig) -> int:
    """Width of the first feed-forward projection."""
    return config.d_ff * (2 if config.feed_forward == "gated_gelu" else 1)


def _feed_forward_parameters(config: SpadeConfig, *, bias: bool) -> int:
    inner = _feed_forward_inputs(config)
    weights = config.d_model * (inner + config.d_ff)
    return weights + (inner + config.d_model if bias else 0)


def _joining_parameters(config: SpadeConfig) -> int:
    """What a layer has for joining its state space: two norms and a projection."""
    if config.combine == "stack":
        return 0
    outputs = config.state_space_channels * config.d_model
    norms = _norm_parameters(config, outputs) + _norm_parameters(config, config.d_model)
    if config.combine == "add":
        return norms
    return norms + (outputs + config.d_model + 1) * config.d_model


def _stack_norms(config: SpadeConfig) -> int:
    return _norm_parameters(config, config.d_model) * (config.embedding_norm + config.final_norm)


def _long_stack_parameters(config: SpadeConfig, state_space: int) -> int:
    width, inner = config.d_model, config.inner_dim
    norms = 2 * _norm_parameters(config, width)
    biases = 3 * inner + width if config.attention_bias else 0
    layer = norms + 4 * width * inner + biases
    layer += _feed_forward_parameters(config, bias=config.feed_forward_bias)
    tables = 0
    if config.position == "relative_bias":
        tables = 1 if config.shared_relative_bias else config.num_long_layers
    table = config.relative_attention_num_buckets * config.num_heads
    joining = len(config.state_space_layer_indices) * _joining_parameters(config)
    layers = config.num_long_layers * layer + tables * table + joining + state_space
    return layers + _stack_norms(config)


def _decoder_parameters(config: SpadeConfig) -> int:
    width, inner = config.d_model, config.inner_dim
    attention = 4 * width * inner + (3 * inner + width if config.decoder_bias else 0)
    bias = config.feed_forward_bias or config.decoder_bias
    layer = 2 * attention + _feed_forward_parameters(config, bias=bias)
    layer += 3 * _norm_parameters(config, width)
    positions = 0
    if config.decoder_position == "learned":
        positions = config.max_target_length_tokens * width
    elif config.decoder_position == "relative_bias":
        positions = config.relative_attention_num_buckets * config.num_heads
    return config.num_decoder_layers * layer + positions + _stack_norms(config)


def count_parameters(config: SpadeConfig) -> ParameterCount:
    """Count the parameters of the model of a configuration without building it."""
    learned, constant = learned_and_constant_state_space_values(config)
    num_state_space = len(config.state_space_layer_indices)
    state_space = num_state_space * learned
    long_stack = _long_stack_parameters(config, state_space)
    embedding = config.vocab_size * config.d_model
    encoder = 0 if config.is_causal_lm else long_stack
    decoder = long_stack if config.is_causal_lm else 0
    if config.is_encoder_decoder:
        decoder = _decoder_parameters(config)
    return ParameterCount(
        total=embedding + encoder + decoder,
        embedding=embedding,
        encoder=encoder,
        decoder=decoder,
        state_space=state_space,
        state_space_constants=num_state_space * constant,
    )


def attention_scores(config: SpadeConfig, length_tokens: int, work: AttentionWork) -> int:
    """Return the scores of one head over one sequence of the long stack.

    Args:
        config: The architecture.
        length_tokens: L.
        work: What is counted.
    """
    reach = attention_reach(config, length_tokens, causal=config.is_causal_lm)
    if work == "reference":
        return length_tokens * length_tokens
    if work == "blocked":
        return cut_for_products(reach).num_scores
    if work == "tiled":
        return cut_for_tiles(reach).num_scores
    both = reach.right_tokens > 0
    if reach.chunk_tokens is not None:
        whole, rest = divmod(length_tokens, reach.chunk_tokens)
        pairs = [(whole, reach.chunk_tokens), (1, rest)]
        return sum(n * (c * c if both else c * (c + 1) // 2) for n, c in pairs)
    side = reach.left_tokens
    one_side = length_tokens * side - side * (side + 1) // 2
    return length_tokens + one_side * (2 if both else 1)


def forward_flops_per_sample(
    config: SpadeConfig,
    input_length_tokens: int,
    target_length_tokens: int,
    work: AttentionWork = "exact",
) -> FlopCount:
    """Return the operations of one forward pass over one sample.

    Args:
        config: The architecture.
        input_length_tokens: L, of the long stack.
        target_length_tokens: T, of the decoder; the causal language model and the encoder alone
            have none.
        work: Which scores of the attention are counted.
    """
    source, target = input_length_tokens, target_length_tokens
    width, inner = config.d_model, config.inner_dim
    position_wise = width * (_feed_forward_inputs(config) + config.d_ff)
    num_state_space = len(config.state_space_layer_indices)
    outputs = config.state_space_channels * width

    projections = config.num_long_layers * source * 4 * width * inner
    attention = config.num_long_layers * 2 * attention_scores(config, source, work) * inner
    feed_forward = config.num_long_layers * source * position_wise
    aggregate = 0
    if config.combine == "concat":
        aggregate = num_state_space * source * (outputs + width) * width
    head = source * width * config.vocab_size if config.is_causal_lm else 0
    if config.is_encoder_decoder:
        layers = config.num_decoder_layers
        projections += layers * ((4 * target + 2 * target) * width * inner)
        projections += layers * 2 * source * width * inner
        own = target * (target + 1) // 2 if work == "exact" else target * target
        attention += layers * 2 * (own + target * source) * inner
        feed_forward += layers * target * position_wise
        head = target * width * config.vocab_size
    # A real transform of n numbers is about 2.5 n log2(n): one of the input, one back for each
    # channel, and a complex product of half as many frequencies.
    circle = 2 * source
    transform = 2.5 * circle * math.log2(max(circle, 2))
    channels = config.state_space_channels
    convolution = width * round(transform * (1 + channels) + 3 * circle * channels)
    return FlopCount(
        projections=2 * projections,
        attention=2 * attention,
        feed_forward=2 * feed_forward,
        aggregate=2 * aggregate,
        convolution=num_state_space * convolution,
        head=2 * head,
    )


def backward_flops_per_sample(
    config: SpadeConfig,
    input_length_tokens: int,
    target_length_tokens: int,
    work: AttentionWork = "exact",
    *,
    activation_checkpointing: bool = False,
) -> FlopCount:
    """Return the operations of the gradients of one sample: twice those of the forward pass.

    ``tiled`` attention makes its scores once more; with activation checkpointing the layers are
    computed once more, all but the head.
    """
    forward = forward_flops_per_sample(config, input_length_tokens, target_length_tokens, work)
    again = 1 if activation_checkpointing else 0
    counts = {
        field.name: (2 + again) * getattr(forward, field.name)
        for field in dataclasses.fields(forward)
    }
    counts["head"] = 2 * forward.head
    if work == "tiled":
        scores = attention_scores(config, input_length_tokens, work)
        counts["attention"] += 2 * config.num_long_layers * scores * config.inner_dim
    return FlopCount(**counts)


def training_flops_per_sample(
    config: SpadeConfig, input_length_tokens: int, target_length_tokens: int
) -> int:
    """Return the work of the model in one step: forward and backward over the scores that count.

    This is what utilisation is measured by. What a backend or activation checkpointing computes
    on top is not the model's work.
    """
    sample = (config, input_length_tokens, target_length_tokens)
    return forward_flops_per_sample(*sample).total + backward_flops_per_sample(*sample).total


def kernel_flops_per_forward(config: SpadeConfig, input_length_tokens: int) -> int:
    """Return the operations of making the state-space kernels, once for a batch of any size.

    Counted are the matrix products. A kernel made of constants alone is made once for many batches
    and costs nothing in the long run; here it is counted nevertheless.
    """
    states = config.state_dim
    num_rows, num_columns = split_length(input_length_tokens)
    directions = 1 if config.is_causal_lm else 2
    kernels = directions * config.state_space_channels
    final = kernels * num_rows * num_columns * states
    if config.state_space == "s4":
        # Columns and rows by doubling, with the transition squared in between.
        squarings = num_columns.bit_length() - 1 + max(0, (num_rows - 1).bit_length() - 1)
        learns_dt = "log_dt" in config.trainable_state_space
        fixed = not {"A", "B", "P"} & set(config.trainable_state_space)
        vectors = 3 if learns_dt and fixed else 1
        made = vectors * (num_columns - 1) + kernels * (num_rows - 1)
        final += squarings * states**3 + made * states**2
    return len(config.state_space_layer_indices) * config.d_model * 2 * final
