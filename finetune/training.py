"""One training of a recipe: from a seed to a model, its scores and its predictions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, set_seed
from transformers.integrations import TensorBoardCallback

from finetune import processes
from finetune.callbacks import (
    CheckpointMarks,
    ProgressLines,
    StepControl,
    StopRequests,
    validation_numbers,
)
from finetune.checkpoints import (
    newest_complete,
    remove_checkpoints,
    trainer_state,
    write_atomically,
)
from finetune.deepspeed_config import GRADIENT_CLIPPING, deepspeed_config
from finetune.errors import StoppedOnRequest
from finetune.parameter_groups import parameter_groups
from finetune.recipe import Recipe
from finetune.settings import TrainingSettings

VALIDATION = "validation"
LOG_LINES_OF_AN_EPOCH = 10
_RESULT = "result.json"
_NOT_PREDICTIONS = ["hidden_states", "attentions", "past_key_values"]
"""What a model may return beside its predictions."""
_KEPT_CHECKPOINTS = 3
"""The newest, the best, and the one before: removal comes before the newest is known as whole."""


@dataclass(frozen=True)
class Session:
    """What all trainings of a run share."""

    recipe: Recipe
    settings: TrainingSettings
    requests: StopRequests
    say: Callable[[str], None]

    @property
    def uses_deepspeed(self) -> bool:
        """Whether DeepSpeed does the steps."""
        return self.settings.zero_stage is not None or processes.world_size() > 1

    @property
    def uses_bfloat16(self) -> bool:
        """Whether activations are bfloat16."""
        if self.settings.precision is not None:
            return self.settings.precision == "bfloat16"
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def train_seed(session: Session, folder: Path, seed: int) -> dict[str, Any]:
    """Train with one seed, or go on, or return what was found before.

    Args:
        session: What to train.
        folder: Of this seed; afterwards it holds ``model/``, predictions and ``result.json``.
        seed: Of new weights, the order of rows, and dropout.

    Returns:
        ``seed``, ``steps``, ``best_step``, the numbers of ``validation`` and of each of ``tests``,
        ``details`` that the recipe adds to them (in the first process), and ``history``: losses
        and validations by step.

    Raises:
        StoppedOnRequest: A signal came; what was learned is saved.
    """
    done = processes.on_first(lambda: _read_result(folder))
    if done is not None:
        return done
    found = processes.on_first(lambda: newest_complete(folder) if folder.exists() else None)
    before = trainer_state(found) if found is not None else None
    over = before is not None and _is_over(before, session.settings)
    set_seed(seed)
    model = session.recipe.make_model(session.settings.dropout)
    control = StepControl(session.requests, over=over)
    trainer = _make_trainer(session, folder, seed, model, control, before)
    if found is not None:
        session.say(f"seed {seed}: goes on from {found.name}")
    started = time.monotonic()
    trainer.train(
        resume_from_checkpoint=None if found is None else str(found),
        ignore_keys_for_eval=_NOT_PREDICTIONS,
    )
    if control.stopped:
        raise StoppedOnRequest(
            f"{folder.parent}: stopped at step {trainer.state.global_step} of seed {seed} with a "
            "checkpoint; the same command goes on"
        )
    session.say(f"seed {seed}: trained for {time.monotonic() - started:.0f} s")
    last_step = before["global_step"] if over and before else trainer.state.global_step
    return _finish(session, folder, seed, trainer, last_step)


def _read_result(folder: Path) -> dict[str, Any] | None:
    try:
        result: dict[str, Any] = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    remove_checkpoints(folder)  # an interruption may have come between the result and this
    return result


def _is_over(state: dict[str, Any], settings: TrainingSettings) -> bool:
    """Whether a checkpoint is the last one of its training."""
    if state["global_step"] >= state["max_steps"]:
        return True
    callback = state["stateful_callbacks"].get("EarlyStoppingCallback")
    if settings.patience is None or callback is None:
        return False
    in_vain: int = callback["attributes"]["early_stopping_patience_counter"]
    return in_vain >= settings.patience


def _make_trainer(
    session: Session,
    folder: Path,
    seed: int,
    model: Any,
    control: StepControl,
    before: dict[str, Any] | None,
) -> Trainer:
    recipe, settings = session.recipe, session.settings
    arguments = recipe.make_arguments(_arguments(session, folder, seed))
    callbacks: list[Any] = [CheckpointMarks(), control]
    callbacks.append(ProgressLines(session.say, f"seed {seed}"))
    if settings.patience is not None:
        callbacks.append(EarlyStoppingCallback(settings.patience))
    if processes.is_first():
        callbacks.append(TensorBoardCallback(_tensorboard(folder, before)))
    trainer = recipe.make_trainer(
        model=model,
        args=arguments,
        train_dataset=recipe.training,
        eval_dataset=recipe.validation,
        data_collator=recipe.collate,
        compute_metrics=lambda found: recipe.measure(recipe.validation, found.predictions),
        callbacks=callbacks,
        optimizer_cls_and_kwargs=(
            torch.optim.AdamW,
            {"params": parameter_groups(model, settings), "betas": (0.9, 0.98), "eps": 1e-8},
        ),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _tensorboard(folder: Path, before: dict[str, Any] | None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # What was written after the checkpoint is about to be written again.
    purge_step = None if before is None else before["global_step"] + 1
    return SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)


def _arguments(session: Session, folder: Path, seed: int) -> dict[str, Any]:
    """The Trainer's arguments, those of all recipes."""
    settings, world = session.settings, processes.world_size()
    at_once, accumulation = settings.rows_at_once(world), settings.accumulation_steps(world)
    steps = settings.steps_per_epoch(len(session.recipe.training), world)  # type: ignore[arg-type]
    every = settings.evaluate_every_steps or steps
    deepspeed = None
    if session.uses_deepspeed:
        deepspeed = deepspeed_config(
            zero_stage=2 if settings.zero_stage is None else settings.zero_stage,
            micro_batch_size=at_once,
            accumulation_steps=accumulation,
            processes=world,
            bfloat16=session.uses_bfloat16,
            on_gpu=torch.cuda.is_available(),
        )
    return {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(settings.warmup_share * steps * settings.epochs),
        "max_grad_norm": GRADIENT_CLIPPING,
        "activation_checkpointing": settings.activation_checkpointing,
        # With DeepSpeed autocast is its own; the Trainer's word would make it cast the weights.
        "bf16": session.uses_bfloat16 and deepspeed is None,
        "deepspeed": deepspeed,
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        # By steps, not by epochs: the Trainer would validate and save once more where it is
        # stopped in the middle of an epoch, and the run would take another course.
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": _KEPT_CHECKPOINTS,
        "logging_strategy": "steps",
        "logging_steps": max(1, steps // LOG_LINES_OF_AN_EPOCH),
        "metric_for_best_model": session.recipe.score,
        "greater_is_better": session.recipe.greater_is_better,
        "restore_callback_states_from_checkpoint": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": True,
        "report_to": "none",
        "log_level": "error",
        "log_level_replica": "error",
    }


def _finish(
    session: Session, folder: Path, seed: int, trainer: Trainer, last_step: int
) -> dict[str, Any]:
    """Predict with the best checkpoint, and keep of the training what is of use."""
    recipe = session.recipe
    best_step = trainer.state.best_global_step
    best = type(trainer.model).from_pretrained(
        folder / f"checkpoint-{best_step}", dtype=torch.float32
    )
    trainer.model.load_state_dict(best.state_dict())
    trainer.compute_metrics = None  # it knows the validation rows alone
    result: dict[str, Any] = {"seed": seed, "steps": last_step, "best_step": best_step}
    numbers, details = {}, {}
    for name, rows in {VALIDATION: recipe.validation, **recipe.tests}.items():
        outputs = trainer.predict(rows, ignore_keys=_NOT_PREDICTIONS).predictions
        numbers[name] = recipe.measure(rows, outputs)
        if processes.is_first():
            recipe.write_predictions(folder, name, rows, outputs)
            details[name] = recipe.detail(name, rows, outputs)
    result[VALIDATION] = numbers.pop(VALIDATION)
    result["tests"] = numbers
    result["details"] = {name: detail for name, detail in details.items() if detail}
    result["history"] = _history(trainer.state.log_history, last_step)
    if processes.is_first():
        best.config.use_cache = True  # the Trainer's gradients needed none
        best.save_pretrained(folder / "model")
        recipe.save_tokenizer(folder / "model")
        write_atomically(folder / _RESULT, json.dumps(result, indent=2) + "\n")
        remove_checkpoints(folder)
    processes.wait_for_all()
    return result


def _history(log: list[dict[str, float]], last_step: int) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    for entry in log:
        if entry["step"] > last_step:
            continue
        if "loss" in entry:
            lines.append({"step": entry["step"], "loss": entry["loss"]})
        elif "eval_loss" in entry:
            # Sorted: the Trainer's own order is another one after a resume.
            numbers = sorted(validation_numbers(entry).items())
            lines.append({"step": entry["step"], **{f"{VALIDATION}/{k}": v for k, v in numbers}})
    return lines
