"""The training loop: one page, everything else hangs off it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_pipeline.reading.batch_loader import BatchLoader
from pretrain.accumulation import Accumulation, StepOutcome
from pretrain.checkpoints.checkpoint_format import CheckpointKind
from pretrain.checkpoints.position import Position
from pretrain.checkpoints.saver import CheckpointSaver
from pretrain.config import RunConfig, Stage
from pretrain.control import Control, StopAgreed
from pretrain.data_settings import ALL_HELDOUT
from pretrain.engine.training_engine import TrainingEngine
from pretrain.evaluation.evaluation import Evaluation
from pretrain.observer import Observer
from pretrain.optimization.schedules import learning_rate_factor
from pretrain.optimization.spikes import Decision
from pretrain.resilience.watchdog import Watchdog
from pretrain.run_state import RunState


@dataclass
class Trainer:
    """All that one rank needs to train; put together by :mod:`pretrain.assembly`."""

    config: RunConfig
    engine: TrainingEngine
    accumulation: Accumulation
    control: Control
    state: RunState
    saver: CheckpointSaver
    evaluation: Evaluation
    observer: Observer
    watchdog: Watchdog
    open_loader: Callable[[Position, Stage], BatchLoader]
    """Batches from a place of the run on."""
    _loader: BatchLoader | None = None
    _stage: Stage | None = None

    def run(self) -> bool:
        """Train from where the state is to the last update, or until asked to stop.

        Returns:
            Whether the run is finished; otherwise it stopped on request, its state saved.

        Raises:
            RunError: If the run gives up: too many steps are not fit to be made.
            CheckpointError: If a checkpoint cannot be written.
        """
        try:
            while True:
                self._evaluate_if_due()
                if self._finished:
                    self._save("final")
                    break
                if self._due(self.config.checkpoint.every_steps):
                    self._save("scheduled")
                self.make_step()
        except StopAgreed:
            self._save("stop")
        self.saver.wait()
        self._tell_saved()
        return self._finished

    def close(self) -> None:
        """Stop the loader, flush the metrics, leave the terminal as it was."""
        if self._loader is not None:
            self._loader.close()
        self.evaluation.close()
        self.saver.close()
        self.observer.close(finished=self._finished)

    @property
    def position(self) -> Position:
        """How far the run has come."""
        return self.state.progress.position

    @property
    def _finished(self) -> bool:
        return self.position.updates >= self.config.train.max_steps

    def _due(self, every_steps: int) -> bool:
        return self.position.step > 0 and self.position.step % every_steps == 0

    def make_step(self) -> None:
        """One attempt at an update, judged afterwards."""
        before = self.position
        loader, stage = self._enter_stage()
        step = before.step + 1
        self.observer.before_step(step)
        outcome = self.accumulation.step(
            loader,
            self.state.progress.guard,
            step=step,
            rate_factor=self._rate_factor,
            skip=self.state.decisions.skipped_before(step, before.sample_index) is not None,
            group_norms=self.observer.wants_group_norms(step),
        )
        self.state.progress.position = Position(
            step=step,
            sample_index=before.sample_index + stage.global_batch_size,
            tokens_seen=before.tokens_seen + outcome.tokens,
            updates=before.updates + outcome.applied,
        )
        self.watchdog.first_step_done()
        self.observer.after_step(outcome, self.position, stage)
        self.observer.tell_damage(loader.quarantined)
        self._tell_saved()
        self._judge(outcome, before, stage)

    def _judge(self, outcome: StepOutcome, before: Position, stage: Stage) -> None:
        """Act on what the spike guard says of a step."""
        step, sample_index = before.step + 1, before.sample_index
        decision = self.state.progress.guard.judge(
            outcome.loss, outcome.gradient_norm, outcome.applied
        )
        if decision.action == "abort":
            self.state.give_up(decision, step=step, sample_index=sample_index)
        if not outcome.applied:
            skipped = Decision("skip", decision.reason)
            if self.state.note(skipped, step=step, sample_index=sample_index):
                text = f"step {step} was skipped, samples {sample_index} to "
                text += f"{self.position.sample_index - 1}: {decision.reason}"
                self.observer.event("skip", step, text, reason=decision.reason)
        if decision.action == "roll_back":
            self._roll_back(decision, before, stage)

    def _roll_back(self, decision: Decision, before: Position, stage: Stage) -> None:
        self.state.roll_back(
            decision,
            step=before.step + 1,
            sample_index=before.sample_index,
            samples=stage.global_batch_size,
        )
        self._close_loader()
        now = self.position
        self.observer.went_back(now.step)
        text = f"rolled back from step {before.step + 1} to step {now.step}, going on with sample "
        text += f"{now.sample_index}: {decision.reason}"
        facts = {"from_step": before.step + 1, "reason": decision.reason}
        self.observer.event("roll_back", now.step, text, **facts)

    def _enter_stage(self) -> tuple[BatchLoader, Stage]:
        """The loader of the curriculum's stage that holds now."""
        stage = self.config.stage(self.position.tokens_seen)
        self.state.progress.guard.enter(*stage)
        if self._stage is not None and stage != self._stage:
            self._close_loader()
            text = f"from step {self.position.step + 1} on: batches of {stage.global_batch_size} "
            text += f"samples, inputs of {stage.input_length_tokens} tokens"
            self.observer.event("stage", self.position.step, text, **stage._asdict())
        if self._loader is None:
            self._loader = self.open_loader(self.position, stage)
        self._stage = stage
        return self._loader, stage

    def _close_loader(self) -> None:
        if self._loader is not None:
            self._loader.close()
        self._loader = None

    def _rate_factor(self, step_tokens: int) -> float:
        return learning_rate_factor(
            self.config.schedule,
            updates=self.position.updates,
            tokens_seen=self.position.tokens_seen + step_tokens,
            max_steps=self.config.train.max_steps,
        )

    def _evaluate_if_due(self) -> None:
        progress, step = self.state.progress, self.position.step
        due = step == 0 or self._finished or self._due(self.config.evaluation.every_steps)
        if not due or progress.evaluated_step == step:
            return
        with self.observer.timer.part("evaluation"):
            record = self.evaluation.run(
                self.engine.deepspeed, lambda: self.control.should_stop(f"evaluation at {step}")
            )
        if record is None:
            raise StopAgreed
        progress.evaluated_step = step
        progress.heldout_loss = record[f"eval/{ALL_HELDOUT}/loss"]
        self.observer.evaluated(record, step)

    def _save(self, kind: CheckpointKind) -> None:
        if self.state.progress.saved_step == self.position.step:
            return
        with self.observer.timer.part("checkpoint"):
            self.observer.saving()
            found = [] if self._loader is None else self._loader.quarantined
            self.state.save(kind, [entry.to_json() for entry in found])
        self._tell_saved()

    def _tell_saved(self) -> None:
        for checkpoint in self.saver.take_finished():
            self.observer.saved(checkpoint)
