"""What an exported model writes, into gaps and after a prompt, can be shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from pretrain.exporting.export import ExportError, is_export
from pretrain.exporting.fill import _split_spans, fill_spans, generate_text

TEXT = "\n".join(f"line {number} says that every word may hide" for number in range(40))


@pytest.fixture(scope="module")
def exported(prose_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `export` writes it, of a model that has learned nothing."""
    from data_pipeline.tokenization.segments import SEGMENT_PATTERN
    from spade_model.huggingface import (
        SpadeForConditionalGeneration,
        SpadePretrainedConfig,
        SpadeTokenizer,
    )

    folder = tmp_path_factory.mktemp("exported")
    tokenizer = SpadeTokenizer.from_sentencepiece(
        prose_data / "tokenizer" / "spiece.model",
        sentinels=64,
        segment_pattern=SEGMENT_PATTERN,
        model_max_length=64,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = SpadePretrainedConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        num_heads=2,
        head_dim=16,
        d_ff=64,
        num_encoder_layers=2,
        num_decoder_layers=1,
        state_dim=8,
        local_radius_tokens=15,
        max_target_length_tokens=40,
    )
    SpadeForConditionalGeneration(config).save_pretrained(folder)
    (folder / "provenance.json").write_text('{"format": "spade-export"}')
    return folder


def test_gaps_hide_what_was_there(exported: Path) -> None:
    texts = [TEXT, TEXT[::-1]]
    fills = fill_spans(exported, texts, spans=3, seed=4, names=["forwards", "backwards"])
    assert [fill.name for fill in fills] == ["forwards", "backwards"]
    for text, fill in zip(texts, fills, strict=True):
        restored = fill.masked_text
        for number, span in enumerate(fill.spans):
            assert restored.count(f"<extra_id_{number}>") == 1
            assert any(character.isalpha() for character in span.truth)
            restored = restored.replace(f"<extra_id_{number}>", span.truth)
        assert restored in text
        assert len(fill.spans) == 3
    again = fill_spans(exported, texts, spans=3, seed=4, names=["forwards", "backwards"])
    assert again == fills
    assert fill_spans(exported, texts, spans=3, seed=5)[0].masked_text != fills[0].masked_text
    assert json.loads(json.dumps(dataclasses.asdict(fills[0])))["name"] == "forwards"


def test_generated_spans_are_told_apart(exported: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    sentinel = [len(tokenizer) - 1 - number for number in range(4)]
    for output, expected in (
        ([sentinel[0], 5, 6, sentinel[1], 7], [[5, 6], [7]]),
        ([5, sentinel[1], 6, sentinel[0]], [[], [6]]),
        ([sentinel[0], 5, sentinel[3], 6, sentinel[0], 7], [[5], []]),
        ([], [[], []]),
    ):
        assert _split_spans(tokenizer, output, 2) == expected


def test_a_prompt_is_answered(exported: Path) -> None:
    answer = generate_text(exported, "line <extra_id_0> says", 8)
    assert isinstance(answer, str)
    assert "</s>" not in answer
    assert answer == generate_text(exported, "line <extra_id_0> says", 8)
    with pytest.raises(ExportError, match="max_new_tokens 0"):
        generate_text(exported, "x", 0)
    with pytest.raises(ExportError, match="max_new_tokens 100000"):
        generate_text(exported, "x", 100_000)


def test_impossible_wishes(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="text 0"):
        fill_spans(exported, ["too short"], spans=9, seed=0)
    with pytest.raises(ExportError, match="spans 0"):
        fill_spans(exported, [TEXT], spans=0, seed=0)
    with pytest.raises(ExportError, match="sentinels"):
        fill_spans(exported, [TEXT * 9], spans=65, seed=0, span_tokens=1)
    with pytest.raises(ExportError, match="is no exported model"):
        generate_text(tmp_path, "x", 5)
    assert not is_export(tmp_path)
