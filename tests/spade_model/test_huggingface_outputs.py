"""What is between the layers: attention weights are those of the definition, and add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from huggingface_models import CAUSAL, built, checkpoint_activations, ragged, some_ids

from spade_model.huggingface import (
    SpadeEncoderModel,
    SpadeForCausalLM,
    SpadeForConditionalGeneration,
)

PATTERNS: dict[str, dict[str, Any]] = {
    "window": {},
    "chunk": {"attention": "chunk"},
    "full": {"attention": "full", "position": "rope"},
    "shared": {"shared_relative_bias": True, "combine": "stack", "final_norm": False},
}
ASKED = {"output_hidden_states": True, "output_attentions": True}
EVERY_PATTERN = pytest.mark.parametrize("pattern", PATTERNS)


def may_see(pattern: str, query: int, key: int, start: int) -> bool:
    """Who sees whom, for a row whose first token is at `start`; the radius is 7."""
    if pattern == "full":
        return True
    if pattern == "chunk":
        return (query - start) // 8 == (key - start) // 8
    return abs(query - key) <= 7


@EVERY_PATTERN
@pytest.mark.parametrize("side", ["left", "right"])
def test_encoder_weights_follow_the_pattern_and_the_padding(pattern: str, side: str) -> None:
    model = built(SpadeEncoderModel, **PATTERNS[pattern])
    ids, mask, _ = ragged([21, 13], side)
    output = model(input_ids=ids, attention_mask=mask, **ASKED)
    plain = model(input_ids=ids, attention_mask=mask)
    valid = mask > 0
    torch.testing.assert_close(
        output.last_hidden_state[valid], plain.last_hidden_state[valid], atol=1e-5, rtol=0
    )
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    starts = valid.long().argmax(dim=1).tolist()
    for weights in output.attentions:
        for row, start in enumerate(starts):
            for query in valid[row].nonzero()[:, 0].tolist():
                line = weights[row, :, query]
                torch.testing.assert_close(line.sum(dim=-1), torch.ones(2))
                seen = [
                    bool(valid[row, key]) and may_see(pattern, query, key, start)
                    for key in range(21)
                ]
                assert ((line > 0).all(dim=0) == torch.tensor(seen)).all()


@EVERY_PATTERN
def test_cached_weights_are_those_of_the_whole_row(pattern: str) -> None:
    model = built(SpadeForCausalLM, **(CAUSAL | PATTERNS[pattern]))
    ids, mask, _ = ragged([23, 15], "left")
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, use_cache=False, **ASKED)
        cache, steps, done = None, [], 0
        for length in (9, 1, 1, 11, 1):
            end = done + length
            steps.append(
                model(
                    input_ids=ids[:, done:end],
                    attention_mask=mask[:, :end],
                    past_key_values=cache,
                    use_cache=True,
                    **ASKED,
                )
            )
            cache, start, done = steps[-1].past_key_values, done, end
            valid = mask[:, start:end] > 0
            for found, expected in zip(steps[-1].attentions, whole.attentions, strict=True):
                assert found.shape == (2, 2, length, end)
                expected = expected[:, :, start:end, :end].transpose(1, 2)[valid]
                torch.testing.assert_close(
                    found.transpose(1, 2)[valid], expected, atol=1e-5, rtol=0
                )
    hidden = torch.cat([step.hidden_states[1] for step in steps], dim=1)
    valid = mask > 0
    torch.testing.assert_close(hidden[valid], whole.hidden_states[1][valid], atol=1e-4, rtol=0)


@pytest.mark.parametrize("position", ["learned", "relative_bias", "rope", "alibi"])
def test_decoder_weights(position: str) -> None:
    model = built(SpadeForConditionalGeneration, decoder_position=position)
    ids, mask, _ = ragged([21, 13], "right")
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": some_ids(2, 6)}
    output, plain = model(**given, **ASKED), model(**given)
    torch.testing.assert_close(output.logits, plain.logits, atol=1e-5, rtol=0)
    assert [x.shape for x in output.decoder_attentions] == [(2, 2, 6, 6)] * 2
    assert [x.shape for x in output.cross_attentions] == [(2, 2, 6, 21)] * 2
    assert [x.shape for x in output.encoder_attentions] == [(2, 2, 21, 21)] * 2
    assert [x.shape for x in output.decoder_hidden_states] == [(2, 6, 32)] * 3
    for weights in output.decoder_attentions:
        assert torch.equal(weights, weights.tril())
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 6))
    for weights in output.cross_attentions:
        assert bool((weights[1, :, :, 13:] == 0).all())
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 6))
    # Asking costs nothing of what training needs: gradients and checkpointing.
    model.train()
    checkpoint_activations(model)
    output = model(**given, **ASKED, use_cache=False)
    for part in (output.cross_attentions[0], output.encoder_attentions[0]):
        part.retain_grad()
    output.logits.sum().backward()
    assert len(output.decoder_attentions) == 2
    assert bool(output.cross_attentions[0].grad.abs().max() > 0)
    assert bool(output.encoder_attentions[0].grad.abs().max() > 0)


def test_an_encoder_given_as_a_tuple_keeps_what_it_has() -> None:
    model = built(SpadeForConditionalGeneration)
    ids = some_ids(2, 14)
    encoded = model.get_encoder()(ids, **ASKED)
    for given in (encoded, encoded.to_tuple()):
        output = model(encoder_outputs=given, decoder_input_ids=some_ids(2, 3))
        assert torch.equal(output.encoder_hidden_states[0], encoded.hidden_states[0])
        assert torch.equal(output.encoder_attentions[1], encoded.attentions[1])
