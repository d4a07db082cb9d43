"""All that a run knows beside its weights, and how both go to the disk, come back, and go back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pretrain.checkpoints.checkpoint_format import (
    CheckpointKind,
    list_checkpoints,
    read_manifest,
    verify_checkpoint,
)
from pretrain.checkpoints.position import Position
from pretrain.checkpoints.reader import CheckpointReader
from pretrain.checkpoints.retention import remove_newer
from pretrain.checkpoints.saver import CheckpointSaver
from pretrain.checkpoints.snapshot import Snapshot
from pretrain.config import RunConfig
from pretrain.control import Control
from pretrain.engine.loss_scale import LossScale
from pretrain.engine.training_engine import TrainingEngine
from pretrain.engine.training_state import fill_snapshot, restore
from pretrain.errors import CheckpointError, RunError
from pretrain.hardware import code_version
from pretrain.optimization.decisions import DecisionLog, DecisionRecord
from pretrain.optimization.spikes import (
    Decision,
    SpikeGuard,
    is_calm,
    roll_back_or_abort,
)
from pretrain.ranks import Ranks
from pretrain.run_folder import RunFolder, write_atomically


@dataclass
class Progress:
    """Where the run is, in plain data; the same on every rank."""

    position: Position
    guard: SpikeGuard
    evaluated_step: int = -1
    """The step of the last evaluation; -1 before the first."""
    heldout_loss: float | None = None
    """As it was found then."""
    saved_step: int = -1
    """The step of the last checkpoint; -1 before the first."""


class RunState:
    """Saves, loads and rolls back a run; every rank makes the same calls.

    Args:
        engine: The weights.
        config: The run.
        control: For agreeing.
        saver: Writes.
        decisions: What was skipped and stepped over.
        ranks: This process's place.
        fingerprints: Of the data sets and the tokenizer.
    """

    def __init__(
        self,
        engine: TrainingEngine,
        config: RunConfig,
        control: Control,
        saver: CheckpointSaver,
        decisions: DecisionLog,
        ranks: Ranks,
        fingerprints: dict[str, str],
    ) -> None:
        self.progress = Progress(Position(), SpikeGuard(config.spikes))
        self.decisions = decisions
        self.quarantined: list[dict[str, Any]] = []
        """Damaged places of the data known to all ranks at the last checkpoint."""
        self._engine = engine
        self._config = config
        self._folder = RunFolder(config.run_path)
        self._control = control
        self._saver = saver
        self._ranks = ranks
        self._fingerprints = fingerprints
        self._snapshot = Snapshot()

    def save(self, kind: CheckpointKind, found_damaged: list[dict[str, Any]]) -> None:
        """Begin to write a checkpoint.

        Args:
            kind: Why.
            found_damaged: What this rank's loader has found so far.

        Raises:
            CheckpointError: If this checkpoint, or the one before, could not be written.
        """
        progress = self.progress
        self._gather_damage(found_damaged)
        self._saver.wait()  # its memory is the snapshot's
        first = self._ranks.rank == 0
        fill_snapshot(self._engine.deepspeed, self._snapshot, first_rank=first)
        evaluated_now = progress.evaluated_step == progress.position.step
        self._saver.start(
            self._snapshot,
            self._facts(),
            self._config.to_yaml(),
            kind=kind,
            heldout_loss=progress.heldout_loss if evaluated_now else None,
        )
        progress.saved_step = progress.position.step

    def load(self, path: Path) -> None:
        """Go on from a verified checkpoint of any number of ranks and any ZeRO stage.

        Raises:
            CheckpointError: If it lacks a tensor of this model or optimizer.
        """
        manifest = read_manifest(path)
        position = Position(**{name: manifest[name] for name in asdict(Position())})
        place = self._ranks.rank / self._ranks.world_size
        reader = CheckpointReader(path, near=place)
        restore(
            self._engine.deepspeed,
            reader.read_full,
            reader.read_slice,
            reader.read_state,
            position.updates,
        )
        scale = LossScale.continued(manifest["loss_scale"], self._config.train.precision)
        self._engine.set_loss_scale(scale)
        try:
            guard = SpikeGuard(self._config.spikes, manifest["spike_guard"])
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from None
        sample_index = self.decisions.steps_over(position.step, position.sample_index)
        self.quarantined = list(manifest["quarantined"])
        self.progress = Progress(
            Position(position.step, sample_index, position.tokens_seen, position.updates),
            guard,
            evaluated_step=manifest["evaluated_step"],
            heldout_loss=manifest["heldout_loss"],
            saved_step=position.step,
        )

    def note(self, decision: Decision, *, step: int, sample_index: int) -> bool:
        """Have a decision in the run folder; it must not take effect before.

        Returns:
            Whether it is a new one.
        """
        record = DecisionRecord(decision.action, decision.reason, step, sample_index)
        return self.decisions.append(record)

    def roll_back(self, decision: Decision, *, step: int, sample_index: int, samples: int) -> None:
        """Go back to the last checkpoint made in calm, and step over the samples since.

        Args:
            decision: Why.
            step: The last one, which was judged.
            sample_index: Its first sample.
            samples: How many it had.

        Raises:
            RunError: If there is no such checkpoint, or the run went back to it too often.
            CheckpointError: If the background failed to write one.
        """
        self._saver.wait()
        (target,) = self._control.sum(self._calm_step(step) if self._ranks.rank == 0 else 0)
        if target < 0:
            reason = f"{decision.reason}; there is no checkpoint before it to go back to"
            self.give_up(Decision("abort", reason), step=step, sample_index=sample_index)
        done = self.decisions.roll_backs_to(target, besides=(step, sample_index))
        final = roll_back_or_abort(decision, done, self._config.spikes)
        if final.action == "abort":
            self.give_up(final, step=step, sample_index=sample_index)
        path = next(i.path for i in list_checkpoints(self._folder.path) if i.step == target)
        self.decisions.roll_back(
            decision.reason,
            step=step,
            sample_index=sample_index,
            samples=samples,
            to_step=target,
            to_sample_index=read_manifest(path)["sample_index"],
        )
        self._control.sum(0)  # the decision is on the disk before anything follows from it
        if self._ranks.rank == 0:
            remove_newer(self._folder.path, target)
        self._control.sum(0)
        self.load(path)

    def give_up(self, decision: Decision, *, step: int, sample_index: int) -> None:
        """End the run, and have it in the run folder why.

        Raises:
            RunError: Always.
        """
        self.note(decision, step=step, sample_index=sample_index)
        raise RunError(
            f"the run gives up at step {step}: {decision.reason}; the last checkpoint is sound"
        )

    def _calm_step(self, before_step: int) -> int:
        """The newest sound checkpoint at which nothing was wrong yet; -1 if there is none."""
        for info in reversed(list_checkpoints(self._folder.path)):
            if not info.complete or info.step > before_step:
                continue
            calm = is_calm(read_manifest(info.path).get("spike_guard", {}))
            if calm and not verify_checkpoint(info.path):
                return info.step
        return -1

    def _facts(self) -> dict[str, Any]:
        progress = self.progress
        module = self._engine.module
        return {
            **asdict(progress.position),
            "evaluated_step": progress.evaluated_step,
            "spike_guard": progress.guard.to_json(),
            "loss_scale": asdict(self._engine.loss_scale),
            "zero_stage": self._config.deepspeed.zero_stage,
            "optimizer": self._config.optimizer.kind,
            "precision": self._config.train.precision,
            "seed": self._config.train.seed,
            "fingerprints": self._fingerprints,
            "quarantined": self.quarantined,
            "code_version": code_version(),
            "parameters": {
                name: list(getattr(parameter, "ds_shape", parameter.shape))
                for name, parameter in module.named_parameters()
                if parameter.requires_grad
            },
            "tied": tied_names(module),
        }

    def _gather_damage(self, mine: list[dict[str, Any]]) -> None:
        """What all ranks and earlier parts of the run found damaged; also into the run folder."""
        for entry in (entry for part in self._control.gather(mine) for entry in part):
            if entry not in self.quarantined:
                self.quarantined.append(entry)
        if self._ranks.rank == 0 and self.quarantined:
            lines = "".join(f"{json.dumps(entry)}\n" for entry in self.quarantined)
            write_atomically(self._folder.quarantine_path, lines)


def tied_names(module: nn.Module) -> dict[str, str]:
    """Second names of shared parameters: ``{"lm_head.weight": "model.shared.weight"}``."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        original = first.setdefault(id(parameter), name)
        if original != name:
            tied[name] = original
    return tied
