"""The encoder and its heads: from a pretrained folder, blind to padding, with the right loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from huggingface_models import CAUSAL, built, ragged, some_ids, tiny_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)

from spade_model.huggingface import (
    SpadeEncoderModel,
    SpadeForConditionalGeneration,
    SpadeForQuestionAnswering,
    SpadeForSequenceClassification,
    SpadeForTokenClassification,
)

HEADS: list[tuple[Any, Any, set[str]]] = [
    (AutoModelForTextEncoding, SpadeEncoderModel, set()),
    (AutoModelForSequenceClassification, SpadeForSequenceClassification, {"classifier"}),
    (AutoModelForTokenClassification, SpadeForTokenClassification, {"classifier"}),
    (AutoModelForQuestionAnswering, SpadeForQuestionAnswering, {"qa_outputs"}),
]
EVERY_HEAD = pytest.mark.parametrize(
    ("auto_class", "model_class", "heads"), HEADS, ids=lambda x: getattr(x, "__name__", "")
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pretraining exports it."""
    folder = tmp_path_factory.mktemp("saved")
    built(SpadeForConditionalGeneration).save_pretrained(folder)
    return folder


@EVERY_HEAD
class TestEveryHead:
    def test_a_pretrained_folder_lacks_only_the_head(
        self, saved: Path, tmp_path: Path, auto_class: Any, model_class: Any, heads: set[str]
    ) -> None:
        model, report = auto_class.from_pretrained(saved, output_loading_info=True)
        assert isinstance(model, model_class)
        expected = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
        assert report["missing_keys"] == expected
        assert not report["unexpected_keys"]
        stored = load_file(saved / "model.safetensors")
        prefix = "" if heads else "model."
        for name, tensor in model.state_dict().items():
            if name not in expected:
                assert torch.equal(tensor, stored[prefix + name]), name
        # What it saves is an encoder, and says so.
        model.eval().save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["num_decoder_layers"] == 0
        assert not written.get("is_encoder_decoder")
        again, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] | report["unexpected_keys"]
        ids = some_ids(2, 25)
        assert torch.equal(model(input_ids=ids)[0], again(input_ids=ids)[0])
        bare, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        encoder = model if model_class is SpadeEncoderModel else model.model
        hidden = encoder(input_ids=ids).last_hidden_state
        assert torch.equal(bare(input_ids=ids).last_hidden_state, hidden)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_padded_batch_gives_what_single_rows_give(
        self, saved: Path, side: str, auto_class: Any, model_class: Any, heads: set[str]
    ) -> None:
        """Masking attention alone would not do: a state space carries padding along."""
        model = auto_class.from_pretrained(saved)
        ids, mask, rows = ragged([200, 9, 17], side)
        together = model(input_ids=ids, attention_mask=mask)
        for index, row in enumerate(rows):
            alone = model(input_ids=row)
            for name in alone:
                found = together[name][[index]]
                if found.shape[1] == ids.shape[1]:
                    found = found[:, mask[index].bool()]
                torch.testing.assert_close(found, alone[name], atol=2e-5, rtol=0)

    def test_outputs_in_every_form(
        self, saved: Path, auto_class: Any, model_class: Any, heads: set[str]
    ) -> None:
        model = auto_class.from_pretrained(saved)
        ids, mask, _ = ragged([21, 9], "right")
        plain = model(input_ids=ids, attention_mask=mask)
        assert "hidden_states" not in plain
        asked = {"output_hidden_states": True, "output_attentions": True}
        output = model(input_ids=ids, attention_mask=mask, **asked)
        assert [x.shape for x in output.hidden_states] == [(2, 21, 32)] * 3
        assert [x.shape for x in output.attentions] == [(2, 2, 21, 21)] * 2
        by_token = output[0].shape[:2] == mask.shape
        places = mask > 0 if by_token else slice(None)
        torch.testing.assert_close(output[0][places], plain[0][places], atol=1e-5, rtol=0)
        as_tuple = model(input_ids=ids, attention_mask=mask, **asked, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], output[0])
        assert len(as_tuple) == len(output)
        model.config.output_hidden_states = True
        nested = model if model_class is SpadeEncoderModel else model.model
        nested.config.output_hidden_states = True
        assert len(model(input_ids=ids).hidden_states) == 3
        embeddings = model.get_input_embeddings()(ids)
        again = model(inputs_embeds=embeddings, attention_mask=mask)
        assert torch.equal(again[0], plain[0])
        with pytest.raises(ValueError, match="give either"):
            model(input_ids=ids, inputs_embeds=embeddings)

    def test_a_language_model_has_no_encoder(
        self, auto_class: Any, model_class: Any, heads: set[str]
    ) -> None:
        with pytest.raises(ValueError, match="AutoModelForCausalLM"):
            model_class(tiny_config(**CAUSAL))


