"""One optimizer step: micro-batches in, one update out, normalised by what is really asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from data_pipeline.objectives.batch import Batch
from data_pipeline.permutation import derive_keys, mix_keys
from data_pipeline.reading.batch_loader import BatchLoader
from pretrain.control import Control
from pretrain.engine.training_engine import TrainingEngine
from pretrain.optimization.spikes import SpikeGuard
from pretrain.sample_groups import SampleGroup
from pretrain.telemetry.step_timer import StepTimer

_PURPOSE_DROPOUT = 0xD7


class StepOutcome(NamedTuple):
    """What one step gave, the same on every rank but for the seconds."""

    loss: float
    """Nats a target token, over all ranks and micro-batches."""
    tokens: int
    """Of the windows of all ranks, before masking."""
    target_tokens: int
    """That were asked for."""
    applied: bool
    """Whether the weights were changed."""
    gradient_norm: float
    """Before clipping."""
    group_norms: dict[str, float]
    """By parameter group, where they were asked for."""
    data_wait_seconds: float
    """That this rank waited for its batches."""


class SentNumber:
    """A number on its way from the device to the host, read once it is there.

    Reading it behind something else that was read from the device waits for nothing more.

    Args:
        value: Float64 scalar.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self._value, self._arrived = value, None
        if value.device.type == "cuda":
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> float:
        """The number."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value.item()


class Accumulation:
    """Makes steps.

    Every target token of a step weighs alike, on whatever rank and in whatever micro-batch it is:
    the losses are divided by the number of all of them, which the ranks sum before they begin.

    Args:
        engine: The model.
        control: Asked before each micro-batch.
        timer: Told what the time goes into.
        group: The ranks that work on the same samples.
        device: Where the model is.
        seed: Of the run; dropout follows from it.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        control: Control,
        timer: StepTimer,
        group: SampleGroup,
        device: torch.device,
        seed: int,
    ) -> None:
        self._engine = engine
        self._control = control
        self._timer = timer
        self._group = group
        self._device = device
        self._seed = seed

    def step(
        self,
        loader: BatchLoader,
        guard: SpikeGuard,
        *,
        step: int,
        rate_factor: Callable[[int], float],
        skip: bool,
        group_norms: bool,
    ) -> StepOutcome:
        """Accumulate gradients over this rank's micro-batches and update the weights.

        Args:
            loader: Gives the micro-batches.
            guard: Says up to which gradient norm the update may be made.
            step: About to be made, counted from 1.
            rate_factor: From the tokens of the step to the factor of the learning rates.
            skip: Make no update whatever comes out: so it was decided before.
            group_norms: Whether to find the gradient norm of each parameter group.

        Raises:
            StopAgreed: If a rank was asked to stop; the weights are as they were.
        """
        # Dropout's randomness is a function of (seed, step, group): there is none to save.
        keys = mix_keys(derive_keys(self._seed, _PURPOSE_DROPOUT, step), self._group.number)
        torch.manual_seed(int(keys[0]) >> 1)
        batches, wait_seconds, tokens = self._read(loader)
        counts = [target_tokens(batch) for batch in batches]
        told = (sum(counts), tokens) if self._group.speaks else (0, 0)
        step_targets, step_tokens = self._control.check(f"step {step}", *told)
        nats = torch.zeros((), dtype=torch.float64, device=self._device)
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            if number:
                self._control.check(f"step {step}, micro-batch {number + 1} of {len(batches)}")
            with self._timer.part("forward"):
                inputs = self._group.inputs(batch, self._device)
                loss = self._engine.forward(inputs, last=number == len(batches) - 1).loss
            with self._timer.part("backward"):
                # DeepSpeed averages over the ranks, and the model over the batch's own targets. The
                # ranks of a group have the same loss, and their mean gradient is the whole one.
                self._engine.backward(loss / (step_targets / (count * self._group.count)))
            if self._group.speaks:
                nats += loss.detach().double() * count
        dist.all_reduce(nats)
        sent = SentNumber(nats)
        with self._timer.part("optimizer"):
            update = self._engine.update(
                rate_factor(step_tokens),
                norm_limit=lambda: (
                    -1.0 if skip else guard.norm_limit_for(sent.read() / step_targets)
                ),
                group_norms=group_norms,
            )
        mean_loss = sent.read() / step_targets
        return StepOutcome(
            mean_loss if math.isfinite(mean_loss) else math.nan,
            step_tokens,
            step_targets,
            update.applied,
            update.gradient_norm,
            update.group_norms,
            wait_seconds,
        )

    def _read(self, loader: BatchLoader) -> tuple[list[Batch], float, int]:
        batches, wait_seconds, tokens = [], 0.0, 0
        with self._timer.part("data"):
            for _ in range(loader.stripes.micro_batches_per_step):
                batch = next(loader)
                wait_seconds += loader.wait_seconds
                tokens += loader.window_tokens
                batches.append(
                    self._group.complete(batch, loader.make_whole, lambda: loader.quarantined)
                )
        return batches, wait_seconds, tokens


def target_tokens(batch: Batch) -> int:
    """How many tokens a batch asks for."""
    if batch.label_lengths is None:
        return int(batch.labels.size)
    return int(batch.label_lengths.sum())
