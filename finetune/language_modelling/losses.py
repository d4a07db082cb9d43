"""What the tokens of a text cost a model, in all the units that are in use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from finetune import processes
from finetune.intervals import bootstrap_ratio_interval
from finetune.language_modelling.windows import IGNORED, TokenWindows, collate
from spade_model.huggingface import SpadeForCausalLM

SCORE = "perplexity"
INTERVAL_LEVEL = 0.95
_TOKENS_OF_HEAD_AT_ONCE = 2048
"""Logits of a whole batch would need far more memory than all else."""
_BLOCK_TOKENS = 2048
"""Neighbouring windows are about the same thing. Blocks of at least so many tokens are drawn."""
_FEWEST_BLOCKS = 8


def row_losses(model: SpadeForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Return the summed negative log-likelihood of each row's labels in nats, float64 [B].

    Args:
        model: In evaluation mode.
        batch: Of `windows.collate`.
    """
    hidden = model.model(batch["input_ids"], batch["attention_mask"])[:, :-1]
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORED
    rows = counted.nonzero()[:, 0]
    states, targets = hidden[counted], targets[counted]
    sums = torch.zeros(len(counted), dtype=torch.float64, device=hidden.device)
    # The head in float32 whatever the layers were in: rounded logits would be rounded losses.
    with torch.autocast(hidden.device.type, enabled=False):
        for first in range(0, len(targets), _TOKENS_OF_HEAD_AT_ONCE):
            part = slice(first, first + _TOKENS_OF_HEAD_AT_ONCE)
            logits = model.lm_head(states[part].float())
            nats = functional.cross_entropy(logits, targets[part], reduction="none")
            sums.index_add_(0, rows[part], nats.double())
    return sums


def window_losses(
    model: SpadeForCausalLM,
    rows: TokenWindows,
    *,
    batch_size: int,
    pad_token_id: int,
    bfloat16: bool,
    before_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Return the summed losses of windows in nats [N]; all processes take part and get all.

    Batches are cut by the number of the window and dealt to the processes whole, so that their
    number changes no bit.

    Args:
        model: Where it is, it computes.
        rows: Windows over a text.
        batch_size: Windows that a process takes at once.
        pad_token_id: Fills up shorter windows.
        bfloat16: Whether the layers compute so; the head never does.
        before_batch: Called by all processes equally often, and may raise.
    """
    model.eval()
    firsts = range(0, len(rows), batch_size)
    found: dict[int, list[float]] = {}
    for turn in range(0, len(firsts), processes.world_size()):
        before_batch()
        if turn + processes.rank() >= len(firsts):
            continue
        first = firsts[turn + processes.rank()]
        last = min(len(rows), first + batch_size)
        batch = collate([rows[index] for index in range(first, last)], pad_token_id)
        moved = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, bfloat16):
            found[first] = row_losses(model, moved).tolist()
    for part in processes.gather(found):
        found.update(part)
    return np.array([nats for first in firsts for nats in found[first]], dtype=np.float64)


class LanguageModelTrainer(Trainer):
    """A Trainer whose predictions are the summed losses of windows, not their logits.

    Args:
        pad_token_id: Fills up shorter windows.
        common: The Trainer's own arguments.
    """

    def __init__(self, pad_token_id: int, **common: Any) -> None:
        super().__init__(**common)
        self._pad_token_id = pad_token_id

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return losses as predictions, and the metrics if the Trainer was given any.

        Args:
            dataloader: Holds the windows.
            description: Not used.
            prediction_loss_only: Not used.
            ignore_keys: Not used.
            metric_key_prefix: Stands before the metrics' names.
        """
        rows: TokenWindows = dataloader.dataset
        deepspeed = self.args.deepspeed or {}
        nats = window_losses(
            self.model,
            rows,
            batch_size=self.args.per_device_eval_batch_size,
            pad_token_id=self._pad_token_id,
            bfloat16=self.args.bf16 or "torch_autocast" in deepspeed,
            before_batch=self._say_that_a_batch_begins,
        )
        found = {"loss": math.fsum(nats) / rows.text.tokens}
        if self.compute_metrics is not None:
            found |= self.compute_metrics(EvalPrediction(predictions=nats, label_ids=None))
        return EvalLoopOutput(
            predictions=nats,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in found.items()},
            num_samples=len(rows),
        )

    def _say_that_a_batch_begins(self) -> None:
        """Let the callbacks know, which may end it."""
        self.callback_handler.on_prediction_step(self.args, self.state, self.control)


