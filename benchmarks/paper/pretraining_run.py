"""One network pretrained for so many seconds of processor time, and its held-out losses."""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.paper.pretraining_data import open_stream
from benchmarks.paper.pretraining_options import DataOptions, RunOptions
from data_pipeline.reading.stream import PretrainingStream
from pretrain.evaluation.evaluation import sample_nats
from pretrain.model_inputs import model_inputs
from pretrain.optimization.optimizers import make_optimizer
from pretrain.optimization.schedules import learning_rate_factor
from pretrain.optimization.settings import OptimizerSettings, ScheduleSettings
from spade_model.config import SpadeConfig
from spade_model.seq2seq import SpadeForSeq2Seq

SPADE, WINDOW, T5 = "SPADE", "window only", "T5"
NETWORKS: dict[str, dict[str, Any]] = {
    SPADE: {},
    WINDOW: {"state_space": "none"},
    T5: {"state_space": "none", "attention": "full"},
}
"""Changes to `RunOptions.model`, all of them in how the encoder mixes tokens."""
_SCHEDULE_PARTS = 1000
"""Into which the budget is cut: the schedule follows processor time, not steps."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """One network under one seed: all that decides its numbers, but for the machine's speed."""

    network: str
    seed: int
    learning_rate: float
    cpu_seconds: float
    """Of forward and backward passes and updates; reading and evaluation are not counted."""
    shards: str
    data: DataOptions
    options: RunOptions


def make_config(run: Run, vocab_size: int) -> SpadeConfig:
    """Return the architecture of a run's network."""
    common = {"vocab_size": vocab_size, "trained_length_tokens": run.data.input_length_tokens}
    return SpadeConfig(**(common | run.options.model | NETWORKS[run.network]))


def pretrain_and_test(run: Run) -> dict[str, Any]:
    """Pretrain a network, then measure all held-out windows.

    Returns:
        ``curve``: what was spent and the nats of all watched windows together, at growing steps.
        ``nats``, ``piece_nats``: [windows, 2] as of `sample_nats`, of the windows that are
        reported, as they are and with the encoder's sight cut to pieces. ``parameters``;
        ``steps``, ``tokens`` and ``cpu_seconds`` of the whole.
    """
    shards = Path(run.shards)
    heldout = open_stream(shards, "heldout", run.data, seed=0)
    model, points = _pretrain(run, heldout)
    windows = range(run.data.windows)
    piece_tokens = run.options.piece_tokens
    last = points[-1]
    return {
        "parameters": sum(x.numel() for x in model.parameters()),
        **{name: last[name] for name in ("steps", "tokens", "cpu_seconds")},
        "curve": points,
        "nats": _nats(model, heldout, windows).tolist(),
        "piece_nats": _nats(model, heldout, windows, piece_tokens).tolist(),
    }


def pretrain_and_watch(run: Run) -> dict[str, Any]:
    """Pretrain a network for the choice of its learning rate; the reported windows are not seen.

    Returns:
        ``curve``, as of `pretrain_and_test`.
    """
    heldout = open_stream(Path(run.shards), "heldout", run.data, seed=0)
    return {"curve": _pretrain(run, heldout)[1]}


def _pretrain(run: Run, heldout: PretrainingStream) -> tuple[SpadeForSeq2Seq, list[dict[str, Any]]]:
    stream = open_stream(Path(run.shards), "train", run.data, run.seed)
    torch.manual_seed(run.seed)
    model = SpadeForSeq2Seq(make_config(run, stream.vocabulary.vocab_size))
    trainer = _Trainer(model, run)
    watched = range(run.data.windows, run.data.heldout_windows)
    points: list[dict[str, Any]] = []
    tokens = batches = steps = 0

    def watch() -> None:
        nats = _nats(model, heldout, watched)
        point = {"steps": steps, "tokens": tokens, "cpu_seconds": trainer.spent_seconds}
        # A digest of all batches so far shows that networks had the same ones.
        points.append(point | {"batches": batches, "nats": nats.sum(axis=0).tolist()})

    # What allocators and libraries do once is nobody's compute; no weight is changed.
    trainer.differentiate(model_inputs(stream.batch([0]), _CPU))
    next_watch = run.options.first_watched_step
    while trainer.spent_seconds < run.cpu_seconds:
        batch = stream.batch([steps])
        trainer.step(model_inputs(batch, _CPU))
        steps += 1
        tokens += batch.input_ids.size
        batches = zlib.crc32(batch.labels.tobytes(), zlib.crc32(batch.input_ids.tobytes(), batches))
        if steps == next_watch:
            watch()
            next_watch *= 2
    if points == [] or points[-1]["steps"] != steps:
        watch()
    stream.close()
    return model, points


class _Trainer:
    """Steps of one window each, whose processor time is counted."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        options = run.options
        self._model, self._run = model, run
        self._optimizer = make_optimizer(
            model,
            OptimizerSettings(
                kind="muon",
                learning_rate=run.learning_rate,
                state_space_learning_rate=run.learning_rate * options.state_space_rate_factor,
            ),
            zero_stage=0,
        )
        self._schedule = ScheduleSettings(
            warmup_steps=round(options.warm_up_share * _SCHEDULE_PARTS), final_ratio=0.05
        )
        self.spent_seconds = 0.0

    def differentiate(self, inputs: dict[str, Tensor]) -> None:
        """Leave the gradients of the mean loss of a target token."""
        self._model.train()
        self._optimizer.zero_grad()
        self._model(**inputs).loss.backward()

    def step(self, inputs: dict[str, Tensor]) -> None:
        """Learn from one window."""
        started = time.process_time()
        share = min(1.0, self.spent_seconds / self._run.cpu_seconds)
        factor = learning_rate_factor(
            self._schedule,
            updates=min(_SCHEDULE_PARTS - 1, int(share * _SCHEDULE_PARTS)),
            tokens_seen=0,
            max_steps=_SCHEDULE_PARTS,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_learning_rate"] * factor
        self.differentiate(inputs)
        nn.utils.clip_grad_norm_(self._model.parameters(), self._run.options.gradient_norm)
        self._optimizer.step()
        self.spent_seconds += time.process_time() - started


@torch.no_grad()
def _nats(
    model: nn.Module,
    stream: PretrainingStream,
    windows: range,
    piece_tokens: int | None = None,
) -> npt.NDArray[np.float64]:
    """What windows cost, float64 [windows, 2] as of `sample_nats`.

    Args:
        model: Any mode.
        stream: Of the windows.
        windows: Their numbers.
        piece_tokens: Where given, the encoder takes each such piece of its input for a document of
            its own, so that nothing of it knows of others; the decoder sees all of them.
    """
    model.eval()
    vocab = stream.vocabulary
    is_text = torch.from_numpy(vocab.is_text(np.arange(vocab.vocab_size)))
    found = []
    for window in windows:
        inputs = model_inputs(stream.batch([window]), _CPU)
        if piece_tokens is not None:
            places = torch.arange(inputs["input_ids"].shape[1])
            inputs["segment_ids"] = (places // piece_tokens + 1)[None]
        found.append(sample_nats(model, inputs, is_text).numpy())
    return np.concatenate(found)
