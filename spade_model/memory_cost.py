"""What a forward pass keeps for its backward pass, in bytes, by arithmetic alone."""

from __future__ import annotations

from spade_model.config import CheckpointingKind, SpadeConfig
from spade_model.cost import AttentionWork, attention_scores
from spade_model.cuts import attention_reach, cut_for_products, split_length

_FLOAT32_BYTES = 4
_COMPLEX64_BYTES = 8


def activation_bytes(
    config: SpadeConfig,
    micro_batch_size: int,
    input_length_tokens: int,
    target_length_tokens: int,
    *,
    bytes_per_element: int,
    activation_checkpointing: CheckpointingKind,
    every_layers: int = 1,
    work: AttentionWork = "blocked",
) -> int:
    """Estimate the bytes that the forward pass keeps for the backward pass, and the logits.

    The residual stream, norms, state space and loss are float32; what matrix products keep has
    `bytes_per_element` (2 under bfloat16 autocast). Copies of the weights that autocast makes are
    not counted, and neither are the masks of dropout.

    Args:
        config: The architecture.
        micro_batch_size: Samples in one forward pass.
        input_length_tokens: L.
        target_length_tokens: T; 0 without a decoder of its own.
        bytes_per_element: 2 or 4.
        activation_checkpointing: What layers keep; where any is computed again, the largest single
            layer comes on top.
        every_layers: Of so many layers one is treated so.
        work: Which backend computes the attention: ``blocked`` keeps its weights and windows,
            ``tiled`` keeps nothing of them.
    """
    source, target = input_length_tokens, target_length_tokens
    width, element = config.d_model, bytes_per_element
    stream = _FLOAT32_BYTES * width
    long_layer = _long_layer_bytes(config, source, element, work)
    state_space = source * _state_space_bytes_per_token(config, element)
    decoder_layer = 0
    if config.is_encoder_decoder:
        decoder_layer = _decoder_layer_bytes(config, source, target, element)
    once = kernel_bytes(config, source) + spectrum_bytes(config, source)

    predicted = source if config.is_causal_lm else target
    kept = (source + target) * (2 * stream + 2 * _norm_bytes(config)) + predicted * element * width
    kept += logits_bytes(config, source, target, bytes_per_element=element)
    kept_once = 0
    again = [0]
    computes_again = activation_checkpointing != "none"
    for index in range(config.num_long_layers):
        has_state_space = index in config.state_space_layer_indices
        layer = long_layer + (state_space if has_state_space else 0)
        layer_once = once if has_state_space else 0
        if computes_again and index % every_layers == 0:
            again.append(micro_batch_size * layer + layer_once)
            kept += source * stream
            if activation_checkpointing == "selective":
                kept += _long_product_bytes(config, source, element, work, has_state_space)
        else:
            kept, kept_once = kept + layer, kept_once + layer_once
    for index in range(config.num_decoder_layers if config.is_encoder_decoder else 0):
        if computes_again and index % every_layers == 0:
            again.append(micro_batch_size * decoder_layer)
            kept += target * stream
            if activation_checkpointing == "selective":
                kept += _decoder_product_bytes(config, source, target, element)
        else:
            kept += decoder_layer
    return micro_batch_size * kept + kept_once + max(again)


def logits_bytes(
    config: SpadeConfig,
    input_length_tokens: int,
    target_length_tokens: int,
    *,
    bytes_per_element: int,
) -> int:
    """Return the bytes of one sample's logits and of what their loss keeps, as a part of the above.

    Args:
        config: The architecture.
        input_length_tokens: L.
        target_length_tokens: T; 0 without a decoder of its own.
        bytes_per_element: 2 or 4.
    """
    predicted = input_length_tokens if config.is_causal_lm else target_length_tokens
    return predicted * config.vocab_size * (bytes_per_element + _FLOAT32_BYTES)


def _long_product_bytes(
    config: SpadeConfig, length: int, element: int, work: AttentionWork, has_state_space: bool
) -> int:
    """The outputs of a long layer's matrix products: what selective checkpointing keeps."""
    inner, width = config.inner_dim, config.d_model
    attention = length * element * (3 * inner + width)
    if work != "tiled":  # whose products lie inside a function of its own
        scores = attention_scores(config, length, work) * config.num_heads
        attention += element * (scores + length * inner)
    joined = width if has_state_space and config.combine == "concat" else 0
    return attention + length * element * (joined + _feed_forward_products(config))


