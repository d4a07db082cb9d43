"""Generation as the common tests of `transformers` ask for it: every form of cache and output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from huggingface_models import CAUSAL, built, checkpoint_activations, ragged, some_ids
from transformers import EncoderDecoderCache, StaticCache

from spade_model.huggingface import SpadeForCausalLM, SpadeForConditionalGeneration
from spade_model.huggingface.generation_cache import SpadeCache

BOTH = pytest.mark.parametrize("causal", [False, True], ids=["seq2seq", "causal"])
NEW = 5
ALL_OUTPUTS = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}


def model_of(causal: bool) -> Any:
    """One that never stops and knows no repetition: eos is out of reach, the head is untied."""
    if causal:
        model = built(SpadeForCausalLM, **CAUSAL, tie_word_embeddings=False)
    else:
        model = built(SpadeForConditionalGeneration, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(3))
    model.generation_config.eos_token_id = None
    return model


def prompt() -> dict[str, Tensor]:
    ids, mask, _ = ragged([12, 7], "left")
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(one: Any, other: Any) -> None:
    """The same tokens from the same scores, but for rounding."""
    assert torch.equal(one.sequences, other.sequences)
    for a, b in zip(one.scores, other.scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@BOTH
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("sampled", [False, True])
def test_every_output_of_every_step(causal: bool, beams: int, sampled: bool) -> None:
    model, length = model_of(causal), 12
    options = ALL_OUTPUTS | {"num_beams": beams, "do_sample": sampled, "max_new_tokens": NEW}
    results = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        results.append(model.generate(**prompt(), **options, use_cache=use_cache))
    cached, uncached = results
    assert_same(cached, uncached)
    assert len(cached.scores) == len(cached.logits) == NEW
    attentions = cached.attentions if causal else cached.decoder_attentions
    hidden = cached.hidden_states if causal else cached.decoder_hidden_states
    first = length if causal else 1
    for step in range(NEW):
        queries = first if step == 0 else 1
        assert [x.shape[2:] for x in attentions[step]] == [(queries, first + step)] * 2
        assert [x.shape for x in hidden[step]] == [(2 * beams, queries, 32)] * 3
    if not causal:
        assert [x.shape for x in cached.encoder_attentions] == [(2, 2, length, length)] * 2
        assert [x.shape[2:] for x in cached.cross_attentions[-1]] == [(1, length)] * 2


@pytest.mark.parametrize("beams", [1, 3])
def test_a_static_cache_gives_what_a_growing_one_gives(beams: int) -> None:
    model = model_of(causal=False)
    options = {
        "max_new_tokens": 8,
        "num_beams": beams,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    growing = model.generate(**prompt(), **options)
    static = model.generate(**prompt(), **options, cache_implementation="static")
    assert_same(growing, static)
    kept = static.past_key_values
    assert isinstance(kept, EncoderDecoderCache)
    assert isinstance(kept.self_attention_cache, StaticCache)
    assert kept.is_compileable


@BOTH
def test_generation_goes_on_from_a_cache(causal: bool) -> None:
    model = model_of(causal)
    given = prompt()
    options = {"return_dict_in_generate": True, "output_scores": True}
    whole = model.generate(**given, max_new_tokens=6, **options)
    half = model.generate(**given, max_new_tokens=4, **options)
    cache = half.past_key_values
    assert isinstance(cache, SpadeCache if causal else EncoderDecoderCache)
    if causal:
        mask = torch.nn.functional.pad(given["attention_mask"], (0, 4), value=1)
        given = {"input_ids": half.sequences, "attention_mask": mask}
    else:
        given["decoder_input_ids"] = half.sequences
    rest = model.generate(**given, past_key_values=cache, max_new_tokens=2, **options)
    assert torch.equal(rest.sequences, whole.sequences)
    for a, b in zip(rest.scores, whole.scores[4:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@BOTH
def test_embeddings_instead_of_ids(causal: bool) -> None:
    model, given = model_of(causal), prompt()
    from_ids = model.generate(**given, max_new_tokens=NEW)
    embeddings = model.get_input_embeddings()(given["input_ids"])
    mask = given["attention_mask"]
    found = model.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=NEW)
    assert torch.equal(found[:, -NEW:], from_ids[:, -NEW:])
    both = model.generate(**given, inputs_embeds=embeddings, max_new_tokens=NEW) if causal else None
    assert both is None or torch.equal(both, from_ids)


def test_an_assistant_and_the_prompt_may_guess_tokens() -> None:
    model = model_of(causal=False)
    given = {"input_ids": prompt()["input_ids"][:1], "max_new_tokens": 8, "do_sample": False}
    given["eos_token_id"] = -1  # The prompt lookup of early 5.x cannot do without any.
    alone = model.generate(**given)
    assistant = model_of(causal=False)
    assert torch.equal(model.generate(**given, assistant_model=assistant), alone)
    assert torch.equal(model.generate(**given, prompt_lookup_num_tokens=2), alone)


def test_decoding_may_begin_with_some_words() -> None:
    model, given = model_of(causal=False), prompt()
    begin = torch.tensor([[0, 7, 8], [0, 0, 9]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    together = model.generate(
        **given, decoder_input_ids=begin, decoder_attention_mask=mask, max_new_tokens=NEW
    )
    for row in range(2):
        alone = model.generate(
            input_ids=given["input_ids"][[row]],
            attention_mask=given["attention_mask"][[row]],
            decoder_input_ids=begin[[row], 3 - int(mask[row].sum()) :],
            max_new_tokens=NEW,
        )
        assert torch.equal(together[row, -NEW:], alone[0, -NEW:])


def test_logits_of_chosen_places() -> None:
    model, ids = model_of(causal=True), some_ids(2, 9)
    whole = model(input_ids=ids).logits
    places = torch.tensor([0, 4, 8])
    torch.testing.assert_close(
        model(input_ids=ids, logits_to_keep=places).logits, whole[:, places], atol=1e-5, rtol=0
    )


def test_labels_that_are_shifted_already() -> None:
    """As they come where a row is cut over devices: they replace the labels."""
    model, ids = model_of(causal=True), some_ids(2, 9)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    expected = model(input_ids=ids, labels=ids).loss
    given = {"input_ids": ids, "shift_labels": shifted}
    assert torch.equal(model(**given).loss, expected)
    assert torch.equal(model(**given, labels=ids.flip(0)).loss, expected)
    torch.testing.assert_close(model(**given, num_items_in_batch=32).loss, expected / 2)


@BOTH
def test_caches_and_computing_layers_again(causal: bool) -> None:
    """A layer that is run twice would fill a cache twice."""
    model, ids = model_of(causal).train(), some_ids(2, 9)
    given = {"input_ids": ids} if causal else {"input_ids": ids, "decoder_input_ids": ids}
    cache = model(**given, use_cache=True).past_key_values
    assert cache is not None
    checkpoint_activations(model)
    assert model(**given, use_cache=True).past_key_values is None
    with pytest.raises(ValueError, match="activation checkpointing"):
        model(**given, past_key_values=cache)
    assert model.eval()(**given, use_cache=True).past_key_values is not None