def test_the_encoder_is_that_of_the_encoder_decoder(saved: Path) -> None:
    encoder = AutoModelForTextEncoding.from_pretrained(saved)
    whole = AutoModelForSeq2SeqLM.from_pretrained(saved)
    ids, mask, _ = ragged([30, 11], "right")
    expected = whole.get_encoder()(ids, mask).last_hidden_state
    assert torch.equal(encoder(ids, attention_mask=mask).last_hidden_state, expected)
    assert torch.equal(encoder.get_encoder()(ids, mask).last_hidden_state, expected)


def test_token_labels_are_compared_one_by_one() -> None:
    model = built(SpadeForTokenClassification, num_labels=4)
    ids, mask, _ = ragged([13, 7], "right")
    labels = (ids % 4).masked_fill(mask == 0, -100)
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    assert output.logits.shape == (2, 13, 4)
    chosen = output.logits.log_softmax(-1)[mask > 0]
    expected = -chosen.gather(1, labels[mask > 0][:, None]).mean()
    torch.testing.assert_close(output.loss, expected)
    parts = [
        model(
            input_ids=ids[[row]],
            attention_mask=mask[[row]],
            labels=labels[[row]],
            num_items_in_batch=torch.tensor(20),
        ).loss
        for row in range(2)
    ]
    torch.testing.assert_close(sum(parts), output.loss)
    # Labels that are a view of something else, as compiled data loaders give them.
    wide = torch.stack([labels, labels], dim=-1)[..., 0]
    again = model(input_ids=ids, attention_mask=mask, labels=wide).loss
    torch.testing.assert_close(again, output.loss)


def test_answers_are_pointed_at_and_never_in_padding() -> None:
    model = built(SpadeForQuestionAnswering)
    ids, mask, rows = ragged([13, 7], "right")
    first, last = torch.tensor([2, 5]), torch.tensor([8, 40])
    given = {"start_positions": first, "end_positions": last}
    output = model(input_ids=ids, attention_mask=mask, **given)
    assert output.start_logits.shape == output.end_logits.shape == (2, 13)
    alone = model(input_ids=rows[1])
    starts = [functional.cross_entropy(output.start_logits[:1], first[:1])]
    starts.append(functional.cross_entropy(alone.start_logits, first[1:]))
    # The second answer ends outside the row and is not counted.
    end = functional.cross_entropy(output.end_logits[:1], last[:1])
    torch.testing.assert_close(output.loss, (sum(starts) / 2 + end) / 2)
    assert int(output.end_logits[1].argmax()) < 7
    output.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert model(input_ids=ids, start_positions=first).loss is None


@pytest.mark.parametrize("model_class", [head[1] for head in HEADS[1:]])
def test_heads_have_dropout(model_class: Any) -> None:
    model, ids = built(model_class, dropout=0.5), some_ids(2, 12)
    assert torch.equal(model(input_ids=ids)[0], model(input_ids=ids)[0])
    model.train()
    assert not torch.equal(model(input_ids=ids)[0], model(input_ids=ids)[0])


def test_pipelines_find_the_classes(saved: Path) -> None:
    """What `transformers` chooses a pipeline's model by: the Auto classes."""
    model = AutoModelForTokenClassification.from_pretrained(saved, num_labels=2)
    labels = {0: "outside", 1: "inside"}
    model.config.id2label, model.config.label2id = labels, {v: k for k, v in labels.items()}
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(90)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w3")
    found = pipeline("token-classification", model=model, tokenizer=tokenizer)("w5 w6 w7")
    assert len(found) == 3
    assert all(entry["entity"] in ("inside", "outside") for entry in found)
