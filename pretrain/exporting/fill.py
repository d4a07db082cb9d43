"""What an exported model writes: into gaps of real text, and after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from pretrain.exporting.errors import ExportError
from pretrain.exporting.export import is_export

_REPLACEMENT = "\ufffd"
_SENTINEL_PREFIX = "<extra_id_"


@dataclass(frozen=True)
class Span:
    """One gap."""

    truth: str
    """What stood there."""
    generated: str
    """What the model wrote; empty if it skipped the gap."""


@dataclass(frozen=True)
class Fill:
    """One text with gaps, and what the model made of them."""

    name: str
    masked_text: str
    """The model's input: the text with a sentinel at each gap."""
    spans: tuple[Span, ...]


def fill_spans(
    export_dir: Path,
    texts: Sequence[str],
    *,
    spans: int,
    seed: int,
    names: Sequence[str] | None = None,
    span_tokens: int = 3,
    context_tokens: int | None = None,
) -> list[Fill]:
    """Mask spans of text and let an exported model fill them in, greedily.

    Args:
        export_dir: A folder written by `pretrain.exporting.export.export`.
        texts: Texts the model has not seen; of a long one a part is taken.
        spans: Gaps in each text.
        seed: Chooses the part and the gaps.
        names: Names of the texts; by default their numbers.
        span_tokens: Tokens of each gap.
        context_tokens: Most tokens of a text to use; by default as many as in pretraining.

    Returns:
        One fill a text, in order.

    Raises:
        ExportError: If the folder is no export, or a text is too short for so many gaps.
    """
    if spans < 1 or span_tokens < 1:
        raise ExportError(f"spans {spans} and span_tokens {span_tokens} must both be at least 1")
    model, tokenizer = _load(export_dir)
    sentinels = sum(token.startswith(_SENTINEL_PREFIX) for token in tokenizer.get_added_vocab())
    if spans > sentinels:
        raise ExportError(
            f"spans {spans} exceeds the {sentinels} sentinels of {export_dir}; ask for fewer"
        )
    limit = context_tokens or tokenizer.model_max_length - 1
    generator = np.random.default_rng(seed)
    names = [str(number) for number in range(len(texts))] if names is None else names
    masked, truths = [], []
    for name, text in zip(names, texts, strict=True):
        ids = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        if len(ids) > limit:
            start = int(generator.integers(len(ids) - limit + 1))
            ids = ids[start : start + limit]
        starts = _choose_gaps(tokenizer, ids, spans, span_tokens, generator)
        if starts is None:
            raise ExportError(
                f"text {name}: its {len(ids)} tokens are too few for {spans} gaps of {span_tokens} "
                "tokens; use a longer text or fewer spans"
            )
        kept, position = [], 0
        for number, start in enumerate(starts):
            kept += [*ids[position:start], _sentinel_id(tokenizer, number)]
            position = start + span_tokens
        masked.append(kept + ids[position:])
        truths.append([ids[start : start + span_tokens] for start in starts])
    budget = min(spans * (2 * span_tokens + 1) + 1, model.config.max_target_length_tokens)
    outputs = _generate(model, tokenizer, masked, budget)
    return [
        Fill(
            name=name,
            masked_text=tokenizer.decode(ids),
            spans=tuple(
                Span(truth=tokenizer.decode(truth), generated=tokenizer.decode(written))
                for truth, written in zip(
                    truth_ids, _split_spans(tokenizer, output, spans), strict=True
                )
            ),
        )
        for name, ids, truth_ids, output in zip(names, masked, truths, outputs, strict=True)
    ]


def generate_text(export_dir: Path, text: str, max_new_tokens: int | None = None) -> str:
    """Let an exported model answer a text, greedily.

    Args:
        export_dir: A folder written by `pretrain.exporting.export.export`.
        text: The input; `<extra_id_0>`, `<extra_id_1>`, … mark gaps to fill in.
        max_new_tokens: Longest answer; None for all positions of the model's decoder.

    Returns:
        What was generated, sentinels included, up to the end of sequence.

    Raises:
        ExportError: If the folder is no export, or the answer may not be so long.
    """
    model, tokenizer = _load(export_dir)
    limit = model.config.max_target_length_tokens
    if max_new_tokens is None:
        max_new_tokens = limit
    if not 1 <= max_new_tokens <= limit:
        raise ExportError(
            f"max_new_tokens {max_new_tokens} is not within 1 and {limit}, the positions of this "
            "model's decoder; choose a length in between"
        )
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    (output,) = _generate(model, tokenizer, [ids], max_new_tokens)
    decoded: str = tokenizer.decode(output)
    return decoded


def _load(export_dir: Path) -> tuple[Any, Any]:
    if not is_export(export_dir):
        raise ExportError(f"{export_dir}: is no exported model; make one with `spade export`")
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    import spade_model.huggingface  # noqa: F401 - registers the Auto classes

    showing = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = AutoModelForSeq2SeqLM.from_pretrained(export_dir, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(export_dir, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or ["unreadable"])[0]
        raise ExportError(f"{export_dir}: cannot be loaded: {reason}; export it again") from error
    finally:
        if showing:
            logging.enable_progress_bar()
    return model.eval(), tokenizer


def _sentinel_id(tokenizer: Any, number: int) -> int:
    return len(tokenizer) - 1 - number


def _choose_gaps(
    tokenizer: Any, ids: list[int], spans: int, span_tokens: int, generator: np.random.Generator
) -> list[int] | None:
    """First tokens of gaps that hide some word, with tokens before, between and behind them."""
    chosen: list[int] = []
    for start in generator.permutation(np.arange(1, len(ids) - span_tokens)).tolist():
        truth = tokenizer.decode(ids[start : start + span_tokens])
        # White space says nothing about a model, and half a character cannot be shown.
        if _REPLACEMENT in truth or not any(character.isalpha() for character in truth):
            continue
        if all(abs(start - other) > span_tokens for other in chosen):
            chosen.append(start)
        if len(chosen) == spans:
            return sorted(chosen)
    return None


def _generate(
    model: Any, tokenizer: Any, rows: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Greedy outputs, without the start token and up to the end of sequence."""
    import torch

    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    length = max(map(len, rows)) + 1
    padded = [[*row, end] + [pad] * (length - 1 - len(row)) for row in rows]
    valid = [[1] * (len(row) + 1) + [0] * (length - 1 - len(row)) for row in rows]
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(valid),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
    answers = [row[1:] for row in output.tolist()]
    return [row[: row.index(end)] if end in row else row for row in answers]


def _split_spans(tokenizer: Any, output: list[int], spans: int) -> list[list[int]]:
    """What stands behind each of the first sentinels, up to the next sentinel of any kind."""
    found: dict[int, list[int]] = {}
    current: list[int] = []
    for index in output:
        if tokenizer.convert_ids_to_tokens(index).startswith(_SENTINEL_PREFIX):
            current = []
            # A sentinel written twice: what came first counts.
            found.setdefault(index, current)
        else:
            current.append(index)
    return [found.get(_sentinel_id(tokenizer, number), []) for number in range(spans)]
