"""A Trainer whose evaluations examine rows with `evaluation.Examiner`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from finetune.summarization.documents import SummaryRows
from finetune.summarization.evaluation import Examiner, Questions
from finetune.summarization.scores import nll_per_token


class SummaryTrainer(Trainer):
    """Trains as any Trainer does; to validate and to predict is its own.

    The Trainer's loop cuts batches by the number of processes and fills up the last ones with rows
    it has seen, which changes paddings and with them the last digits, and at times a summary.

    Args:
        tokenizer: Of the model.
        writing: How summaries are written.
        most_tokens: Of a batch when rows are examined.
        say: Takes lines of progress.
        common: The Trainer's own arguments.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        writing: GenerationConfig,
        most_tokens: int,
        say: Callable[[str], None],
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self._tokenizer = tokenizer
        self._writing = writing
        self._most_tokens = most_tokens
        self._say = say

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return records as predictions, and the metrics if the Trainer was given any.

        Args:
            dataloader: Holds the rows.
            description: Not used.
            prediction_loss_only: Not used.
            ignore_keys: Not used.
            metric_key_prefix: ``eval`` while it trains; all else is the end, when more is asked.
        """
        rows: SummaryRows = dataloader.dataset
        in_the_end = metric_key_prefix != "eval"
        writes = rows.written_in_the_end if in_the_end else rows.always_written
        questions = Questions(shuffled=in_the_end, writing=self._writing if writes else None)
        self.model.eval()
        examiner = Examiner(self.model, self._tokenizer, self._most_tokens, self._say)
        with self._autocast():
            records = examiner.examine(rows, questions, before_batch=self._say_that_a_batch_begins)
        metrics: dict[str, float] = {}
        if rows.targets is not None:
            metrics[f"{metric_key_prefix}_loss"] = nll_per_token(rows, records)
        if self.compute_metrics is not None:
            found = self.compute_metrics(EvalPrediction(predictions=records, label_ids=None))
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return EvalLoopOutput(
            predictions=records, label_ids=None, metrics=metrics, num_samples=len(rows)
        )

    def _say_that_a_batch_begins(self) -> None:
        """Let the callbacks know, which may end it."""
        self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def _autocast(self) -> Any:
        """The precision of the training's forward pass, be it the Trainer's or DeepSpeed's."""
        deepspeed = self.args.deepspeed or {}
        return torch.autocast(
            self.args.device.type,
            torch.bfloat16,
            enabled=self.args.bf16 or "torch_autocast" in deepspeed,
        )
