"""Whether an exported folder is what it was exported from, as strangers' processes find it.

Run by its path: ``python self_check.py FOLDER REFERENCE PACKAGES``. It forks two processes, one
after the other, that share nothing but the time it takes to load `transformers`: in the first none
of our packages can be imported, so that the folder has to bring its own code; in the second they
come from the folder PACKAGES. Nothing here imports them at the top for that reason.

The reference folder holds ``tensors.safetensors`` (`input_ids`, `attention_mask`, `labels`, and the
plain model's `logits`, `greedy` and `beams`) and ``texts.json`` (texts with the ids they have in
pretraining). The last line printed is JSON: what was compared, and what is wrong.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

OUR_PACKAGES = ("spade_model", "data_pipeline", "pretrain", "finetune", "launch", "benchmarks")
"""What a stranger does not have."""

SENTENCEPIECE_FILE = "spiece.model"

LOGIT_TOLERANCE = 1e-5
"""Largest difference of a float32 logit from the plain model's: the same sums in the same order."""

CACHE_TOLERANCE = 1e-4
"""Largest difference of a logit decoded with a cache: the same sums, in another order."""

TIE_TOLERANCE = 1e-6
"""Segmentations whose scores differ by less than this fraction are a tie, see `tokenization`."""

STEPWISE_TOKENS = 24
"""Tokens whose logits are compared one by one with a cache and all at once without."""

_SHARED = ("transformers.modeling_utils", "transformers.generation.utils")
"""What both processes would take seconds to load."""

BEAMS = 4
"""Of the reference's beam search."""


class AbsentPackages(MetaPathFinder):
    """Makes packages impossible to import, wherever they are installed."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Refuse what is absent, leave the rest to others.

        Raises:
            ModuleNotFoundError: The module is one of an absent package.
        """
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def check_as_stranger(folder: Path, reference: Path) -> dict[str, Any]:
    """Compare a folder with its reference where our packages cannot be imported.

    Args:
        folder: What `transformers` shall load with ``trust_remote_code=True``.
        reference: See the module.

    Returns:
        As `check_folder`.
    """
    assert not [name for name in sys.modules if name.partition(".")[0] in OUR_PACKAGES]
    sys.meta_path.insert(0, AbsentPackages(OUR_PACKAGES))
    return check_folder(folder, reference, trust_remote_code=True)


def check_with_package(folder: Path, reference: Path, packages: Path) -> dict[str, Any]:
    """Compare a folder with its reference where our package is imported.

    Args:
        folder: What `transformers` shall load.
        reference: See the module.
        packages: The folder that our packages lie in.

    Returns:
        As `check_folder`.
    """
    sys.path.insert(0, str(packages))
    import_module("spade_model.huggingface")  # registers the Auto classes
    return check_folder(folder, reference, trust_remote_code=None)


def check_folder(folder: Path, reference: Path, trust_remote_code: bool | None) -> dict[str, Any]:
    """Compare a folder with its reference.

    Args:
        folder: What `transformers` shall load.
        reference: See the module.
        trust_remote_code: As for `from_pretrained`.

    Returns:
        `problems`, a list of sentences, empty if all is well; `logit_difference` and
        `cache_difference`, the largest found; `greedy_tokens` and `beam_tokens`, how many generated
        ids of a row were compared; `texts` and `ties`, how many were compared and in how many a tie
        was broken differently.
    """
    tensors = load_file(reference / "tensors.safetensors")
    texts = json.loads((reference / "texts.json").read_text(encoding="utf-8"))
    # Float32 whatever the weights are stored as: rounding shall not hide a mistake.
    model, loaded = AutoModelForSeq2SeqLM.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    problems = [
        f"weights are {kind.replace('_', ' ')}: {', '.join(sorted(map(str, loaded[kind]))[:3])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if loaded[kind]
    ]
    if type(model).__module__.startswith("transformers_modules.") is not bool(trust_remote_code):
        problems.append(f"the model's class comes from {type(model).__module__}")
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model(**inputs, labels=tensors["labels"])
        logit_difference = _largest_difference(output.logits, tensors["logits"])
        cache_difference = _cached_decoding(model, inputs)
        _compare_generation(model, inputs, tensors, problems)
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
        "greedy_tokens": tensors["greedy"].shape[1],
        "beam_tokens": tensors["beams"].shape[1],
        "texts": len(texts["documents"]),
        "ties": ties,
    }


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item() if one.shape == other.shape else float("inf")


def _cached_decoding(model: Any, inputs: dict[str, Tensor]) -> float:
    """Largest difference between logits step by step with a cache and all at once without."""
    steps = min(STEPWISE_TOKENS, model.config.max_target_length_tokens)
    generated = model.generate(
        **inputs,
        **_exactly(steps),
        num_beams=1,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    stepwise = torch.stack(generated.logits, dim=1)
    decoder_input_ids = generated.sequences[:, :-1]
    at_once = model(**inputs, decoder_input_ids=decoder_input_ids, use_cache=False).logits
    return _largest_difference(stepwise, at_once)


def _compare_generation(
    model: Any, inputs: dict[str, Tensor], tensors: dict[str, Tensor], problems: list[str]
) -> None:
    """Compare ids of greedy decoding and beam search with the reference's."""
    for name, num_beams in (("greedy", 1), ("beams", BEAMS)):
        expected = tensors[name]
        if not expected.shape[1]:
            continue  # a tie decides the first token already
        for use_cache in (True, False):
            found = model.generate(
                **inputs, **_exactly(expected.shape[1]), num_beams=num_beams, use_cache=use_cache
            )
            if not torch.equal(found[:, 1:], expected):
                how = f"{'with' if use_cache else 'without'} a cache"
                problems.append(f"{name}: generation {how} differs from the pretrained model's")


def _exactly(tokens: int) -> dict[str, Any]:
    """Settings to generate so many: rows that have ended would be filled with padding."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


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
        token, expected = f"<extra_id_{number}>", vocab_size - 1 - number
        found = tokenizer(f"a{token}").input_ids[-2:]
        if found != [expected, tokenizer.eos_token_id]:
            problems.append(f"{token} and the end are read as {found}, expected id {expected}")


def main(folder: Path, reference: Path, packages: Path) -> dict[str, Any]:
    """Make both comparisons, each in a process of its own, and put their results together."""
    for name in _SHARED:
        import_module(name)
    alone = _in_a_fork(check_as_stranger, folder, reference)
    ours = _in_a_fork(check_with_package, folder, reference, packages)
    named = [f"with the folder's own code: {problem}" for problem in alone["problems"]]
    differences = {
        name: max(alone[name], ours[name]) for name in ("logit_difference", "cache_difference")
    }
    return ours | differences | {"problems": [*ours["problems"], *named]}


def _in_a_fork(check: Callable[..., dict[str, Any]], *arguments: Path) -> dict[str, Any]:
    """Call a function in a process of its own, whose loss is an error and not a wait.

    Raises:
        RuntimeError: It failed; the message is one line.
    """
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_told, check, *arguments).result()


def _told(check: Callable[..., dict[str, Any]], *arguments: Path) -> dict[str, Any]:
    """Call a function; not every error of a library finds its way to another process."""
    try:
        return check(*arguments)
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split())
        raise RuntimeError(f"{type(error).__name__}: {reason}") from None


if __name__ == "__main__":
    try:
        print(json.dumps(main(*map(Path, sys.argv[1:]))))
    except RuntimeError as failure:
        sys.exit(str(failure))
