"""What happens beside the Trainer's steps: lines of progress, whole checkpoints, a clean stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune import processes
from finetune.checkpoints import mark_complete
from finetune.errors import StoppedOnRequest


class StopRequests:
    """Notes SIGTERM and Ctrl-C while it is entered; the second one has its usual effect."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])


class StepControl(TrainerCallback):
    """Ends a training, or what is predicted after it, when it is asked to.

    It also has the last step of all validated.

    Args:
        requests: What the user or a scheduler asks for.
        over: Whether the training was over when it was resumed. The Trainer then makes one more
            step, which nobody looks at: the best checkpoint is what counts.
    """

    def __init__(self, requests: StopRequests, *, over: bool) -> None:
        self.stopped = False
        self._requests = requests
        self._over = over
        self._has_trained = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Decide together with all processes, lest one waits for others that have left."""
        if self._over:
            control.should_evaluate = control.should_save = control.should_log = False
            control.should_training_stop = True
            return control
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        # What was not logged before a checkpoint is not known after a resume.
        control.should_log |= control.should_evaluate
        if processes.any_process(self._requests.asked):
            self.stopped = True
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note that what is evaluated from now on is no validation between steps."""
        self._has_trained = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Stop between two batches of the end; all processes come here equally often.

        Raises:
            StoppedOnRequest: A signal came; the training itself is saved.
        """
        if self._has_trained and processes.any_process(self._requests.asked):
            raise StoppedOnRequest(
                f"{args.output_dir}: trained, and stopped while predicting; the same command goes "
                "on"
            )


class CheckpointMarks(TrainerCallback):
    """Marks checkpoints that all processes have written."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Mark the newest one; the processes wait for one another."""
        processes.wait_for_all()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class ProgressLines(TrainerCallback):
    """Says in plain lines how a training goes.

    Args:
        say: Takes a line; called in the first process alone.
        title: Begins each line.
    """

    def __init__(self, say: Callable[[str], None], title: str) -> None:
        self._say = say
        self._title = title

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float],
        **_: Any,
    ) -> None:
        """Say what the Trainer logs of training and of validation."""
        if not state.is_world_process_zero:
            return
        place = f"{self._title}, step {state.global_step} of {state.max_steps}"
        if "loss" in logs:
            rate = f"{logs['learning_rate']:.2e}"
            self._say(f"{place}: loss {logs['loss']:.4f}, learning rate {rate}")
        elif "eval_loss" in logs:
            numbers = validation_numbers(logs)
            self._say(
                f"{place}: validation {', '.join(f'{k} {v:.4f}' for k, v in numbers.items())}"
            )


def validation_numbers(logs: Mapping[str, float]) -> dict[str, float]:
    """Loss and metrics of a validation, without the Trainer's own measurements of time."""
    own = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return {
        name.removeprefix("eval_"): value
        for name, value in logs.items()
        if name.startswith("eval_") and name not in own and not name.endswith("preparation_time")
    }