def metrics(rows: TokenWindows, nats: NDArray[np.float64]) -> dict[str, float]:
    """Return the loss of a text per token, and in other units.

    Args:
        rows: Windows over the text.
        nats: Sums of their losses [N].

    Returns:
        ``nll_per_token`` in nats, ends of documents included; ``perplexity``, its exponential;
        ``word_perplexity``, the exponential of the same loss divided by words (see `Text.words`);
        ``bits_per_byte`` of the file's text.
    """
    total = math.fsum(nats)
    text = rows.text
    return {
        "nll_per_token": total / text.tokens,
        SCORE: _exponential(total / text.tokens),
        "word_perplexity": _exponential(total / text.words),
        "bits_per_byte": total / math.log(2) / text.size_bytes,
    }


def report(rows: TokenWindows, nats: NDArray[np.float64]) -> dict[str, Any]:
    """Return the metrics with their intervals, and the counts that they are made of.

    Args:
        rows: Windows over the text.
        nats: Sums of their losses [N].

    Returns:
        As of `metrics`; ``nll_interval`` and ``perplexity_interval``, None where the text
        is too short to tell; ``tokens``, ``words``, ``bytes``, ``documents``, ``lines``,
        ``changed_lines`` and ``windows``.
    """
    text = rows.text
    interval = _interval(rows, nats)
    return {
        **metrics(rows, nats),
        "nll_interval": interval,
        "perplexity_interval": None if interval is None else [_exponential(x) for x in interval],
        "tokens": text.tokens,
        "words": text.words,
        "bytes": text.size_bytes,
        "documents": text.documents,
        "lines": text.lines,
        "changed_lines": text.changed_lines,
        "windows": len(rows),
    }


REPORT_COLUMNS = (
    *("data", "tokens", "words", "bytes", "nats a token", "perplexity", "95 % interval"),
    *("a word", "bits per byte"),
)


def report_rows(reports: Mapping[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows of a table, one for each of some named reports."""
    rows = []
    for name, found in reports.items():
        interval = found["perplexity_interval"]
        rows.append(
            (
                name,
                *(f"{found[count]:,}" for count in ("tokens", "words", "bytes")),
                f"{found['nll_per_token']:.4f}",
                f"{found[SCORE]:.2f}",
                "too short" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
                f"{found['word_perplexity']:.2f}",
                f"{found['bits_per_byte']:.4f}",
            )
        )
    return rows


def _interval(rows: TokenWindows, nats: NDArray[np.float64]) -> list[float] | None:
    """The interval of the loss per token, from blocks of neighbouring windows."""
    sums, counts = [0.0], [0]
    for index, loss in enumerate(nats):
        if counts[-1] >= _BLOCK_TOKENS:
            sums.append(0.0)
            counts.append(0)
        window = rows.window(index)
        sums[-1] += float(loss)
        counts[-1] += window.stop - window.scored_from
    if len(sums) < _FEWEST_BLOCKS or not np.isfinite(sums).all():
        return None
    ends = bootstrap_ratio_interval(
        np.array(sums), np.array(counts, dtype=np.float64), level=INTERVAL_LEVEL
    )
    return list(ends)


def _exponential(value: float) -> float:
    """Its exponential, at most 1e308: JSON has no infinity."""
    return math.exp(min(value, 709.0)) if not math.isnan(value) else value
