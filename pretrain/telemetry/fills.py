"""What the model writes into gaps of held-out text, beside what stood there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data_pipeline.objectives.batch import Batch
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.model_inputs import IGNORED_LABEL, model_inputs
from pretrain.sample_groups import SampleGroup
from pretrain.telemetry.console import printable
from pretrain.telemetry.metrics import drop_later_lines
from pretrain.telemetry.tensorboard_sink import as_code_block
from spade_model import SpadeForSeq2Seq

FILLS_FILE = "fills.jsonl"
"""In the run's folder: one line an evaluation, with its step and all samples."""


@dataclass(frozen=True)
class Gap:
    """One gap of a sample and its surroundings, as text."""

    before: str
    truth: str
    generated: str
    """What the model wrote; empty if it left the gap out."""
    after: str


@torch.no_grad()
def fill_samples(
    model: SpadeForSeq2Seq,
    batch: Batch,
    tokenizer: DocumentTokenizer,
    device: torch.device,
    group: SampleGroup,
    *,
    answer_tokens: int = 64,
    context_tokens: int = 16,
) -> list[list[Gap]]:
    """Let the model answer held-out samples greedily, as far as a reader will look.

    Under ZeRO 3, or where samples are shared, every rank must call this with the same samples. The
    model's mode is restored; no random number is drawn. Documents of packed rows see each other
    here.

    Args:
        model: The model in training.
        batch: n samples.
        tokenizer: Of the data.
        device: Where the model is.
        group: The ranks that share samples.
        answer_tokens: Most tokens to generate for a sample.
        context_tokens: Tokens shown on either side of a gap.

    Returns:
        For each sample its gaps as far as the answer could reach; of an objective without
        sentinels the whole target is one gap.
    """
    inputs = model_inputs(batch, device)
    own = group.share(inputs)
    length = min(answer_tokens, model.config.max_target_length_tokens)
    was_training = model.training
    model.eval()
    try:
        answers = model.generate(
            own["input_ids"],
            attention_mask=own.get("attention_mask"),
            max_new_tokens=length,
            part=own.get("part"),
        ).tolist()
    finally:
        model.train(was_training)
    rows = zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), answers, strict=True)
    samples = []
    for number, (text, labels, answer) in enumerate(rows):
        if batch.input_lengths is not None:
            text = text[: int(batch.input_lengths[number])]
        target = [token for token in labels if token != IGNORED_LABEL]
        samples.append(_gaps(tokenizer, text, target, answer, length, context_tokens))
    return samples


def _gaps(
    tokenizer: DocumentTokenizer,
    text: list[int],
    target: list[int],
    answer: list[int],
    answer_tokens: int,
    context_tokens: int,
) -> list[Gap]:
    truths, written = _spans(tokenizer, target), _spans(tokenizer, answer)
    if not truths:
        end = _context(tokenizer, text[-context_tokens:], from_end=True)
        whole, generated = (tokenizer.decode(ids[:answer_tokens]) for ids in (target, answer))
        return [Gap(end, whole, generated, "")]
    gaps = []
    left = answer_tokens
    for sentinel, truth in truths.items():
        left -= 1
        if left <= 0 or sentinel not in text:
            break
        place = text.index(sentinel)
        gaps.append(
            Gap(
                _context(tokenizer, text[max(0, place - context_tokens) : place], from_end=True),
                tokenizer.decode(truth[:left]),
                tokenizer.decode(written.get(sentinel, [])),
                _context(tokenizer, text[place + 1 : place + 1 + context_tokens]),
            )
        )
        left -= len(truth)
    return gaps


def _spans(tokenizer: DocumentTokenizer, ids: list[int]) -> dict[int, list[int]]:
    """What stands behind each sentinel up to the next one; of one written twice the first."""
    found: dict[int, list[int]] = {}
    current: list[int] = []
    for token in ids:
        if token == tokenizer.eos_token_id:
            break
        if token >= tokenizer.piece_count:
            current = []
            found.setdefault(token, current)
        else:
            current.append(token)
    return found


def _context(tokenizer: DocumentTokenizer, ids: list[int], *, from_end: bool = False) -> str:
    """The text next to a gap, up to the neighbouring one."""
    gaps = [number for number, token in enumerate(ids) if token >= tokenizer.piece_count]
    if gaps:
        ids = ids[gaps[-1] + 1 :] if from_end else ids[: gaps[0]]
    return tokenizer.decode(ids)


def fills_text(samples: Sequence[Sequence[Gap]]) -> str:
    """The samples as Markdown in which nothing of theirs is markup."""
    parts = []
    for number, gaps in enumerate(samples):
        lines = []
        for gap in gaps:
            lines += [
                f"… {_one_line(gap.before)} [____] {_one_line(gap.after)} …",
                f"    truth      {_one_line(gap.truth)}",
                f"    generated  {_one_line(gap.generated)}",
            ]
        parts.append(f"#### sample {number}\n\n{as_code_block(chr(10).join(lines))}\n")
    return "\n".join(parts)


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def write_fills(run_folder: Path, step: int, samples: Sequence[Sequence[Gap]]) -> None:
    """Append the samples of an evaluation to ``fills.jsonl``, in place of later or older ones.

    Raises:
        OSError: The run's folder cannot be written.
    """
    path = run_folder / FILLS_FILE
    drop_later_lines(path, step - 1)  # those of a run that was resumed further back
    record = {"step": step, "samples": [[asdict(gap) for gap in gaps] for gaps in samples]}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
