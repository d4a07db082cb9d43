"""Whether an exported folder is what it was exported from, as a stranger's process finds it.

Run in a process of its own: ``python -m spade_model.huggingface.self_check FOLDER REFERENCE``.
The reference folder holds ``tensors.safetensors`` (`input_ids`, `attention_mask`, `labels` and the
plain model's `logits`) and ``texts.json`` (texts with the ids they have in pretraining). The last
line printed is JSON: what was compared, and what is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import spade_model.huggingface  # noqa: F401 - registers the Auto classes
from spade_model.huggingface.tokenization import SENTENCEPIECE_FILE, sentinel_token

LOGIT_TOLERANCE = 1e-5
"""Largest difference of a float32 logit from the plain model's: the same sums in the same order."""

CACHE_TOLERANCE = 1e-4
"""Largest difference of a logit decoded with a cache: the same sums, in another order."""

TIE_TOLERANCE = 1e-6
"""Segmentations whose scores differ by less than this fraction are a tie, see `tokenization`."""

GENERATED_TOKENS = 24
"""Tokens generated to compare decoding with a cache and without."""


def check_folder(folder: Path, reference: Path) -> dict[str, Any]:
    """Compare a folder with its reference.

    Args:
        folder: What `transformers` shall load.
        reference: See the module.

    Returns:
        `problems`, a list of sentences, empty if all is well; `logit_difference` and
        `cache_difference`, the largest found; `texts` and `ties`, how many were compared and in how
        many a tie was broken differently.
    """
    tensors = load_file(reference / "tensors.safetensors")
    texts = json.loads((reference / "texts.json").read_text(encoding="utf-8"))
    # Float32 whatever the weights are stored as: rounding shall not hide a mistake.
    model, loaded = AutoModelForSeq2SeqLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problems = [
        f"weights are {kind.replace('_', ' ')}: {', '.join(sorted(map(str, loaded[kind]))[:3])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if loaded[kind]
    ]
    with torch.no_grad():
        output = model(**{name: tensors[name] for name in tensors if name != "logits"})
        logit_difference = _largest_difference(output.logits, tensors["logits"])
        cache_difference = _cached_decoding(model, tensors)
    for what, difference, tolerance in (
        ("logits differ from the pretrained model's", logit_difference, LOGIT_TOLERANCE),
        ("logits with a cache differ from those without", cache_difference, CACHE_TOLERANCE),
    ):
        # Not `>`: a NaN is a difference too.
        if not difference <= tolerance:
            problems.append(f"{what} by {difference:.3g}, more than {tolerance:g}")
    ties = _compare_texts(folder, tokenizer, texts, problems)
    _compare_sentinels(tokenizer, model.config.vocab_size, texts["sentinel_count"], problems)
    return {
        "problems": problems,
        "logit_difference": logit_difference,
        "cache_difference": cache_difference,
        "texts": len(texts["documents"]),
        "ties": ties,
    }


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item() if one.shape == other.shape else float("inf")


def _cached_decoding(model: Any, tensors: dict[str, Tensor]) -> float:
    """Largest difference between logits step by step with a cache and all at once without."""
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    steps = min(GENERATED_TOKENS, model.config.max_target_length_tokens)
    generated = model.generate(
        **inputs,
        max_new_tokens=steps,
        # Rows that have ended would be filled with padding, whose logits are not comparable.
        min_new_tokens=steps,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    stepwise = torch.stack(generated.logits, dim=1)
    decoder_input_ids = generated.sequences[:, :-1]
    at_once = model(**inputs, decoder_input_ids=decoder_input_ids, use_cache=False).logits
    return _largest_difference(stepwise, at_once)


def _compare_texts(folder: Path, tokenizer: Any, texts: dict[str, Any], problems: list[str]) -> int:
    """Compare ids and decoded texts; returns in how many a tie was broken differently."""
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))
    backend = tokenizer.backend_tokenizer
    # In documents `</s>` is four characters, and so it was when they were tokenized.
    backend.encode_special_tokens = True
    ties = 0
    for number, document in enumerate(texts["documents"]):
        text, expected = document["text"], document["ids"]
        ids = backend.encode(text, add_special_tokens=False).ids
        if ids != expected:
            scores = [sum(map(original.GetScore, found)) for found in (ids, expected)]
            equal = abs(scores[0] - scores[1]) <= TIE_TOLERANCE * abs(scores[1])
            # Pieces of equal score may have changed places: a tie is another way to cut one text.
            if not equal or original.Decode(ids) != original.Decode(expected):
                problems.append(f"text {number} has other ids than in pretraining")
            ties += 1
        if backend.decode(ids, skip_special_tokens=False) != text:
            problems.append(f"text {number} does not come back from its ids")
    backend.encode_special_tokens = False
    return ties


def _compare_sentinels(
    tokenizer: Any, vocab_size: int, sentinel_count: int, problems: list[str]
) -> None:
    if len(tokenizer) != vocab_size:
        problems.append(f"the tokenizer has {len(tokenizer)} ids, the model {vocab_size}")
    for number in (0, sentinel_count - 1):
        token, expected = sentinel_token(number), vocab_size - 1 - number
        found = tokenizer(f"a{token}").input_ids[-2:]
        if found != [expected, tokenizer.eos_token_id]:
            problems.append(f"{token} and the end are read as {found}, expected id {expected}")


if __name__ == "__main__":
    print(json.dumps(check_folder(Path(sys.argv[1]), Path(sys.argv[2]))))
