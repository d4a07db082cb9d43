"""What a configuration costs, by arithmetic alone: parameters, FLOPs, activation bytes.

Nothing is built, so a planner can ask about models that no machine at hand could hold. The tests
compare every number with the real modules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from spade_model.config import SpadeConfig

_FLOAT32_BYTES = 4


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
    """The decoder with its positions."""
    state_space: int
    """The learned part of the state-space layers, contained in `encoder`."""
    state_space_constants: int
    """Values saved with the state-space layers but not learned, in no other number."""


def _state_space_sizes(config: SpadeConfig) -> dict[str, int]:
    half, copies = config.state_dim // 2, config.num_state_space_copies
    return {
        "C": 2 * config.d_model * half * 2,
        "D": config.d_model,
        "log_dt": config.d_model,
        "A": copies * half * 2,
        "B": copies * half * 2,
        "P": copies * half * 2,
    }


def _feed_forward_inputs(config: SpadeConfig) -> int:
    """Width of the first feed-forward projection."""
    return config.d_ff * (2 if config.feed_forward == "gated_gelu" else 1)


def _feed_forward_parameters(config: SpadeConfig, *, bias: bool) -> int:
    inner = _feed_forward_inputs(config)
    weights = config.d_model * (inner + config.d_ff)
    return weights + (inner + config.d_model if bias else 0) + 2 * config.d_model


def count_parameters(config: SpadeConfig) -> ParameterCount:
    """Count the parameters of `SpadeForSeq2Seq` without building it."""
    width, inner, norm = config.d_model, config.inner_dim, 2 * config.d_model
    sizes = _state_space_sizes(config)
    learned = sum(sizes[name] for name in config.trainable_state_space)
    state_space = config.state_space_layers * learned
    stack_norms = norm * (2 if config.final_layer_norm else 1)

    local = norm + 4 * width * inner + config.relative_attention_num_buckets * config.num_heads
    encoder_layer = local + _feed_forward_parameters(config, bias=config.feed_forward_bias)
    global_extra = 2 * norm + 2 * width * width + width
    encoder = config.num_encoder_layers * encoder_layer + stack_norms
    encoder += config.state_space_layers * global_extra + state_space

    attention_bias = 3 * inner + width if config.decoder_bias else 0
    attention = norm + 4 * width * inner + attention_bias
    decoder_bias = config.feed_forward_bias or config.decoder_bias
    decoder_layer = 2 * attention + _feed_forward_parameters(config, bias=decoder_bias)
    decoder = config.num_decoder_layers * decoder_layer + stack_norms
    decoder += config.max_target_length_tokens * width

    embedding = config.vocab_size * width
    return ParameterCount(
        total=embedding + encoder + decoder,
        embedding=embedding,
        encoder=encoder,
        decoder=decoder,
        state_space=state_space,
        state_space_constants=config.state_space_layers * (sum(sizes.values()) - learned),
    )


def forward_flops_per_sample(
    config: SpadeConfig, input_length_tokens: int, target_length_tokens: int
) -> int:
    """Return the floating-point operations of one forward pass over one sample.

    Counted are the matrix products as they are computed (whole windows and whole attention
    squares, two operations a multiply-add) and the transforms of the long convolution. Not
    counted are element-wise operations, and the state-space kernels: they are made once for a
    batch, see `kernel_flops_per_forward`.

    Args:
        config: The architecture.
        input_length_tokens: L.
        target_length_tokens: T.
    """
    source, target = input_length_tokens, target_length_tokens
    width, inner, block = config.d_model, config.inner_dim, config.local_block_tokens
    feed_forward = width * (_feed_forward_inputs(config) + config.d_ff)

    num_blocks = math.ceil(source / block)
    window_scores_and_sums = 2 * num_blocks * block * 3 * block * inner
    # The queries are cut into blocks after they were projected.
    encoder_layer = source * (4 * width * inner + feed_forward) + window_scores_and_sums
    products = config.num_encoder_layers * encoder_layer
    products += config.state_space_layers * source * 2 * width * width

    self_attention = target * 4 * width * inner + 2 * target * target * inner
    cross_attention = (2 * target + 2 * source) * width * inner + 2 * target * source * inner
    decoder_layer = self_attention + cross_attention + target * feed_forward
    products += config.num_decoder_layers * decoder_layer
    products += target * width * config.vocab_size

    # A real transform of n numbers is about 2.5 n log2(n); there is one each way.
    circle = 2 * source
    convolution = round(5 * circle * math.log2(max(circle, 2))) + 3 * circle
    return 2 * products + config.state_space_layers * width * convolution


def training_flops_per_sample(
    config: SpadeConfig, input_length_tokens: int, target_length_tokens: int
) -> int:
    """Return three times the forward operations: the gradient costs two more forward passes.

    Activation checkpointing computes more than this; it is not model work.
    """
    return 3 * forward_flops_per_sample(config, input_length_tokens, target_length_tokens)


def _kernel_factors(length_tokens: int) -> tuple[int, int]:
    """Return how many columns and rows `two_level_kernel` splits a length into."""
    num_columns: int = 1 << ((length_tokens - 1).bit_length() + 1) // 2
    return num_columns, math.ceil(length_tokens / num_columns)


def kernel_flops_per_forward(config: SpadeConfig, input_length_tokens: int) -> int:
    """Return the operations of making the state-space kernels, once for a batch of any size."""
    states = config.state_dim
    num_columns, num_rows = _kernel_factors(input_length_tokens)
    squarings = num_columns.bit_length() - 1 + max(0, (num_rows - 1).bit_length() - 1)
    made = num_columns - 1 + 2 * (num_rows - 1)
    multiply_adds = squarings * states**3 + made * states**2 + 2 * num_rows * num_columns * states
    return config.state_space_layers * config.d_model * 2 * multiply_adds


def activation_bytes(
    config: SpadeConfig,
    micro_batch_size: int,
    input_length_tokens: int,
    target_length_tokens: int,
    bytes_per_element: int,
    activation_checkpointing: bool,
) -> int:
    """Estimate the bytes that the forward pass keeps for the backward pass, and the logits.

    The residual stream, norms, state space and loss are float32; what matrix products keep has
    `bytes_per_element` (2 under bfloat16 autocast). Copies of the weights that autocast makes are
    not counted.

    Args:
        config: The architecture.
        micro_batch_size: Samples in one forward pass.
        input_length_tokens: L.
        target_length_tokens: T.
        bytes_per_element: 2 or 4.
        activation_checkpointing: Whether layers keep only their input; then the largest single
            layer, which is computed again, comes on top.
    """
    source, target = input_length_tokens, target_length_tokens
    width, element = config.d_model, bytes_per_element
    stream = _FLOAT32_BYTES * width
    encoder_layer = source * _encoder_layer_bytes_per_token(config, element)
    state_space = source * _state_space_bytes_per_token(config, element)
    decoder_layer = _decoder_layer_bytes(config, source, target, element)
    once = kernel_bytes(config, source)

    num_state_space = config.state_space_layers
    ends = (source + target) * (2 * stream) + target * element * width
    logits = target * config.vocab_size * (element + _FLOAT32_BYTES)
    if activation_checkpointing:
        inputs = config.num_encoder_layers * source + config.num_decoder_layers * target
        bottom = encoder_layer + (state_space if num_state_space else 0)
        largest = micro_batch_size * max(bottom, decoder_layer) + (once if num_state_space else 0)
        return micro_batch_size * (inputs * stream + ends + logits) + largest
    layers = config.num_encoder_layers * encoder_layer + num_state_space * state_space
    layers += config.num_decoder_layers * decoder_layer
    return micro_batch_size * (layers + ends + logits) + num_state_space * once


def _feed_forward_bytes(config: SpadeConfig, element: int) -> int:
    """Per token: the stream, the normed input, the inner activations."""
    kept = 4 if config.feed_forward == "gated_gelu" else 1
    return (_FLOAT32_BYTES + element) * config.d_model + kept * element * config.d_ff


def _encoder_layer_bytes_per_token(config: SpadeConfig, element: int) -> int:
    """Stream, normed input, queries, keys and values of three blocks, weights, sums."""
    attention = (1 + 3 + 3 + 1) * config.inner_dim
    weights = 3 * config.local_block_tokens * config.num_heads
    mixing = (_FLOAT32_BYTES + element) * config.d_model + element * (attention + weights)
    return mixing + _feed_forward_bytes(config, element)


def _state_space_bytes_per_token(config: SpadeConfig, element: int) -> int:
    """Input, its spectrum over the doubled circle, both norms' inputs, what is joined."""
    return config.d_model * (_FLOAT32_BYTES * (1 + 2 + 1) + element * (1 + 2))


def kernel_bytes(config: SpadeConfig, source: int) -> int:
    """For one layer: the powers of Ad, and each stage of the two factors of the kernel."""
    num_columns, num_rows = _kernel_factors(source)
    powers = max(source - 1, 1).bit_length() * config.state_dim**2
    stages = 2 * (num_columns + 2 * num_rows) * config.state_dim
    return _FLOAT32_BYTES * config.d_model * (powers + stages)


def _decoder_layer_bytes(config: SpadeConfig, source: int, target: int, element: int) -> int:
    """Two attentions with stream, normed input, queries, keys, values, sums; feed-forward."""
    inner, width = config.inner_dim, config.d_model
    norms = 2 * (_FLOAT32_BYTES + element) * width
    own = target * (norms + element * (3 + 2 + 1 + 2) * inner)
    encoder_side = source * element * (2 * inner + width)
    return own + encoder_side + target * _feed_forward_bytes(config, element)
