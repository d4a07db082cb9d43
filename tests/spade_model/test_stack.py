"""The encoder of every kind: packed documents, lengths, backends, an encoder without a decoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from seq2seq_models import EVERY_KIND, SMALL, build, close, tokens

from spade_model.config import SpadeConfig
from spade_model.seq2seq import SpadeForSeq2Seq, SpadeModel


@EVERY_KIND
def test_packed_documents_do_not_meet(config: SpadeConfig) -> None:
    """A document's outputs are those it has alone, whatever stands beside it."""
    model = build(config)
    lengths = [17, 1, 30, 16]
    documents = [tokens(1, length) for length in lengths]
    packed = torch.cat([*documents, tokens(1, 5)], dim=1)
    segment_ids = torch.repeat_interleave(torch.arange(5), torch.tensor([*lengths, 5]))[None]
    valid = segment_ids < 4
    outputs = model.encode(packed, valid, segment_ids).split([*lengths, 5], dim=1)
    for document, output in zip(documents, outputs, strict=False):
        if config.attention == "chunk":
            continue  # where the chunks' edges fall depends on what stands in front
        close(output, model.encode(document))
    other = packed.clone()
    other[:, 18:48] = tokens(1, 30)
    again = model.encode(other, valid, segment_ids).split([*lengths, 5], dim=1)
    for i in (0, 1, 3):
        assert torch.equal(again[i], outputs[i])
    assert not torch.equal(again[2], outputs[2])


@pytest.mark.parametrize("length", [1, 2, 65_536])
def test_very_short_and_very_long_inputs_are_finite(length: int) -> None:
    sizes = {"d_model": 8, "num_heads": 1, "head_dim": 8, "num_encoder_layers": 1}
    model = build(dataclasses.replace(SMALL, **sizes, state_space_layers=1)).train()
    hidden = model.encode(tokens(1, length))
    hidden.square().mean().backward()
    assert bool(hidden.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.model.encoder.parameters())


def test_backends_of_the_encoder_agree() -> None:
    model = build(SMALL)
    ids = tokens(2, 70)
    expected = model.encode(ids)
    for backend in ("reference", "blocked", "tiled", "flex"):
        model.set_attention_backend(backend)
        with torch.no_grad():
            close(model.encode(ids), expected)
    with pytest.raises(ValueError, match="unknown"):
        model.set_attention_backend("fastest")


def test_encoder_alone() -> None:
    config = dataclasses.replace(SMALL, num_decoder_layers=0)
    model = SpadeModel(config)
    ids = tokens(2, 20)
    hidden = model.encode(ids)
    assert hidden.shape == (2, 20, 32)
    assert not any("decoder" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="leaves no decoder"):
        model.decode(ids, hidden)
    with pytest.raises(ValueError, match="make no encoder-decoder"):
        SpadeForSeq2Seq(config)
    with pytest.raises(ValueError, match="SpadeForCausalLM"):
        SpadeModel(dataclasses.replace(SMALL, num_encoder_layers=0))
