"""The training loop: one page, everything else hangs off it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from data_pipeline.reading.batch_loader import BatchLoader
from pretrain.checkpoints.checkpoint import Position, save_checkpoint
from pretrain.config import RunConfig
from pretrain.engine.engine import set_learning_rates
from pretrain.errors import RunError
from pretrain.evaluation.heldout import HeldoutEvaluation
from pretrain.hardware import memory_in_use_bytes
from pretrain.model_inputs import model_inputs
from pretrain.optimization.schedules import learning_rate_factor
from pretrain.ranks import Ranks
from pretrain.resilience.stop import StopRequest
from pretrain.run_folder import RunFolder, write_atomically
from pretrain.telemetry.metrics import MetricsWriter, ProgressLine


class StepOutcome(NamedTuple):
    """What one step gave, the same on every rank but for the seconds."""

    loss: float
    """Mean over all ranks and micro-batches."""
    tokens: int
    """Of the windows of all ranks, before masking."""
    data_wait_seconds: float
    """That this rank waited for its batches."""
    stopped: bool
    """Whether any rank was asked to stop."""


@dataclass
class Trainer:
    """All that one rank needs to train; put together by :mod:`pretrain.assembly`."""

    config: RunConfig
    engine: Any
    loader: BatchLoader
    evaluation: HeldoutEvaluation
    metrics: MetricsWriter | None
    """On rank 0 alone."""
    progress: ProgressLine
    ranks: Ranks
    device: torch.device
    stop: StopRequest
    position: Position
    fingerprints: dict[str, str]
    flops_per_step: int
    peak_flops_per_second: float
    """Of all ranks together."""
    epochs: Callable[[int], dict[str, float]]
    """How often each source has been seen in the first so many samples."""
    quarantined: list[dict[str, Any]]
    """Damaged places of the data known to all ranks at the last checkpoint."""
    logger: logging.Logger
    """This rank's log."""
    _damages_told: int = 0

    def run(self) -> bool:
        """Train from ``position`` to the last step, or until asked to stop.

        Returns:
            Whether the run is finished; otherwise it stopped on request, its state saved.

        Raises:
            RunError: If the loss is not finite.
            CheckpointError: If a checkpoint cannot be written.
        """
        train = self.config.train
        saved_step = self.position.step if self.position.step else None
        if self.position.step == 0:
            self._evaluate()
        stopped = self._any_rank_stopped()
        while self.position.step < train.max_steps and not stopped:
            step = self.position.step + 1
            start = time.perf_counter()
            rates = self._set_learning_rates(step)
            outcome = self._step(step)
            stopped = outcome.stopped
            self._advance(outcome.tokens)
            self._tell_damage()
            seconds = time.perf_counter() - start
            if step % train.log_every_steps == 0 or step == train.max_steps:
                self._log(outcome, rates, seconds)
            self.progress.update(step, outcome.loss, outcome.tokens / seconds)
            finished = step == train.max_steps
            if finished or step % self.config.evaluation.every_steps == 0:
                self._evaluate()
            if finished or stopped or step % self.config.checkpoint.every_steps == 0:
                self._save()
                saved_step = step
        if stopped and saved_step != self.position.step:
            self._save()  # asked to stop before the first step
        return self.position.step >= train.max_steps

    def close(self) -> None:
        """Stop the loader's thread, flush the metrics, leave the terminal as it was."""
        self.loader.close()
        self.progress.close()
        if self.metrics is not None:
            self.metrics.close()

    def _step(self, step: int) -> StepOutcome:
        """Accumulate gradients over the micro-batches, update the weights."""
        # Dropout's randomness is a function of (seed, step, rank): there is none to save.
        torch.manual_seed(_mix(self.config.train.seed, step, self.ranks.rank))
        # Sum of losses, tokens read, and how many ranks were asked to stop: one collective.
        shared = torch.zeros(3, dtype=torch.float64, device=self.device)
        tokens = 0
        data_wait_seconds = 0.0
        accumulation_steps = self.config.accumulation_steps(self.ranks.world_size)
        for _ in range(accumulation_steps):
            batch = next(self.loader)
            data_wait_seconds += self.loader.wait_seconds
            tokens += self.loader.window_tokens
            loss = self.engine(**model_inputs(batch, self.device)).loss
            self.engine.backward(loss)
            self.engine.step()
            shared[0] += loss.detach().double() / accumulation_steps
        shared[1] = tokens
        shared[2] = float(self.stop.requested)
        dist.all_reduce(shared)
        loss_sum, step_tokens, stop_votes = shared.tolist()
        mean_loss = loss_sum / self.ranks.world_size
        if not math.isfinite(mean_loss):
            raise RunError(
                f"the loss is {mean_loss} at step {step}; the last checkpoint is sound: resume "
                "with a lower optimizer.learning_rate or train.gradient_clipping"
            )
        return StepOutcome(mean_loss, int(step_tokens), data_wait_seconds, stop_votes > 0)

    def _advance(self, tokens: int) -> None:
        self.position = Position(
            step=self.position.step + 1,
            sample_index=self.position.sample_index + self.config.train.global_batch_size,
            tokens_seen=self.position.tokens_seen + tokens,
        )

    def _set_learning_rates(self, step: int) -> dict[str, float]:
        schedule = self.config.schedule
        factor = learning_rate_factor(
            schedule.kind,
            step,
            warmup_steps=schedule.warmup_steps,
            max_steps=self.config.train.max_steps,
            decay_steps=schedule.decay_steps,
            final_ratio=schedule.final_ratio,
        )
        return set_learning_rates(self.engine, factor)

    def _log(self, outcome: StepOutcome, rates: dict[str, float], seconds: float) -> None:
        if self.metrics is None:
            return
        record = {
            "step": self.position.step,
            "loss": outcome.loss,
            "learning_rate": rates.get("decay", next(iter(rates.values()))),
            **{f"learning_rate/{name}": rate for name, rate in rates.items()},
            "grad_norm": float(self.engine.get_global_grad_norm()),
            "tokens_seen": self.position.tokens_seen,
            "sample_index": self.position.sample_index,
            "tokens_per_second": outcome.tokens / seconds,
            "model_flops_utilisation": self.flops_per_step / seconds / self.peak_flops_per_second,
            "step_seconds": seconds,
            "data_wait_seconds": outcome.data_wait_seconds,
            "memory_bytes": memory_in_use_bytes(self.device),
            "skipped_steps": self.engine.skipped_steps,
            **{
                f"epochs/{name}": value
                for name, value in self.epochs(self.position.sample_index).items()
            },
        }
        self.metrics.write(record)

    def _evaluate(self) -> None:
        losses = self.evaluation.run(self.engine)
        if self.metrics is not None:
            self.metrics.write({"step": self.position.step, **losses})
        self.progress.say(
            f"step {self.position.step}: held-out loss {losses['eval/heldout/loss']:.4f} "
            f"(unigram {losses['eval/heldout/unigram_loss']:.4f}), on text alone "
            f"{losses['eval/heldout/text_loss']:.4f} "
            f"(unigram {losses['eval/heldout/unigram_text_loss']:.4f})"
        )

    def _save(self) -> None:
        quarantined = self._gather_damage()
        path = save_checkpoint(
            self.engine, self.config, self.position, self.fingerprints, quarantined
        )
        self.progress.say(f"step {self.position.step}: checkpoint {path}")

    def _tell_damage(self) -> None:
        """Say at once, on the rank that found it, which data are gone around."""
        for entry in self.loader.quarantined[self._damages_told :]:
            self._damages_told += 1
            self.logger.warning("quarantined in source %s: %s", entry.source, entry.reason)
            print(f"quarantined in source {entry.source}: {entry.reason}", flush=True)

    def _gather_damage(self) -> list[dict[str, Any]]:
        """What all ranks and earlier parts of the run found damaged; also into the run folder."""
        mine = [entry.to_json() for entry in self.loader.quarantined]
        found: list[list[dict[str, Any]]] = [[] for _ in range(self.ranks.world_size)]
        dist.all_gather_object(found, mine)
        for entry in (entry for part in found for entry in part):
            if entry not in self.quarantined:
                self.quarantined.append(entry)
        if self.ranks.rank == 0 and self.quarantined:
            lines = "".join(f"{json.dumps(entry)}\n" for entry in self.quarantined)
            write_atomically(RunFolder(self.config.run_path).quarantine_path, lines)
        return self.quarantined

    def _any_rank_stopped(self) -> bool:
        votes = torch.tensor([self.stop.requested], dtype=torch.int64, device=self.device)
        dist.all_reduce(votes)
        return bool(votes.item())


def _mix(*numbers: int) -> int:
    """One 63-bit number from several; splitmix64's finaliser (Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
