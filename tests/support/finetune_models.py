"""Small exported folders and made-up tasks for the tests of fine-tuning."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch

WORDS = [a + b + c for a in "bdglmnrst" for b in "aeiou" for c in ("", "n", "r")]
GOOD, BAD = ("bright", "lovely", "warm"), ("dreary", "vile", "cold")


def sentences(rows: int, seed: int) -> list[tuple[str, str]]:
    """Texts with labels ``0`` and ``1``; one word somewhere in a text decides."""
    chance = random.Random(seed)
    made = []
    for row in range(rows):
        words = chance.choices(WORDS, k=chance.randint(4, 14))
        words.insert(chance.randrange(len(words)), chance.choice((BAD, GOOD)[row % 2]))
        made.append((" ".join(words), str(row % 2)))
    return made


def write_sst2(path: Path, rows: int, seed: int, *, labelled: bool = True) -> Path:
    """Write sentences in the layout of GLUE's SST-2."""
    lines = ["sentence\tlabel" if labelled else "index\tsentence"]
    for index, (text, label) in enumerate(sentences(rows, seed)):
        lines.append(f"{text}\t{label}" if labelled else f"{index}\t{text}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_exported(folder: Path) -> Path:
    """Write a folder as `spade export` does, of a model that has learned nothing."""
    from data_pipeline.corpora.corpus import iterate_documents
    from data_pipeline.tokenization.segments import SEGMENT_PATTERN
    from data_pipeline.tokenization.tokenizer import train_tokenizer
    from spade_model.huggingface import (
        SpadeForConditionalGeneration,
        SpadePretrainedConfig,
        SpadeTokenizer,
    )

    corpus = folder.parent / "corpus.jsonl"
    texts = [text for text, _ in sentences(400, seed=7)] + ["negative positive"] * 40
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))
    )
    trained = folder.parent / "tokenizer"
    train_tokenizer(iterate_documents([corpus]), vocab_size=440, sentinels=8, out=trained, seed=0)
    tokenizer = SpadeTokenizer.from_sentencepiece(
        trained / "spiece.model", sentinels=8, segment_pattern=SEGMENT_PATTERN
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
        local_radius_tokens=7,
        max_target_length_tokens=16,
        dropout=0.1,
    )
    SpadeForConditionalGeneration(config).save_pretrained(folder)
    return folder


def write_summaries(path: Path, rows: int, seed: int, *, with_summaries: bool = True) -> Path:
    """Write documents whose summary names the one word in them that means something."""
    chance = random.Random(seed)
    lines = []
    for row in range(rows):
        words = chance.choices(WORDS, k=chance.randint(4, 40))
        key = chance.choice(GOOD + BAD)
        words.insert(chance.randrange(3, len(words) + 1), key)
        record = {"id": f"d{row}", "document": " ".join(words) + "."}
        if with_summaries:
            record["summary"] = f"it is {key}."
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path
