"""The transformers language model is the plain one: same keys, same numbers, same texts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers")

from huggingface_models import checkpoint_activations
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
)

from spade_model import SpadeConfig
from spade_model import SpadeForCausalLM as PlainCausalLM
from spade_model.huggingface import (
    SpadeForCausalLM,
    SpadeForConditionalGeneration,
    SpadePretrainedConfig,
    SpadePretrainedModel,
)
from spade_model.huggingface.generation_cache import SpadeCache

TINY: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 24,
    "num_heads": 2,
    "head_dim": 12,
    "d_ff": 32,
    "num_encoder_layers": 0,
    "num_decoder_layers": 2,
    "state_dim": 8,
    "local_radius_tokens": 6,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "post": {"normalization": "post", "final_norm": False, "shared_relative_bias": True},
    "stack": {"combine": "stack", "state_space": "s4d_lin", "position": "rope"},
    "chunk": {"attention": "chunk", "state_space": "ema", "state_space_layers": [0, 1]},
    "full": {"attention": "full", "state_space": "none", "position": "alibi"},
}
EVERY_VARIANT = pytest.mark.parametrize("name", VARIANTS)


def some_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, TINY["vocab_size"], (rows, length), generator=generator)


def plain_model(name: str = "default") -> PlainCausalLM:
    torch.manual_seed(5)
    return PlainCausalLM(SpadeConfig(**(TINY | VARIANTS[name]))).eval()


def wrap(plain: PlainCausalLM, **kwargs: Any) -> SpadeForCausalLM:
    model = SpadeForCausalLM(SpadePretrainedConfig.from_spade_config(plain.config, **kwargs))
    model.load_state_dict(plain.state_dict())
    return model.eval()


def texts() -> Tensor:
    """What `learned_model` has learned to say."""
    return some_ids(6, 40, seed=7)


@functools.cache
def learned_model(name: str = "default") -> PlainCausalLM:
    """Trained for a moment: an untrained tied head only repeats its input."""
    plain = plain_model(name).train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    for _ in range(60):
        loss = plain(texts(), texts()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return plain.eval()


def padded_prompts() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Beginnings of learned texts, padded on the left."""
    rows = [texts()[[row], :length] for row, length in enumerate([15, 4, 9])]
    ids, mask = torch.zeros(3, 15, dtype=torch.long), torch.zeros(3, 15, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, -row.shape[1] :], mask[index, -row.shape[1] :] = row[0], 1
    return ids, mask, rows