def _decoder_product_bytes(config: SpadeConfig, source: int, target: int, element: int) -> int:
    """The outputs of a decoder layer's matrix products."""
    inner, width = config.inner_dim, config.d_model
    own = 3 * inner + width
    other = inner + width
    encoder_side = source * element * 2 * inner
    return target * element * (own + other + _feed_forward_products(config)) + encoder_side


def _feed_forward_products(config: SpadeConfig) -> int:
    """Values a token of both feed-forward projections."""
    expanded = config.d_ff * (2 if config.feed_forward == "gated_gelu" else 1)
    return expanded + config.d_model


def _norm_bytes(config: SpadeConfig) -> int:
    """Per token, what a norm keeps beside its input: torch's RMSNorm its quotient as well."""
    return _FLOAT32_BYTES * config.d_model if config.norm == "rms_norm" else 0


def _feed_forward_bytes(config: SpadeConfig, element: int) -> int:
    """Per token: the stream, the normed input, the inner activations."""
    kept = 4 if config.feed_forward == "gated_gelu" else 1
    inputs = (_FLOAT32_BYTES + element) * config.d_model + _norm_bytes(config)
    return inputs + kept * element * config.d_ff


def _long_layer_bytes(config: SpadeConfig, length: int, element: int, work: AttentionWork) -> int:
    """Stream, normed input, projections, what attention keeps, its sums; feed-forward."""
    inner, heads = config.inner_dim, config.num_heads
    inputs = (_FLOAT32_BYTES + element) * config.d_model + _norm_bytes(config)
    mixing = length * (inputs + element * (3 + 1) * inner)
    scores = attention_scores(config, length, work) * heads
    if work == "reference":
        softmax = 0 if element == _FLOAT32_BYTES else _FLOAT32_BYTES
        mixing += scores * (element + softmax) + length * element * inner
    elif work != "tiled":
        blocks = cut_for_products(attention_reach(config, length, causal=config.is_causal_lm))
        copies = blocks.num_keys // blocks.block_tokens - 1  # of keys and of values
        mixing += scores * element + 2 * length * element * copies * inner
    return mixing + length * _feed_forward_bytes(config, element)


def _state_space_bytes_per_token(config: SpadeConfig, element: int) -> int:
    """Both norms' inputs and what is joined; the convolution's own input is the normed stream."""
    width, outputs = config.d_model, config.state_space_channels * config.d_model
    if config.combine == "stack":
        return 0
    inputs = _FLOAT32_BYTES * (width + outputs) + 2 * _norm_bytes(config)
    return inputs + (element * (width + outputs) if config.combine == "concat" else 0)


def spectrum_bytes(config: SpadeConfig, length_tokens: int) -> int:
    """Return the bytes of one layer's kernel on the frequencies of its convolution."""
    outputs = config.state_space_channels * config.d_model
    return _COMPLEX64_BYTES * outputs * (length_tokens + 1)


def kernel_bytes(config: SpadeConfig, length_tokens: int) -> int:
    """Return what the making of one layer's kernels keeps for their gradient.

    With A, B and P fixed these are columns and rows and one power of the transition; with
    them learned all powers and every stage; with C fixed as well nothing.
    """
    learned = set(config.trainable_state_space)
    states, width = config.state_dim, config.d_model
    kernels = (1 if config.is_causal_lm else 2) * config.state_space_channels
    if config.state_space != "s4":
        return 0  # made again from a few numbers a feature
    num_rows, num_columns = split_length(length_tokens)
    levels = (num_rows - 1).bit_length()
    if {"A", "B", "P"} & learned:
        # Each squaring keeps E and E + 2; the discretisation about as much once.
        powers = 2 * (num_columns.bit_length() - 1 + levels) * states**2
        stages = 2 * (num_columns + kernels * num_rows) * states
        return _FLOAT32_BYTES * width * (powers + stages)
    if not {"C", "log_dt"} & learned:
        return 0
    vectors = 3 if "log_dt" in learned else 1
    kept = (vectors * num_columns + kernels * num_rows) * states
    if "C" in learned and levels:
        kept += states**2  # the first of the powers that made the rows; the others are squares
    return _FLOAT32_BYTES * width * kept


def _decoder_layer_bytes(config: SpadeConfig, source: int, target: int, element: int) -> int:
    """Two attentions with stream, normed input, queries, keys, values, sums; feed-forward."""
    inner, width = config.inner_dim, config.d_model
    norms = 2 * ((_FLOAT32_BYTES + element) * width + _norm_bytes(config))
    own = target * (norms + element * (3 + 2 + 1 + 2) * inner)
    encoder_side = source * element * (2 * inner + width)
    return own + encoder_side + target * _feed_forward_bytes(config, element)
