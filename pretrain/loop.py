"""The training loop: one page, everything else hangs off it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.batch_loader import BatchLoader
from pretrain.checkpoint import Position, save_checkpoint
from pretrain.config import RunConfig
from pretrain.engine import set_learning_rates
from pretrain.errors import RunError
from pretrain.evaluate import HeldoutEvaluation
from pretrain.hardware import memory_in_use_bytes
from pretrain.metrics import MetricsWriter, ProgressLine
from pretrain.ranks import Ranks
from pretrain.schedules import learning_rate_factor
from pretrain.stop import StopRequest


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
            loss, data_wait_seconds, stopped = self._step(step)
            self._advance()
            seconds = time.perf_counter() - start
            if step % train.log_every_steps == 0 or step == train.max_steps:
                self._log(loss, rates, seconds, data_wait_seconds)
            self.progress.update(step, loss, self._tokens_per_step / seconds)
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

    def _step(self, step: int) -> tuple[float, float, bool]:
        """Accumulate, update; mean loss over all ranks, seconds spent waiting for data, stop?"""
        # Dropout's randomness is a function of (seed, step, rank): there is none to save.
        torch.manual_seed(_mix(self.config.train.seed, step, self.ranks.rank))
        # Sum of losses, and how many ranks were asked to stop: one collective for both.
        shared = torch.zeros(2, dtype=torch.float64, device=self.device)
        data_wait_seconds = 0.0
        accumulation_steps = self.config.accumulation_steps(self.ranks.world_size)
        for _ in range(accumulation_steps):
            batch = next(self.loader)
            data_wait_seconds += self.loader.wait_seconds
            input_ids = torch.from_numpy(batch.input_ids).to(self.device, non_blocking=True)
            labels = torch.from_numpy(batch.labels).to(self.device, non_blocking=True)
            loss = self.engine(input_ids, labels).loss
            self.engine.backward(loss)
            self.engine.step()
            shared[0] += loss.detach().double() / accumulation_steps
        shared[1] = float(self.stop.requested)
        dist.all_reduce(shared)
        loss_sum, stop_votes = shared.tolist()
        mean_loss = loss_sum / self.ranks.world_size
        if not math.isfinite(mean_loss):
            raise RunError(
                f"the loss is {mean_loss} at step {step}; the last checkpoint is sound: resume "
                "with a lower optimizer.learning_rate or train.gradient_clipping"
            )
        return mean_loss, data_wait_seconds, stop_votes > 0

    @property
    def _tokens_per_step(self) -> int:
        window_tokens: int = self.config.data.objective().raw_length_tokens
        return self.config.train.global_batch_size * window_tokens

    def _advance(self) -> None:
        self.position = Position(
            step=self.position.step + 1,
            sample_index=self.position.sample_index + self.config.train.global_batch_size,
            tokens_seen=self.position.tokens_seen + self._tokens_per_step,
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

    def _log(
        self, loss: float, rates: dict[str, float], seconds: float, data_wait_seconds: float
    ) -> None:
        if self.metrics is None:
            return
        record = {
            "step": self.position.step,
            "loss": loss,
            "learning_rate": rates.get("decay", next(iter(rates.values()))),
            **{f"learning_rate/{name}": rate for name, rate in rates.items()},
            "grad_norm": float(self.engine.get_global_grad_norm()),
            "tokens_seen": self.position.tokens_seen,
            "sample_index": self.position.sample_index,
            "tokens_per_second": self._tokens_per_step / seconds,
            "model_flops_utilisation": self.flops_per_step / seconds / self.peak_flops_per_second,
            "step_seconds": seconds,
            "data_wait_seconds": data_wait_seconds,
            "memory_bytes": memory_in_use_bytes(self.device),
            "skipped_steps": self.engine.skipped_steps,
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
        path = save_checkpoint(self.engine, self.config, self.position, self.fingerprints)
        self.progress.say(f"step {self.position.step}: checkpoint {path}")

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