class TestSameNumbers:
    @EVERY_VARIANT
    def test_keys_logits_and_loss_equal_the_plain_model(self, name: str) -> None:
        plain = plain_model(name)
        model = wrap(plain)
        assert list(model.state_dict()) == list(plain.state_dict())
        ids, mask, _ = padded_prompts()
        labels = ids.masked_fill(mask == 0, -100)
        segments = torch.arange(15).expand(3, -1) // 6
        ours = plain(ids, labels, attention_mask=mask.bool(), segment_ids=segments)
        given = {"attention_mask": mask, "labels": labels, "segment_ids": segments}
        theirs = model(input_ids=ids, **given)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.loss, theirs.loss)
        embeddings = model.get_input_embeddings()(ids)
        assert torch.equal(model(inputs_embeds=embeddings, **given).logits, ours.logits)
        assert torch.equal(model(input_ids=ids, **given, return_dict=False)[1], ours.logits)

    def test_a_new_model_starts_as_pretraining_does(self) -> None:
        plain = plain_model()
        torch.manual_seed(5)
        model = SpadeForCausalLM(SpadePretrainedConfig.from_spade_config(plain.config))
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name

    def test_some_logits(self) -> None:
        model, ids = wrap(plain_model()), some_ids(2, 9)
        whole = model(input_ids=ids).logits
        assert model(input_ids=ids, logits_to_keep=2).logits.shape == (2, 2, 60)
        last = model(input_ids=ids, logits_to_keep=1).logits
        torch.testing.assert_close(last, whole[:, -1:])

    def test_accumulated_loss_is_divided_by_all_labels(self) -> None:
        model, ids = wrap(plain_model()), some_ids(4, 16)
        labels = ids.clone()
        labels[0, 6:] = -100
        whole = model(input_ids=ids, labels=labels).loss
        count = (labels[:, 1:] != -100).sum()
        parts = [
            model(input_ids=ids[[row]], labels=labels[[row]], num_items_in_batch=count).loss
            for row in range(4)
        ]
        torch.testing.assert_close(sum(parts), whole)

    def test_activation_checkpointing_changes_no_gradient(self) -> None:
        model, ids = wrap(plain_model()).train(), some_ids(2, 20)
        gradients = []
        for enabled in (False, True):
            if enabled:
                checkpoint_activations(model)
            assert model.is_activation_checkpointing is enabled
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class TestLoading:
    @EVERY_VARIANT
    def test_auto_class_loads_every_bit(self, name: str, tmp_path: Path) -> None:
        plain = plain_model(name)
        wrap(plain).save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        assert stored.keys() == plain.state_dict().keys() - {"lm_head.weight"}
        config = AutoConfig.from_pretrained(tmp_path)
        assert config.to_spade_config() == plain.config
        assert not config.is_encoder_decoder
        assert config.num_hidden_layers == plain.config.num_decoder_layers
        assert config.get_text_config(decoder=True) is config
        model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(model, SpadeForCausalLM)
        assert not report["missing_keys"] | report["unexpected_keys"]
        assert model.lm_head.weight is model.model.shared.weight
        for key, tensor in plain.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key
        ids = some_ids(2, 33)
        assert torch.equal(plain(ids).logits, model(input_ids=ids).logits)

    def test_bfloat16_keeps_the_state_space_in_float32(self, tmp_path: Path) -> None:
        plain = learned_model()
        wrap(plain).save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
        for name, tensor in model.state_dict().items():
            expected = torch.float32 if ".state_space." in name else torch.bfloat16
            assert tensor.dtype == expected, name
        ids = texts()
        exact = plain(ids, ids).loss.item()
        assert model(input_ids=ids, labels=ids).loss.item() == pytest.approx(exact, abs=0.05)
        assert model.generate(ids[:, :9], max_new_tokens=5).shape == (6, 14)

    def test_what_a_checkpoint_lacks_is_drawn_and_the_rest_is_kept(self, tmp_path: Path) -> None:
        wrap(learned_model()).save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        lacking = {name for name in stored if "state_space." in name or "layers.1." in name}
        kept = {name: tensor for name, tensor in stored.items() if name not in lacking}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert report["missing_keys"] == lacking
        state = model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in kept.items())
        (frequency,) = (name for name in lacking if name.endswith("frequency"))
        torch.testing.assert_close(state[frequency], stored[frequency])  # HiPPO has one value.
        assert all(bool(state[name].isfinite().all()) for name in lacking)

    def test_more_tokens_stay_tied(self) -> None:
        model = wrap(plain_model())
        model.resize_token_embeddings(70)
        assert model.lm_head.weight is model.model.shared.weight
        assert model(input_ids=some_ids(1, 9)).logits.shape[-1] == 70

    def test_the_wrong_class_says_which_is_right(self) -> None:
        language = SpadePretrainedConfig(**TINY)
        with pytest.raises(ValueError, match="AutoModelForCausalLM"):
            AutoModel.from_config(language)
        with pytest.raises(ValueError, match="AutoModelForCausalLM"):
            AutoModelForSequenceClassification.from_config(language)
        both = SpadePretrainedConfig(**(TINY | {"num_encoder_layers": 2}))
        with pytest.raises(ValueError, match="AutoModelForSeq2SeqLM"):
            AutoModelForCausalLM.from_config(both)
        assert both.is_encoder_decoder
        with pytest.raises(ValueError, match="AutoModelForCausalLM"):
            SpadeForConditionalGeneration(language)


