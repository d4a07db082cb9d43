"""Trained at one length, asked at longer ones: far-header recall, see `common.far_header`."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.far_header import (
    CHANCE,
    REGISTERS,
    Tagger,
    Training,
    make_texts,
    tagger_config,
    train_tagger,
)
from benchmarks.common.report import Table
from spade_model.state_space.mixer import SequenceMixer


@dataclass(frozen=True)
class RecallOptions:
    """How long to train, and on what."""

    trained_length: int = 1024
    lengths: tuple[int, ...] = (1024, 4096, 16384)
    steps: int = 500
    batch: int = 8
    texts: int = 48
    """Of an evaluation; half as many of the longest."""
    dt_min: float | None = None
    seed: int = 0

    def texts_at(self, length: int) -> int:
        """Texts to ask at a length."""
        return self.texts // 2 if length > 8 * self.trained_length else self.texts


def train(options: RecallOptions, state_space: str = "s4") -> Tagger:
    """Train a tagger at the trained length."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)
    config = tagger_config(options.trained_length, dt_min=options.dt_min, state_space=state_space)
    model = Tagger(config)
    return train_tagger(
        model,
        Training(options.steps),
        lambda: make_texts(
            options.batch,
            options.trained_length,
            generator,
            trained_length=options.trained_length,
            reach=model.reach,
        ),
    )


class _CutKernels:
    """While entered, kernels end at a length, as those of the published code do."""

    def __init__(self, model: nn.Module, longest: int) -> None:
        self.mixers = [m for m in model.modules() if isinstance(m, SequenceMixer)]
        self.longest = longest

    def __enter__(self) -> None:
        for mixer in self.mixers:
            whole = mixer.compute_kernel

            def cut(length: int, whole: object = whole) -> Tensor:
                kernel: Tensor = whole(min(length, self.longest))  # type: ignore[operator]
                return functional.pad(kernel, (0, length - kernel.shape[-1]))

            mixer.compute_kernel = cut  # type: ignore[method-assign]
            mixer.forget_kernels()

    def __exit__(self, *_: object) -> None:
        for mixer in self.mixers:
            del mixer.compute_kernel
            mixer.forget_kernels()


@torch.no_grad()
def accuracy(
    model: Tagger, options: RecallOptions, length: int, kind: str
) -> tuple[float, list[tuple[int, int, float]]]:
    """Return the share of right answers, and the same by distance: (from, to, share)."""
    generator = torch.Generator().manual_seed(1000 + options.seed)
    right, distances = [], []
    for _ in range(options.texts_at(length)):
        texts = make_texts(
            1,
            length,
            generator,
            trained_length=options.trained_length,
            reach=model.reach,
            kind=kind,
        )
        right.append((model(texts).argmax(dim=-1) == texts.labels).flatten())
        distances.append(texts.distances.flatten())
    hits, far = torch.cat(right).float(), torch.cat(distances)
    edges = [model.reach + 1]
    while edges[-1] < length - options.trained_length // 2:
        step = options.trained_length // 2 if len(edges) == 1 else 2 * edges[-1]
        edges.append(min(step, length - options.trained_length // 2))
    spans = itertools.pairwise(edges)
    by_distance = [
        (low, high, float(hits[(far >= low) & (far <= high)].mean())) for low, high in spans
    ]
    return float(hits.mean()), by_distance


def recall_tables(options: RecallOptions) -> list[Table]:
    """Train once with and once without a state space, and ask at every length."""
    spade, window = train(options), train(options, "none")
    rows, far_rows = [], []
    for length in options.lengths:
        row = {
            "length": length,
            "SPADE": accuracy(spade, options, length, "around")[0],
            "window only": accuracy(window, options, length, "around")[0],
        }
        _, spans = accuracy(spade, options, length, "behind")
        with _CutKernels(spade, options.trained_length):
            row["SPADE, kernel cut"] = accuracy(spade, options, length, "around")[0]
            _, cut = accuracy(spade, options, length, "behind")
        rows.append(row)
        if length == max(options.lengths):
            far_rows = [
                {"distance from": low, "to": high, "SPADE": share, "SPADE, kernel cut": other[2]}
                for (low, high, share), other in zip(spans, cut, strict=True)
            ]
    labels = options.texts_at(max(options.lengths)) * REGISTERS
    error = math.sqrt(CHANCE * (1 - CHANCE) / labels)
    note = (
        f"trained {options.steps} steps at {options.trained_length:,} tokens; chance {CHANCE}, "
        f"standard error {error:.2f} or less at chance; cut: the kernel ends "
        f"at {options.trained_length:,} tokens"
    )
    return [
        Table("recall", "Share of right answers, the task inside longer texts", rows, (note,)),
        Table(
            "recall_distance",
            f"Share of right answers by distance from the header, {max(options.lengths):,} tokens",
            far_rows,
            ("distances beyond the trained length were never asked about in training",),
        ),
    ]
