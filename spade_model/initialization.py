"""Initial weights. Norms start at 1 and 0, biases at 0, the state space at HiPPO-LegS."""

from __future__ import annotations

import torch
from torch import nn

from spade_model.attention.decoder import CausalSelfAttention, CrossAttention
from spade_model.attention.long import LongSelfAttention
from spade_model.config import SpadeConfig
from spade_model.decoder import Decoder
from spade_model.feed_forward import FeedForward
from spade_model.layers import GlobalLocalMixing


@torch.no_grad()
def initialize_parameters(model: nn.Module, config: SpadeConfig, *, tokens: nn.Embedding) -> None:
    """Draw the weights that `SpadeConfig.initialization` asks for.

    ``scaled``: every projection N(0, 1 / fan_in), so that unit inputs give unit outputs; relative
    biases 0. The embedding is also the output head, so its scale is that of the logits: with a
    standard deviation of ``d_model ** -0.5 / 2`` they stay below 1 and the loss starts near
    ``ln(vocab_size)``. For the input the scale does not matter, a LayerNorm follows; positions are
    a tenth of it, so that a token first of all stands for itself. Unit embeddings behind a scaled
    head, T5's choice, compute the same at first but move too slowly under AdamW (250 steps of a
    small model: loss 3.63 instead of 3.32).
    ``published``: what the published code draws for the encoder (query N(0, 1 / sqrt(d * width of a
    head)), all else there 1 / fan_in, relative biases N(0, d^-1/2)); the decoder's attention and
    the projection that joins global and local keep torch's own initialisation of a Linear.

    Args:
        model: The network, changed in place.
        config: Its configuration.
        tokens: Its token embedding, the output head as well.
    """
    published = config.initialization == "published"
    if published:
        _initialize_as_published(model, config.d_model)
    else:
        _initialize_scaled(model)
    scale = 1.0 if published else config.d_model**-0.5 / 2
    tokens.weight.normal_(std=scale)
    for module in model.modules():
        if isinstance(module, Decoder) and module.positions is not None:
            module.positions.weight.normal_(std=scale if published else scale / 10)


def _initialize_scaled(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _normal(module, module.in_features**-0.5)
        elif isinstance(module, (LongSelfAttention, Decoder)):
            _fill_table(module.relative_attention_bias, 0.0)


def _initialize_as_published(model: nn.Module, width: int) -> None:
    for module in model.modules():
        if isinstance(module, FeedForward):
            _normal(module.expand, width**-0.5)
            _normal(module.contract, module.contract.in_features**-0.5)
        elif isinstance(module, LongSelfAttention):
            _normal(module.query_key_value, width**-0.5)
            query = module.query_key_value.weight[: module.output.in_features]
            query.normal_(std=(width * module.head_dim) ** -0.5)
            _normal(module.output, module.output.in_features**-0.5)
            _fill_table(module.relative_attention_bias, width**-0.5)
        elif isinstance(module, Decoder):
            _fill_table(module.relative_attention_bias, width**-0.5)
        elif isinstance(module, (CausalSelfAttention, CrossAttention, GlobalLocalMixing)):
            for child in module.children():
                if isinstance(child, nn.Linear):
                    child.reset_parameters()


def _normal(linear: nn.Linear, standard_deviation: float) -> None:
    linear.weight.normal_(std=standard_deviation)
    if linear.bias is not None:
        linear.bias.zero_()


def _fill_table(biases: nn.Embedding | None, standard_deviation: float) -> None:
    if biases is not None and standard_deviation > 0.0:
        biases.weight.normal_(std=standard_deviation)
    elif biases is not None:
        biases.weight.zero_()
