"""Far-header recall: a task that is solved only with what windows do not reach.

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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_model.config import SpadeConfig
from spade_model.initialization import initialize_parameters
from spade_model.seq2seq import SpadeModel
from spade_model.state_space.mixer import SequenceMixer

REGISTERS, VALUES, NOISE = 4, 4, 44
TRUE_RATE, FALSE_RATE = 0.15, 0.02
QUESTIONS = 64
CHANCE = 1 / VALUES


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


def tagger_config(trained_length_tokens: int, **changes: Any) -> SpadeConfig:
    """Return the small encoder of this task.

    Args:
        trained_length_tokens: Of the texts it is trained on.
        changes: Of fields of the configuration.
    """
    fields: dict[str, Any] = {
        "vocab_size": NOISE + REGISTERS * VALUES + REGISTERS,
        "d_model": 64,
        "num_heads": 4,
        "head_dim": 16,
        "d_ff": 256,
        "num_encoder_layers": 2,
        "num_decoder_layers": 0,
        "state_dim": 16,
        "local_radius_tokens": 15,
        "trained_length_tokens": trained_length_tokens,
    }
    return SpadeConfig(**(fields | changes))


class Tagger(nn.Module):
    """An encoder and a linear answer."""

    def __init__(self, config: SpadeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SpadeModel(config)
        initialize_parameters(self.encoder, config, tokens=self.encoder.shared)
        self.answer = nn.Linear(config.d_model, VALUES)

    @property
    def reach(self) -> int:
        """Tokens that the windows of all layers reach together."""
        return self.config.num_encoder_layers * self.config.local_radius_tokens

    @property
    def mixers(self) -> list[SequenceMixer]:
        """The state spaces."""
        return [module for module in self.modules() if isinstance(module, SequenceMixer)]

    def forward(self, texts: Texts) -> Tensor:
        """Return the answers' logits [B, Q, VALUES]."""
        hidden = self.encoder.encode(texts.ids)
        width = hidden.shape[-1]
        asked = hidden.gather(1, texts.places[:, :, None].expand(-1, -1, width))
        logits: Tensor = self.answer(asked)
        return logits


@dataclass(frozen=True)
class Training:
    """How a tagger is trained."""

    steps: int
    rate: float = 3e-3
    """Its highest, AdamW; warmed up, then on a cosine to zero."""
    state_space_factor: float = 5
    """By which the state space learns faster; it has no weight decay."""
    warm_up_steps: int = 20

    def optimizer(self, model: Tagger) -> torch.optim.Optimizer:
        """Return AdamW with the state space in a group of its own."""
        inside = [p for mixer in model.mixers for p in mixer.parameters()]
        known = {id(p) for p in inside}
        outside = [p for p in model.parameters() if id(p) not in known]
        groups: list[dict[str, Any]] = [{"params": outside, "lr": self.rate}]
        if inside:
            faster = self.rate * self.state_space_factor
            groups.append({"params": inside, "lr": faster, "weight_decay": 0.0})
        return torch.optim.AdamW(groups)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule of all steps."""
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: (
                min(1, (step + 1) / self.warm_up_steps)
                * (1 + math.cos(math.pi * step / self.steps))
                / 2
            ),
        )


def train_tagger(
    model: Tagger,
    training: Training,
    draw: Callable[[], Texts],
    after_step: Callable[[int], bool] = lambda step: True,
    optimizer: torch.optim.Optimizer | None = None,
) -> Tagger:
    """Train a tagger.

    Args:
        model: In training mode.
        training: How.
        draw: Returns the next batch.
        after_step: Called with the number of steps done; training ends early when it says False.
        optimizer: The one to train with, for whoever looks at it; None: made from `training`.

    Returns:
        The same tagger, in evaluation mode.
    """
    optimizer = training.optimizer(model) if optimizer is None else optimizer
    schedule = training.schedule(optimizer)
    for step in range(training.steps):
        train_step(model, optimizer, draw())
        schedule.step()
        if not after_step(step + 1):
            break
    return model.eval()


def train_step(model: Tagger, optimizer: torch.optim.Optimizer, texts: Texts) -> float:
    """Do one step; return the loss in nats a question."""
    loss = functional.cross_entropy(model(texts).flatten(0, 1), texts.labels.flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
