"""Trained at one length, asked at longer ones: far-header recall.

A text hides a value in each of four registers. Its header, the first half of 1,024 tokens, votes
for them: each position holds the token "register r has value v" with probability 0.15 if that is
true and 0.02 if not, and noise otherwise. Behind the header, noise and 64 questions "what is in
r?", each further from the header than all windows together reach. So an encoder of local attention
alone stays at chance, 0.25; what is asked is the integration of spread evidence, not exact copying.

Longer texts come in two kinds. ``around``: the same 1,024 tokens somewhere in a longer text of
noise, so that kernels are evaluated far beyond the trained length and must add nothing there.
``behind``: the header first and the questions spread over all the rest, so that distances are asked
about which training never had; answered by what the slowest states still remember.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.report import Table
from spade_model.config import SpadeConfig
from spade_model.initialization import initialize_parameters
from spade_model.seq2seq import SpadeModel
from spade_model.state_space.mixer import SequenceMixer

REGISTERS, VALUES, NOISE = 4, 4, 44
TRUE_RATE, FALSE_RATE = 0.15, 0.02
QUESTIONS = 64
CHANCE = 1 / VALUES


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


@dataclass(frozen=True)
class Texts:
    """Some texts with their questions."""

    ids: Tensor
    """int64 [B, L]."""
    places: Tensor
    """Of the questions, int64 [B, Q]."""
    labels: Tensor
    """int64 [B, Q]."""
    distances: Tensor
    """From the header's last token to each question, int64 [B, Q]."""


def make_texts(
    count: int,
    length: int,
    generator: torch.Generator,
    *,
    trained_length: int,
    reach: int,
    kind: str = "around",
) -> Texts:
    """Draw texts.

    Args:
        count: B.
        length: L, at least `trained_length`.
        generator: Decides everything.
        trained_length: Length of the part that holds header and questions if `kind` is around.
        reach: Tokens that the windows of all layers reach together; no question is nearer.
        kind: ``around`` or ``behind``.
    """
    header = trained_length // 2
    truth = torch.randint(VALUES, (count, REGISTERS), generator=generator)
    rates = torch.full((count, REGISTERS, VALUES), FALSE_RATE)
    rates.scatter_(2, truth[:, :, None], TRUE_RATE)
    votes = rates.flatten(1)
    noise = (1 - votes.sum(dim=1, keepdim=True)) / NOISE
    weights = torch.cat([noise.expand(-1, NOISE), votes], dim=1)
    heads = torch.multinomial(weights, header, replacement=True, generator=generator)
    ids = torch.randint(NOISE, (count, length), generator=generator)
    last = trained_length if kind == "around" else length
    offsets = torch.randint(length - last + 1, (count, 1), generator=generator)
    ids.scatter_(1, offsets + torch.arange(header), heads)
    candidates = torch.rand(count, last - header - reach, generator=generator)
    questions = min(QUESTIONS, candidates.shape[1])
    distances = candidates.topk(questions).indices + reach + 1
    registers = torch.randint(REGISTERS, (count, questions), generator=generator)
    places = offsets + header - 1 + distances
    ids.scatter_(1, places, NOISE + REGISTERS * VALUES + registers)
    return Texts(ids, places, truth.gather(1, registers), distances)


class Tagger(nn.Module):
    """A small encoder and a linear answer."""

    def __init__(self, options: RecallOptions, state_space: str) -> None:
        super().__init__()
        self.config = SpadeConfig(
            vocab_size=NOISE + REGISTERS * VALUES + REGISTERS,
            d_model=64,
            num_heads=4,
            head_dim=16,
            d_ff=256,
            num_encoder_layers=2,
            num_decoder_layers=0,
            state_dim=16,
            local_radius_tokens=15,
            trained_length_tokens=options.trained_length,
            dt_min=options.dt_min,
            state_space=state_space,
        )
        self.encoder = SpadeModel(self.config)
        initialize_parameters(self.encoder, self.config, tokens=self.encoder.shared)
        self.answer = nn.Linear(self.config.d_model, VALUES)

    @property
    def reach(self) -> int:
        """Tokens that the windows of all layers reach together."""
        return self.config.num_encoder_layers * self.config.local_radius_tokens

    def forward(self, texts: Texts) -> Tensor:
        """Return the answers' logits [B, Q, VALUES]."""
        hidden = self.encoder.encode(texts.ids)
        width = hidden.shape[-1]
        asked = hidden.gather(1, texts.places[:, :, None].expand(-1, -1, width))
        logits: Tensor = self.answer(asked)
        return logits


def train(options: RecallOptions, state_space: str = "s4") -> Tagger:
    """Train a tagger at the trained length."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)
    model = Tagger(options, state_space)
    mixers = [m for m in model.modules() if isinstance(m, SequenceMixer)]
    kernels = {id(p) for mixer in mixers for p in mixer.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in kernels], "lr": 3e-3},
        {
            "params": [p for p in model.parameters() if id(p) in kernels],
            "lr": 5 * 3e-3,
            "weight_decay": 0.0,
        },
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / options.steps)) / 2,
    )
    for _ in range(options.steps):
        texts = make_texts(
            options.batch,
            options.trained_length,
            generator,
            trained_length=options.trained_length,
            reach=model.reach,
        )
        loss = functional.cross_entropy(model(texts).flatten(0, 1), texts.labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


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
