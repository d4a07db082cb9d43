"""Taggers of far-header recall, trained and watched; see `benchmarks.common.far_header`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.far_header import (
    CHANCE,
    REGISTERS,
    Tagger,
    Texts,
    Training,
    make_texts,
    tagger_config,
    train_tagger,
)
from spade_model.layers import GlobalLocalMixing

_EVALUATION_SEED = 1000
"""The same texts for every variant and seed."""
_TEXTS_AT_ONCE = 8
_ENOUGH, _ENOUGH_TIMES = 0.99, 2
"""Training ends early where so many evaluations, one after the other, reached this share."""


@dataclass(frozen=True)
class Arm:
    """One tagger and how it is trained: all that decides its numbers."""

    length_tokens: int
    batch: int
    steps: int
    every_steps: int
    """Between evaluations."""
    texts: int
    """Of an evaluation."""
    seed: int
    model: dict[str, Any] = field(default_factory=dict)
    """Changes to `tagger_config`."""
    state_space_factor: float = 5.0
    """By which the state space learns faster than the rest."""
    gradient: bool = True
    """False: none goes through the state space, as in the published encoder-decoder."""


class Detached(nn.Module):
    """A state space whose output is a constant: no gradient reaches its weights or its input.

    This is what the published encoder-decoder does, by a forward pass without gradients.
    """

    def __init__(self, state_space: nn.Module) -> None:
        super().__init__()
        self.state_space = state_space

    def forward(self, *arguments: Any) -> Tensor:
        """Arguments and output as of `SequenceMixer.forward`."""
        with torch.no_grad():
            output: Tensor = self.state_space(*arguments)
        return output


def build(arm: Arm) -> Tagger:
    """Return the tagger of an arm, drawn from its seed."""
    torch.manual_seed(arm.seed)
    model = Tagger(tagger_config(arm.length_tokens, **arm.model))
    if not arm.gradient:
        for module in model.modules():
            if isinstance(module, GlobalLocalMixing):
                module.state_space = Detached(module.state_space)  # type: ignore[assignment]
    return model


def evaluation_texts(arm: Arm, reach: int) -> list[Texts]:
    """Draw the fixed texts that an arm is asked about.

    Args:
        arm: Whose.
        reach: Of its windows, in tokens; arms of the same reach have the same texts.
    """
    generator = torch.Generator().manual_seed(_EVALUATION_SEED)
    counts = [min(_TEXTS_AT_ONCE, arm.texts - done) for done in range(0, arm.texts, _TEXTS_AT_ONCE)]
    return [
        make_texts(
            count, arm.length_tokens, generator, trained_length=arm.length_tokens, reach=reach
        )
        for count in counts
    ]


def share_right(model: Tagger, batches: list[Texts]) -> float:
    """Return the share of right answers; the tagger is as before afterwards."""
    training = model.training
    model.eval()
    with torch.no_grad():
        hits = [(model(texts).argmax(dim=-1) == texts.labels).flatten() for texts in batches]
    model.train(training)
    return float(torch.cat(hits).float().mean())


def chance_error(num_texts: int) -> float:
    """Return the standard error at chance: questions about one register have one answer."""
    return math.sqrt(CHANCE * (1 - CHANCE) / (num_texts * REGISTERS))


class Watch:
    """Looks at a training: answers, time without the looking, rates that really apply.

    Attributes:
        curve: Steps done and share of right answers.
        cpu_seconds: Of the training, of this process.
        seconds: The same by the clock.
        rates: Highest learning rate of each of the optimizer's groups.
    """

    def __init__(self, arm: Arm, model: Tagger, optimizer: torch.optim.Optimizer) -> None:
        self._arm, self._model, self._optimizer = arm, model, optimizer
        self._batches = evaluation_texts(arm, model.reach)
        self.curve: list[tuple[int, float]] = []
        self.cpu_seconds = self.seconds = 0.0
        self.rates = [0.0 for _ in optimizer.param_groups]
        self._start()

    def _start(self) -> None:
        self._cpu_started, self._started = time.process_time(), time.perf_counter()

    def __call__(self, step: int) -> bool:
        """Look after a step; return whether training should go on."""
        self.cpu_seconds += time.process_time() - self._cpu_started
        self.seconds += time.perf_counter() - self._started
        groups = self._optimizer.param_groups
        self.rates = [max(rate, g["lr"]) for rate, g in zip(self.rates, groups, strict=True)]
        if step % self._arm.every_steps == 0 or step == self._arm.steps:
            self.curve.append((step, share_right(self._model, self._batches)))
        self._start()
        latest = [share for _, share in self.curve[-_ENOUGH_TIMES:]]
        return len(latest) < _ENOUGH_TIMES or min(latest) < _ENOUGH


def train_arm(arm: Arm) -> tuple[Tagger, dict[str, Any]]:
    """Train a tagger.

    Returns:
        The tagger in evaluation mode, and its ``parameters`` (learned ones), ``curve``, ``steps``,
        ``cpu_seconds``, ``seconds``, ``rates`` (of the model and of the state space, if it has one
        that learns) and ``moved``, see `relative_changes`.
    """
    model = build(arm)
    before = _state_space_values(model)
    training = Training(arm.steps, state_space_factor=arm.state_space_factor)
    optimizer = training.optimizer(model)
    watch = Watch(arm, model, optimizer)
    generator = torch.Generator().manual_seed(arm.seed + 1)
    length = arm.length_tokens
    train_tagger(
        model,
        training,
        lambda: make_texts(arm.batch, length, generator, trained_length=length, reach=model.reach),
        watch,
        optimizer,
    )
    return model, {
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": watch.curve,
        "steps": watch.curve[-1][0],
        "cpu_seconds": watch.cpu_seconds,
        "seconds": watch.seconds,
        "rates": watch.rates,
        "moved": relative_changes(before, _state_space_values(model)),
    }


def measure_arm(arm: Arm) -> dict[str, Any]:
    """Train a tagger; return what `train_arm` tells of it."""
    return train_arm(arm)[1]


def _state_space_values(model: Tagger) -> dict[str, Tensor]:
    """All tensors of the state spaces, those of several layers as one, by their name there."""
    values: dict[str, list[Tensor]] = {}
    for mixer in model.mixers:
        for name, tensor in mixer.state_dict().items():
            values.setdefault(name, []).append(tensor.detach().double().flatten().clone())
    return {name: torch.cat(tensors) for name, tensors in values.items()}


def relative_changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Return by name how far tensors moved, as a part of their length before."""
    return {
        name: float((after[name] - tensor).norm() / tensor.norm())
        for name, tensor in before.items()
    }


def steps_to(curve: list[tuple[int, float]], share: float) -> int | None:
    """Return the steps done at the first evaluation that reached a share, or None."""
    return next((step for step, reached in curve if reached >= share), None)
