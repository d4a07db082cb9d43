"""What a run shows of itself: metrics, console, profiler, statistics. It changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.accumulation import StepOutcome
from pretrain.checkpoints.position import Position
from pretrain.checkpoints.saver import SavedCheckpoint
from pretrain.config import RunConfig, Stage
from pretrain.control import Control
from pretrain.data_settings import ALL_HELDOUT
from pretrain.engine.training_engine import TrainingEngine
from pretrain.ranks import Ranks
from pretrain.run_folder import RunFolder
from pretrain.sample_groups import SampleGroup
from pretrain.telemetry.communication import CommunicationMeter
from pretrain.telemetry.console import ProgressLine, evaluation_table
from pretrain.telemetry.fills import fill_samples, fills_text, write_fills
from pretrain.telemetry.histograms import model_histograms
from pretrain.telemetry.profiler import ProfilerWindow
from pretrain.telemetry.rank_facts import (
    OWN_SECONDS,
    gather_rank_facts,
    memory_facts,
    straggler_line,
    summarize_rank_facts,
)
from pretrain.telemetry.state_space import state_space_statistics
from pretrain.telemetry.step_timer import StepTimer
from pretrain.telemetry.writer import MetricsWriter
from spade_model.cost import training_flops_per_sample


class Observer:
    """Tells what happens, on every rank; only rank 0 has a writer and a console.

    Args:
        config: The run.
        engine: The model, looked at.
        control: For gathering.
        timer: Has counted the time of the steps.
        meter: Has counted the collectives.
        metrics: On rank 0 alone.
        progress: The console.
        heldout: Whose first samples are filled in at evaluations.
        epochs: How often each source has been seen in the first so many samples.
        ranks: This process's place.
        group: The ranks that work on the same samples.
        device: Where the model is.
        peak_flops_per_second: Of all ranks together.
        logger: This rank's log.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        engine: TrainingEngine,
        control: Control,
        timer: StepTimer,
        meter: CommunicationMeter,
        metrics: MetricsWriter | None,
        progress: ProgressLine,
        heldout: PretrainingStream,
        epochs: Callable[[int], dict[str, float]],
        ranks: Ranks,
        group: SampleGroup,
        device: torch.device,
        peak_flops_per_second: float,
        logger: logging.Logger,
    ) -> None:
        self.timer = timer
        self.progress = progress
        self._config = config
        self._engine = engine
        self._control = control
        self._meter = meter
        self._metrics = metrics
        self._heldout = heldout
        self._tokenizer = DocumentTokenizer.load(config.data.tokenizer)
        self._epochs = epochs
        self._ranks = ranks
        self._group = group
        self._device = device
        self._peak_flops_per_second = peak_flops_per_second
        self._logger = logger
        self._profiler = ProfilerWindow(
            config.telemetry.profile, config.run_path, ranks, device, logger
        )
        self._step_started = self._interval_started = time.perf_counter()
        self._interval_steps = 0
        self._last_evaluation: dict[str, float] | None = None
        self._damages_told = 0

    def wants_group_norms(self, step: int) -> bool:
        """Whether the gradient norm of each parameter group will be told."""
        return step % self._config.train.log_every_steps == 0

    def before_step(self, step: int) -> None:
        """A step begins."""
        self._profiler.before_step(step)
        self._step_started = time.perf_counter()

    def after_step(self, outcome: StepOutcome, position: Position, stage: Stage) -> None:
        """A step has been made; every rank must call this."""
        seconds = time.perf_counter() - self._step_started
        step = position.step
        self.timer.step_done()
        self._interval_steps += 1
        self._profiler.after_step(step)
        self.progress.update(step, outcome.loss, outcome.tokens / seconds)
        last = position.updates == self._config.train.max_steps
        if step % self._config.train.log_every_steps == 0 or last:
            self._tell_step(outcome, position, stage, seconds)
        every = self._config.telemetry.histograms_every_steps
        if every is not None and step % every == 0:
            with self._engine.whole_parameters():
                if self._metrics is not None:
                    for name, histogram in model_histograms(self._engine.module):
                        self._metrics.histogram(name, histogram, step)

    def event(self, name: str, step: int, text: str, **facts: Any) -> None:
        """Something happened that is no step."""
        if self._metrics is not None:
            self._metrics.write({"event": name, "step": step, **facts})
        self._logger.warning("%s", text)
        self.progress.say(text)

    def went_back(self, step: int) -> None:
        """The run was rolled back."""
        if self._metrics is not None:
            self._metrics.go_back(step)
        self.progress.go_back(step)

    def evaluated(self, record: dict[str, float], step: int) -> None:
        """Held-out losses were found; every rank must call this."""
        if self._metrics is not None:
            self._metrics.write({"step": step, **record})
        head, rows = evaluation_table(record, self._last_evaluation)
        self._last_evaluation = record
        self.progress.table(f"step {step}: held-out losses", head, rows)
        self._show_fills(step)

    def saving(self) -> None:
        """A checkpoint is about to be written: what was told must not be lost before it."""
        if self._metrics is not None:
            self._metrics.sync()

    def saved(self, checkpoint: SavedCheckpoint) -> None:
        """A checkpoint is in force."""
        self.progress.say(
            f"step {checkpoint.step}: checkpoint {checkpoint.path} "
            f"({checkpoint.size_bytes / 1e6:.1f} MB in {checkpoint.seconds:.2f} s)"
        )
        self._logger.info("checkpoint %s in %.2f s", checkpoint.path, checkpoint.seconds)

    def tell_damage(self, quarantined: list[Any]) -> None:
        """Say at once, on the rank that found it, which data are gone around."""
        for entry in quarantined[self._damages_told :]:
            self._damages_told += 1
            text = f"quarantined in source {entry.source}: {entry.reason}"
            self._logger.warning("%s", text)
            print(text, flush=True)

    def close(self, *, finished: bool) -> None:
        """Flush everything, leave the terminal as it was."""
        self._profiler.close()
        self._meter.remove()
        self.progress.close()
        if self._metrics is not None:
            self._metrics.close(finished=finished)

    def _tell_step(
        self, outcome: StepOutcome, position: Position, stage: Stage, seconds: float
    ) -> None:
        parts = self.timer.take()
        facts = {OWN_SECONDS: self.timer.own_seconds, **memory_facts(self._device)}
        of_ranks = gather_rank_facts(facts, self._ranks, self._control.group)
        communication = self._meter.take(self._interval_steps)
        self._interval_steps = 0
        state_space: dict[str, float] = {}
        every = self._config.telemetry.state_space_every_steps
        if every is not None and position.step % every == 0:
            with self._engine.whole_parameters(".state_space."):
                state_space = state_space_statistics(self._engine.module)
        if self._metrics is None or of_ranks is None:
            return
        line = straggler_line(of_ranks[OWN_SECONDS], self._config.telemetry.straggler_percent)
        if line is not None:
            self._logger.warning("step %d: %s", position.step, line)
        rates = self._engine.rates()
        flops = self._flops_per_step(stage)
        self._metrics.write(
            {
                "step": position.step,
                "updates": position.updates,
                "loss": outcome.loss,
                "learning_rate": rates.get("decay", next(iter(rates.values()))),
                **{f"learning_rate/{name}": rate for name, rate in rates.items()},
                "grad_norm": outcome.gradient_norm,
                **{f"grad_norm/{name}": norm for name, norm in outcome.group_norms.items()},
                "tokens_seen": position.tokens_seen,
                "sample_index": position.sample_index,
                "global_batch_size": stage.global_batch_size,
                "target_tokens": outcome.target_tokens,
                "tokens_per_second": outcome.tokens / seconds,
                "model_flops_utilisation": flops / seconds / self._peak_flops_per_second,
                "step_seconds": seconds,
                "data_wait_seconds": outcome.data_wait_seconds,
                "loss_scale": self._engine.loss_scale.scale,
                "skipped_steps": position.step - position.updates,
                **parts,
                **communication,
                **summarize_rank_facts(of_ranks),
                **state_space,
                **{
                    f"epochs/{name}": value
                    for name, value in self._epochs(position.sample_index).items()
                },
            }
        )

    def _flops_per_step(self, stage: Stage) -> int:
        objective = self._config.data_of(stage).make_objective()
        per_sample = training_flops_per_sample(
            self._config.model, objective.input_length_tokens, objective.target_length_tokens
        )
        return per_sample * stage.global_batch_size

    def _show_fills(self, step: int) -> None:
        count = self._config.telemetry.sample_fills
        if count == 0:
            return
        batch = self._heldout.batch(np.arange(count, dtype=np.int64))
        fills = fill_samples(self._engine.module, batch, self._tokenizer, self._device, self._group)
        if self._metrics is not None:
            self._metrics.text(f"fills/{ALL_HELDOUT}", fills_text(fills), step)
            write_fills(RunFolder(self._config.run_path).path, step, fills)
