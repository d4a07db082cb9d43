"""The transformers classes are the plain network: same keys, same numbers, same generated text."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_models import checkpoint_activations, ragged, some_ids
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers")

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
)

from spade_model import SpadeConfig, SpadeForSeq2Seq
from spade_model.huggingface import (
    SpadeForConditionalGeneration,
    SpadePretrainedConfig,
    SpadePretrainedModel,
)

TINY: dict[str, Any] = {
    "vocab_size": 90,
    "d_model": 32,
    "num_heads": 2,
    "head_dim": 12,
    "d_ff": 48,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "state_dim": 8,
    "local_radius_tokens": 7,
    "max_target_length_tokens": 40,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"normalization": "post", "final_norm": False},
    {"feed_forward": "gated_gelu", "feed_forward_bias": True, "decoder_bias": True},
    {"trainable_state_space": ("C", "D", "log_dt", "A", "B", "P"), "state_space_copies": 4},
    {"trainable_state_space": (), "state_space_layers": 2, "initialization": "published"},
    {"state_space": "none", "num_encoder_layers": 1, "num_decoder_layers": 3},
    {"num_encoder_layers": 3, "num_decoder_layers": 1},
]


def names_of(variant: dict[str, Any]) -> str:
    return ",".join(variant) or "default"


def plain_model(**changes: Any) -> SpadeForSeq2Seq:
    torch.manual_seed(5)
    return SpadeForSeq2Seq(SpadeConfig(**(TINY | changes))).eval()


def wrap(plain: SpadeForSeq2Seq, **kwargs: Any) -> SpadeForConditionalGeneration:
    config = SpadePretrainedConfig.from_spade_config(plain.config, **kwargs)
    model = SpadeForConditionalGeneration(config)
    model.load_state_dict(plain.state_dict())
    return model.eval()


def ten_texts() -> tuple[Tensor, Tensor]:
    """Ids and mask of what `learned_model` has learned to answer."""
    ids = some_ids(10, 31)
    mask = torch.ones_like(ids)
    for row in range(1, 10):
        mask[row, -2 * row :] = 0
    return ids, mask


@functools.cache
def learned_model(variant: int = 0) -> SpadeForSeq2Seq:
    """A model that has learned ten answers by heart, so that what it generates is no repetition."""
    plain = plain_model(**VARIANTS[variant])
    ids, mask = ten_texts()
    labels = some_ids(10, 24, seed=1)
    for row in range(10):
        labels[row, 6 + 2 * row :] = plain.config.eos_token_id
    optimizer = torch.optim.AdamW(plain.parameters(), lr=5e-3)
    for _ in range(60):
        loss = plain(ids, labels, attention_mask=mask.bool()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return plain


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    wrap(plain_model()).save_pretrained(folder)
    return folder


class TestConfiguration:
    def test_fields_and_defaults_are_those_of_the_plain_one(self) -> None:
        theirs = SpadePretrainedConfig()
        for field in dataclasses.fields(SpadeConfig):
            assert hasattr(theirs, field.name), field.name
            if field.default is not dataclasses.MISSING:
                assert getattr(theirs, field.name) == field.default, field.name

    @pytest.mark.parametrize("variant", VARIANTS, ids=names_of)
    def test_converts_both_ways_and_through_json(
        self, variant: dict[str, Any], tmp_path: Path
    ) -> None:
        plain = SpadeConfig(**(TINY | variant))
        config = SpadePretrainedConfig.from_spade_config(plain)
        assert config.to_spade_config() == plain
        config.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written.items() >= plain.to_dict().items()
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert isinstance(loaded, SpadePretrainedConfig)
        assert loaded.to_spade_config() == plain

    def test_common_names_are_understood(self) -> None:
        config = SpadePretrainedConfig(**(TINY | {"num_decoder_layers": 5}))
        config.num_hidden_layers = 2
        assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (
            32,
            2,
            2,
        )
        assert config.get_text_config(decoder=True).num_hidden_layers == 5
        assert config.get_text_config() is config

    def test_impossible_values_name_the_field(self) -> None:
        with pytest.raises(ValueError, match="state_dim=7"):
            SpadeForConditionalGeneration(SpadePretrainedConfig(**(TINY | {"state_dim": 7})))

    def test_token_ids_that_only_transformers_knows(self) -> None:
        """Several ends or none: the plain model, which has one, is built all the same."""
        several = SpadePretrainedConfig(**TINY, eos_token_id=[5, 6], pad_token_id=None)
        assert several.to_spade_config().eos_token_id == 5
        assert several.to_spade_config().pad_token_id == 0
        assert SpadeForConditionalGeneration(several).config.eos_token_id == [5, 6]


class TestSameNumbers:
    @pytest.mark.parametrize("variant", VARIANTS, ids=names_of)
    def test_keys_logits_and_loss_equal_the_plain_model(self, variant: dict[str, Any]) -> None:
        plain = plain_model(**variant)
        model = wrap(plain)
        assert list(model.state_dict()) == list(plain.state_dict())
        ids, mask, _ = ragged([37, 20, 5], "right")
        labels = some_ids(3, 11)
        labels[1, 6:] = -100
        ours = plain(ids, labels, attention_mask=mask.bool())
        theirs = model(input_ids=ids, attention_mask=mask, labels=labels)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours.loss, theirs.loss)
        assert torch.equal(ours.encoder_hidden_states, theirs.encoder_last_hidden_state)

    def test_a_new_model_starts_as_pretraining_does(self) -> None:
        plain = plain_model()
        torch.manual_seed(5)
        model = SpadeForConditionalGeneration(SpadePretrainedConfig.from_spade_config(plain.config))
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name

    def test_other_ways_to_give_the_input(self) -> None:
        model = wrap(plain_model())
        ids, labels = some_ids(2, 21), some_ids(2, 9)
        expected = model(input_ids=ids, labels=labels).logits
        shifted = model.prepare_decoder_input_ids_from_labels(labels)
        assert shifted[:, 0].tolist() == [0, 0]
        assert torch.equal(shifted[:, 1:], labels[:, :-1])
        embed = model.get_input_embeddings()
        encoded = model.get_encoder()(ids)
        for given in (
            {"inputs_embeds": embed(ids), "decoder_inputs_embeds": embed(shifted)},
            {"encoder_outputs": encoded, "decoder_input_ids": shifted},
            {"encoder_outputs": (encoded.last_hidden_state,), "decoder_input_ids": shifted},
        ):
            assert torch.equal(model(**given).logits, expected)
        assert isinstance(model(input_ids=ids, labels=labels, return_dict=False), tuple)

    @pytest.mark.parametrize("given", ["nothing", "twice"])
    def test_missing_and_doubled_inputs_are_errors(self, given: str) -> None:
        model = wrap(plain_model())
        ids = some_ids(1, 8)
        extra = {"inputs_embeds": model.get_input_embeddings()(ids)} if given == "twice" else {}
        with pytest.raises(ValueError, match="give either"):
            model(input_ids=ids if extra else None, decoder_input_ids=ids, **extra)
        with pytest.raises(ValueError, match="give either"):
            model(input_ids=ids)

    def test_accumulated_loss_is_divided_by_all_labels(self) -> None:
        model = wrap(plain_model())
        ids, labels = some_ids(4, 16), some_ids(4, 8)
        labels[0, 2:] = -100
        whole = model(input_ids=ids, labels=labels).loss
        count = (labels != -100).sum()
        parts = [
            model(input_ids=ids[[row]], labels=labels[[row]], num_items_in_batch=count).loss
            for row in range(4)
        ]
        torch.testing.assert_close(sum(parts), whole)

    def test_activation_checkpointing_changes_no_gradient(self) -> None:
        model = wrap(plain_model()).train()
        ids, labels = some_ids(2, 30), some_ids(2, 8)
        gradients = []
        for enabled in (False, True):
            if enabled:
                checkpoint_activations(model)
            assert model.is_activation_checkpointing is enabled
            model.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
        old = model.gradient_checkpointing_disable
        getattr(model, "activation_checkpointing_disable", old)()
        assert not model.is_activation_checkpointing
        for name, gradient in gradients[0].items():
            assert torch.equal(gradient, gradients[1][name]), name


class TestLoading:
    @pytest.mark.parametrize("variant", VARIANTS, ids=names_of)
    def test_auto_classes_load_every_bit(self, variant: dict[str, Any], tmp_path: Path) -> None:
        plain = plain_model(**variant)
        wrap(plain).save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        assert stored.keys() == plain.state_dict().keys() - {"lm_head.weight"}
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
        assert isinstance(model, SpadeForConditionalGeneration)
        assert model.lm_head.weight is model.model.shared.weight
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
        ids, labels = some_ids(2, 33), some_ids(2, 7)
        assert torch.equal(plain(ids, labels).logits, model(input_ids=ids, labels=labels).logits)

    def test_the_bare_model_loads_from_the_same_folder(self, saved: Path) -> None:
        model, report = AutoModel.from_pretrained(saved, output_loading_info=True)
        assert isinstance(model, SpadePretrainedModel)
        assert not report["missing_keys"] | report["unexpected_keys"]
        ids = some_ids(2, 19)
        output = model(input_ids=ids, decoder_input_ids=ids[:, :4])
        whole = AutoModelForSeq2SeqLM.from_pretrained(saved)
        logits = whole(input_ids=ids, decoder_input_ids=ids[:, :4]).logits
        assert torch.equal(whole.lm_head(output.last_hidden_state), logits)

    def test_bfloat16_keeps_the_state_space_in_float32(self, saved: Path, tmp_path: Path) -> None:
        exact = load_file(saved / "model.safetensors")
        model = AutoModelForSeq2SeqLM.from_pretrained(saved, dtype=torch.bfloat16)
        for _ in range(2):
            for name, tensor in model.state_dict().items():
                if ".state_space." in name:
                    assert torch.equal(tensor, exact[name]), name
                else:
                    assert tensor.dtype == torch.bfloat16, name
            model.save_pretrained(tmp_path)
            model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
        ids, labels = some_ids(2, 33), some_ids(2, 7)
        reference = AutoModelForSeq2SeqLM.from_pretrained(saved)(input_ids=ids, labels=labels)
        output = model(input_ids=ids, labels=labels)
        assert output.loss.item() == pytest.approx(reference.loss.item(), abs=0.05)
        assert model.generate(ids, max_new_tokens=5).shape[0] == 2

    def test_what_a_checkpoint_lacks_is_drawn_and_the_rest_is_kept(
        self, saved: Path, tmp_path: Path
    ) -> None:
        stored = load_file(saved / "model.safetensors")
        marks = ("state_space.", "positions.weight", "layers.1.position_wise")
        lacking = {name for name in stored if any(mark in name for mark in marks)}
        kept = {name: tensor for name, tensor in stored.items() if name not in lacking}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
        model, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
        assert report["missing_keys"] == lacking
        for name, tensor in kept.items():
            assert torch.equal(tensor, model.state_dict()[name]), name
        state = model.state_dict()
        (prefix,) = {n.rsplit(".", 1)[0] for n in lacking if "state_space." in n}
        # HiPPO has one value; what is random is somewhere sensible, and somewhere else.
        for constant in ("log_decay", "frequency", "B", "P"):
            name = f"{prefix}.{constant}"
            torch.testing.assert_close(state[name], stored[name])
        assert state[f"{prefix}.log_dt"].exp().min() >= 1e-3
        assert state[f"{prefix}.log_dt"].exp().max() <= 0.1
        positions = state["model.decoder.positions.weight"]
        fresh = stored["model.decoder.positions.weight"]
        assert positions.std().item() == pytest.approx(fresh.std().item(), rel=0.1)
        assert not torch.equal(positions, fresh)

    def test_more_tokens_stay_tied(self, saved: Path) -> None:
        model = AutoModelForSeq2SeqLM.from_pretrained(saved)
        before = model.model.shared.weight.detach().clone()
        model.resize_token_embeddings(TINY["vocab_size"] + 6)
        assert model.config.vocab_size == TINY["vocab_size"] + 6
        assert model.lm_head.weight is model.model.shared.weight
        assert torch.equal(model.model.shared.weight[: TINY["vocab_size"]], before)
        assert model(input_ids=some_ids(1, 9), labels=some_ids(1, 4)).logits.shape[-1] == 96


class TestGeneration:
    @pytest.mark.parametrize("variant", range(len(VARIANTS)))
    @pytest.mark.parametrize("beams", [1, 4])
    def test_cached_equals_uncached(self, variant: int, beams: int) -> None:
        model = wrap(learned_model(variant))
        ids, mask = ten_texts()
        options = {"attention_mask": mask, "max_new_tokens": 25, "num_beams": beams}
        cached = model.generate(ids, **options)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
        assert len(set(cached.flatten().tolist())) > 30, "the answers were not learned"

    def test_greedy_equals_the_plain_models_generate(self) -> None:
        plain = learned_model()
        ids, mask = ten_texts()
        ours = plain.generate(ids, attention_mask=mask.bool(), max_new_tokens=40)
        theirs = wrap(plain).generate(ids, attention_mask=mask, max_new_tokens=40)
        assert torch.equal(ours, theirs[:, 1:])

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("beams", [1, 3])
    def test_a_padded_batch_gives_what_single_rows_give(self, side: str, beams: int) -> None:
        model = wrap(learned_model())
        ids, mask, rows = ragged([31, 9, 17], side)
        options = {"max_new_tokens": 20, "num_beams": beams}
        together = model.generate(ids, attention_mask=mask, **options)
        labels = some_ids(3, 12)
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        for index, row in enumerate(rows):
            alone = model.generate(row, **options)
            width = min(alone.shape[1], together.shape[1])
            assert torch.equal(alone[0, :width], together[index, :width])
            single = model(input_ids=row, labels=labels[[index]]).logits
            torch.testing.assert_close(logits[[index]], single, atol=1e-5, rtol=0)

    def test_step_by_step_logits_equal_those_at_once(self) -> None:
        model = wrap(learned_model(5))
        ids, target = some_ids(2, 18), some_ids(2, 10)
        at_once = model(input_ids=ids, decoder_input_ids=target).logits
        encoded = model.get_encoder()(ids)
        cache, steps = None, []
        for position in range(10):
            output = model(
                encoder_outputs=encoded,
                decoder_input_ids=target[:, position : position + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            steps.append(output.logits)
        assert cache.get_seq_length() == 10
        torch.testing.assert_close(torch.cat(steps, dim=1), at_once, atol=1e-5, rtol=0)

    def test_use_cache_is_honoured(self) -> None:
        model = wrap(plain_model(), use_cache=False)
        ids = some_ids(1, 9)
        given = {"input_ids": ids, "decoder_input_ids": ids[:, :2]}
        assert model(**given).past_key_values is None
        assert model(**given, use_cache=True).past_key_values.get_seq_length() == 2
        assert model(input_ids=ids, labels=ids[:, :2]).past_key_values is None

    def test_unsupported_caches_and_lengths_are_errors(self) -> None:
        model = wrap(plain_model())
        ids = some_ids(1, 9)
        with pytest.raises(ValueError, match="EncoderDecoderCache"):
            model(input_ids=ids, decoder_input_ids=ids, past_key_values=DynamicCache())
        with pytest.raises(ValueError, match="max_target_length_tokens=40"):
            model.generate(ids, min_new_tokens=41, max_new_tokens=41)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        assert model(input_ids=ids, decoder_input_ids=ids, past_key_values=cache).logits.isfinite()[
            0, 0, 0
        ]
