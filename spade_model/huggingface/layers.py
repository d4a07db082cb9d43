"""The layers of `spade_model` as `transformers` wants them for activation checkpointing."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from spade_model.layers import DecoderLayer, LongLayer

Network = TypeVar("Network", bound=nn.Module)


class SpadeLongLayer(GradientCheckpointingLayer, LongLayer):
    """A layer of the encoder or of the causal language model."""


class SpadeDecoderLayer(GradientCheckpointingLayer, DecoderLayer):
    """A layer of the decoder."""


def with_checkpointing_layers(network: Network) -> Network:
    """Give the layers of a plain network the classes above, in place; their tensors stay."""
    for module in network.modules():
        if isinstance(module, LongLayer):
            module.__class__ = SpadeLongLayer
        elif isinstance(module, DecoderLayer):
            module.__class__ = SpadeDecoderLayer
    return network
