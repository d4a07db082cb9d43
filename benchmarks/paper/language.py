"""Causal language models over the bytes of long documents, asked with more and more context."""

from __future__ import annotations

import gzip
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.far_header import Training
from spade_model.causal_lm import SpadeForCausalLM
from spade_model.config import SpadeConfig
from spade_model.state_space.mixer import SequenceMixer

DOCUMENTS = Path("sotu", "docs.jsonl.gz")
_HELD_OUT_EVERY = 8
"""Documents from one that is held out to the next; speeches are in the order of their years."""
_SPLIT_SEED = 0


@dataclass(frozen=True)
class LanguageArm:
    """One language model and how it is trained: all that decides its numbers."""

    data: Path | None
    """Holds `DOCUMENTS`; None: an artificial text, which shows nothing but that it runs."""
    trained_tokens: int
    """Length of the windows of training, in bytes."""
    lengths_tokens: tuple[int, ...]
    """Context that it is asked with, ascending."""
    scored_tokens: int
    """Bytes at the end of each window that are predicted whatever the context is, and beyond the
    first of them at the shortest one."""
    batch: int
    steps: int
    documents: int
    """Held-out ones, at most."""
    seed: int
    model: dict[str, Any] = field(default_factory=dict)
    """Of `SpadeConfig`."""


def read_documents(arm: LanguageArm) -> list[bytes]:
    """Return all documents.

    Raises:
        ValueError: The file is not there.
    """
    if arm.data is None:
        return _artificial_documents(2 * max(arm.lengths_tokens))
    path = arm.data / DOCUMENTS
    if not path.is_file():
        raise ValueError(f"--data {arm.data} holds no {DOCUMENTS}; give a folder that does")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"].encode() for line in lines]


def _artificial_documents(length_bytes: int) -> list[bytes]:
    """Sixteen documents of invented words, each with a few of its own."""
    generator = random.Random(0)
    documents = []
    for _ in range(16):
        words = ["".join(generator.choices("abcdefgh", k=4)) for _ in range(20)]
        text = " ".join(generator.choices(words, k=length_bytes // 5 + 1))
        documents.append(text.encode()[:length_bytes])
    return documents


def split_documents(documents: list[bytes], longest: int, count: int) -> tuple[Tensor, Tensor]:
    """Part documents into those to train on and held-out windows.

    Args:
        documents: All of them.
        longest: Bytes of a window; shorter documents are not held out.
        count: Windows at most, one a document.

    Returns:
        All other documents in one row, int64 [N], and windows [W, longest] of held-out ones.

    Raises:
        ValueError: No document is long enough.
    """
    generator = random.Random(_SPLIT_SEED)
    long = [index for index, text in enumerate(documents) if len(text) >= longest]
    held_out = long[:: min(_HELD_OUT_EVERY, max(1, len(long) // 2))][:count]
    if not held_out:
        raise ValueError(f"no document has {longest:,} bytes; give --data with longer ones")
    windows = []
    for index in held_out:
        start = generator.randrange(len(documents[index]) - longest + 1)
        windows.append(list(documents[index][start : start + longest]))
    others = b"\n".join(text for i, text in enumerate(documents) if i not in set(held_out))
    return torch.tensor(list(others)), torch.tensor(windows)


def build(arm: LanguageArm) -> SpadeForCausalLM:
    """Return the model of an arm, drawn from its seed."""
    torch.manual_seed(arm.seed)
    config = SpadeConfig(
        vocab_size=256,
        num_encoder_layers=0,
        trained_length_tokens=arm.trained_tokens,
        **arm.model,
    )
    model = SpadeForCausalLM(config)
    # The definition of full attention would write out every score of 16,384 tokens.
    model.set_attention_backend("tiled")
    return model


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Return AdamW with the state spaces in a group of their own, as for taggers."""
    mixers = [module for module in model.modules() if isinstance(module, SequenceMixer)]
    inside = [parameter for mixer in mixers for parameter in mixer.parameters()]
    known = {id(parameter) for parameter in inside}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [{"params": outside, "lr": training.rate}]
    if inside:
        faster = training.rate * training.state_space_factor
        groups.append({"params": inside, "lr": faster, "weight_decay": 0.0})
    return torch.optim.AdamW(groups)


def train(model: SpadeForCausalLM, arm: LanguageArm, text: Tensor) -> list[float]:
    """Train on windows from anywhere in a text; return the loss of each step in nats a byte."""
    training = Training(arm.steps)
    optimizer = make_optimizer(model, training)
    schedule = training.schedule(optimizer)
    generator = torch.Generator().manual_seed(arm.seed + 1)
    inside = torch.arange(arm.trained_tokens)
    losses = []
    for _ in range(arm.steps):
        starts = torch.randint(
            len(text) - arm.trained_tokens + 1, (arm.batch, 1), generator=generator
        )
        ids = text[starts + inside]
        loss = model(ids, ids).loss
        assert loss is not None, "there are labels"
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def held_out_loss(model: SpadeForCausalLM, windows: Tensor, length: int, scored: int) -> Tensor:
    """Return the loss of each of the last bytes given what is in front of it in a context.

    Args:
        model: In evaluation mode.
        windows: int64 [W, longest].
        length: Bytes at the end of each window that the model is given.
        scored: Bytes at the end that are scored, below `length`.

    Returns:
        float32 [W, scored], in nats.
    """
    losses = []
    for window in windows:
        ids = window[None, -length:]
        hidden = model.model(ids)[:, -scored - 1 : -1]
        logits = model.lm_head(hidden)[0].float()
        losses.append(functional.cross_entropy(logits, window[-scored:], reduction="none"))
    return torch.stack(losses)


def measure_language(arm: LanguageArm) -> dict[str, Any]:
    """Train a language model and ask it with each context.

    Returns:
        ``parameters``, ``cpu_seconds`` of training, ``training_loss`` (mean of the last tenth of
        the steps), ``whole`` and ``late``: by length as text, the loss of each held-out document
        over all scored bytes, and over the last quarter of them.
    """
    text, windows = split_documents(read_documents(arm), max(arm.lengths_tokens), arm.documents)
    model = build(arm)
    started = time.process_time()
    losses = train(model, arm, text)
    cpu_seconds = time.process_time() - started
    model.eval()
    whole, late = {}, {}
    for length in arm.lengths_tokens:
        found = held_out_loss(model, windows, length, arm.scored_tokens)
        whole[str(length)] = found.mean(dim=1).tolist()
        late[str(length)] = found[:, -max(1, arm.scored_tokens // 4) :].mean(dim=1).tolist()
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": cpu_seconds,
        "training_loss": sum(last) / len(last),
        "whole": whole,
        "late": late,
    }