class TestGeneration:
    @EVERY_VARIANT
    @pytest.mark.parametrize("beams", [1, 3])
    def test_cached_equals_uncached(self, name: str, beams: int) -> None:
        model = wrap(learned_model(name))
        ids, mask, _ = padded_prompts()
        options = {"attention_mask": mask, "max_new_tokens": 20, "num_beams": beams}
        cached = model.generate(ids, **options)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
        assert len(set(cached[:, 15:].flatten().tolist())) > 10, "the texts were not learned"

    def test_greedy_equals_the_plain_models_generate(self) -> None:
        plain = learned_model()
        ids, mask, _ = padded_prompts()
        ours = plain.generate(ids, attention_mask=mask.bool(), max_new_tokens=20)
        theirs = wrap(plain).generate(ids, attention_mask=mask, max_new_tokens=20)
        assert torch.equal(ours, theirs[:, 15:])
        assert (ours[0] == texts()[0, 15:35]).float().mean() > 0.8

    @pytest.mark.parametrize("beams", [1, 3])
    def test_a_padded_batch_gives_what_single_rows_give(self, beams: int) -> None:
        model = wrap(learned_model())
        ids, mask, rows = padded_prompts()
        options = {"max_new_tokens": 16, "num_beams": beams}
        together = model.generate(ids, attention_mask=mask, **options)[:, 15:]
        for index, row in enumerate(rows):
            alone = model.generate(row, **options)[0, row.shape[1] :]
            width = min(len(alone), together.shape[1])
            assert torch.equal(alone[:width], together[index, :width])

    def test_sampling_draws_the_same_with_and_without_a_cache(self) -> None:
        model = wrap(learned_model())
        ids, mask, _ = padded_prompts()
        drawn = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 16}
            drawn.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **options))
        assert drawn[0].shape[0] == 6
        assert torch.equal(*drawn)

    def test_the_cache_continues_a_text(self) -> None:
        """A dialogue: the second call gives what generating from everything gives."""
        model, ids = wrap(learned_model()), texts()[:2]
        cache = SpadeCache(model.config.to_spade_config())
        assert not cache.is_initialized
        cache.batch_repeat_interleave(3)
        model(input_ids=ids[:, :7], past_key_values=cache)
        size = cache.memory.num_bytes
        generated = model.generate(ids[:, :12], past_key_values=cache, max_new_tokens=9)
        assert torch.equal(generated, model.generate(ids[:, :12], max_new_tokens=9))
        assert (cache.get_seq_length(), cache.get_max_length(), cache.batch_size) == (20, -1, 2)
        assert cache.memory.num_bytes - size < 100  # A mask.
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        more = model(input_ids=generated.flip(0)[:, -1:], past_key_values=cache).logits
        whole = model(input_ids=generated.flip(0), use_cache=False).logits[:, -1:]
        torch.testing.assert_close(more, whole, rtol=0, atol=1e-4)
        cache.reset()
        assert cache.get_seq_length() == 0

    @EVERY_VARIANT
    def test_the_cache_shows_what_is_in_reach(self, name: str) -> None:
        """Layer by layer, as other tools look at caches, however the tokens came in."""
        model, ids = wrap(plain_model(name)), some_ids(2, 21)
        config = model.config
        cache = SpadeCache(config.to_spade_config())
        assert cache.layers[0].keys is None
        lengths = {}
        for part in ids.split([1, 4, 1, 15], dim=1):
            with torch.no_grad():
                model(input_ids=part, past_key_values=cache)
            lengths[cache.get_seq_length()] = cache.layers[0].keys.shape[2]
        reach = 21 if config.attention == "full" else config.local_radius_tokens + 1
        assert lengths == {count: min(count, reach) for count in (1, 5, 6, 21)}
        at_once = model(input_ids=ids, use_cache=True).past_key_values
        assert len(cache) == len(cache.layers) == config.num_hidden_layers
        for layer, other in zip(cache.layers, at_once.layers, strict=True):
            shape = (2, config.num_heads, min(21, reach), config.head_dim)
            assert layer.keys.shape == layer.values.shape == shape
            torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=0)
            torch.testing.assert_close(layer.values, other.values, atol=1e-4, rtol=0)

    def test_use_cache_is_honoured(self) -> None:
        model, ids = wrap(plain_model(), use_cache=False), some_ids(1, 9)
        assert model(input_ids=ids).past_key_values is None
        assert model(input_ids=ids, use_cache=True).past_key_values.get_seq_length() == 9
        model.config.use_cache = True
        assert model(input_ids=ids, labels=ids).past_key_values is None
        assert model(input_ids=ids).past_key_values.get_seq_length() == 9

    def test_what_cannot_be_is_explained(self) -> None:
        model, ids = wrap(plain_model()), some_ids(1, 9)
        with pytest.raises(ValueError, match="cache_implementation='static'"):
            model.generate(ids, max_new_tokens=4, cache_implementation="static")
        with pytest.raises(ValueError, match="DynamicCache"):
            model(input_ids=ids, past_key_values=DynamicCache())
        with pytest.raises(ValueError, match="stateful"):
            model.generate(ids, max_new_tokens=4, prompt_lookup_num_tokens=2)
        cache = model(input_ids=ids).past_key_values
        with pytest.raises(ValueError, match="forget"):
            cache.crop(-1)
        with pytest.raises(ValueError, match="covers 3 tokens but there are 10"):
            model(input_ids=ids[:, :1], attention_mask=torch.ones(1, 3), past_key_values=cache)
        with pytest.raises(ValueError, match="give either"):
            model()


class TestEncoderOnly:
    def test_loads_and_classifies(self, tmp_path: Path) -> None:
        sizes = {"num_encoder_layers": 2, "num_decoder_layers": 0}
        torch.manual_seed(1)
        encoder = AutoModel.from_config(SpadePretrainedConfig(**(TINY | sizes))).eval()
        assert isinstance(encoder, SpadePretrainedModel)
        assert not any("decoder" in name for name in encoder.state_dict())
        encoder.save_pretrained(tmp_path)
        again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] | report["unexpected_keys"]
        assert not again.config.is_encoder_decoder
        ids = some_ids(3, 12)
        mask = torch.arange(12)[None] < torch.tensor([[12], [5], [9]])
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.equal(again(ids, attention_mask=mask).last_hidden_state, hidden)
        alone = encoder(input_ids=ids[[1], :5]).last_hidden_state
        torch.testing.assert_close(hidden[[1], :5], alone, rtol=0, atol=1e-5)
        classifier, report = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, num_labels=3, output_loading_info=True
        )
        assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, classifier.state_dict()[f"model.{name}"]), name
        output = classifier(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 2, 1]))
        output.loss.backward()
        assert output.logits.shape == (3, 3)
