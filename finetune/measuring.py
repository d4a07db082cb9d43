"""Models measured without being trained: how they are run, and what they say of rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from finetune import processes
from finetune.errors import FinetuneError
from finetune.recipe import Rows
from finetune.settings import Precision


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings:
    """How a model is run.

    Raises:
        FinetuneError: A value is impossible.
    """

    batch_size: int = 8
    """Rows that a process takes at once."""
    precision: Precision | None = None
    """Of activations; None: bfloat16 on a GPU that has it, else float32. Weights are float32."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise FinetuneError(f"batch_size is {self.batch_size}: use 1 or more")
        if self.precision not in (None, *get_args(Precision)):
            raise FinetuneError(f"precision is {self.precision!r}: use float32 or bfloat16")

    @property
    def uses_bfloat16(self) -> bool:
        """Whether activations are bfloat16."""
        if self.precision is not None:
            return self.precision == "bfloat16"
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()

    @property
    def device(self) -> torch.device:
        """This process's GPU, or the CPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def join_processes() -> None:
    """Silence `transformers`, and meet the other processes if torchrun has started some."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if processes.world_size() > 1:
        processes.join()


def predict(
    model: PreTrainedModel,
    rows: Rows,
    collate: Callable[..., dict[str, Any]],
    settings: MeasuringSettings,
) -> Any:
    """Return what a model says of rows, in their order; several processes share the work.

    Args:
        model: Any; it is moved to a GPU if there is one.
        rows: All of the same kind.
        collate: Makes batches of them.
        settings: How.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_eval_batch_size=settings.batch_size,
            bf16=settings.uses_bfloat16,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            report_to="none",
            log_level="error",
            log_level_replica="error",
        )
        runner = Trainer(model=model, args=arguments, data_collator=collate)
        runner.remove_callback(PrinterCallback)
        return runner.predict(
            rows, ignore_keys=["hidden_states", "attentions", "past_key_values"]
        ).predictions
