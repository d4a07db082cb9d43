"""Evaluation during training: the same samples at every step, the same bits on any ranks.

Samples are cut into micro-batches by their numbers, and whole micro-batches are dealt to the ranks,
so the number of ranks decides who computes what but not what is computed. What each sample costs is
gathered by its number, and summed where the order does not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.data_settings import ALL_HELDOUT, DataSettings, ObjectiveSettings
from pretrain.evaluation.baselines import unigram_baselines
from pretrain.evaluation.samples import HeldoutSamples, count_samples, metrics
from pretrain.evaluation.settings import EvaluationSettings
from pretrain.model_inputs import IGNORED_LABEL
from pretrain.ranks import Ranks
from pretrain.sample_groups import SampleGroup

TRAINED = ""
"""Name of the objective that is trained, beside those of `evaluation.objectives`."""


class _MicroBatch(NamedTuple):
    """Some consecutive samples, on one rank."""

    stream: PretrainingStream
    start: int
    """Its first sample in the stream."""
    stop: int
    slot: int
    """Number of that sample among those of all sets and objectives."""


class Evaluation:
    """Evaluates a model on fixed held-out samples.

    Metrics are `eval/SET/NAME` for the objective that is trained and `eval/SET/OBJECTIVE/NAME` for
    others, NAME as of `metrics`. SET is each held-out set, and `heldout` all of them together,
    token by token.

    Args:
        parts: By objective, by held-out set; `TRAINED` is the objective that is trained.
        micro_batch_size: Samples of one forward pass.
        group: The ranks that work on the same samples.
        device: Where the model is.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, HeldoutSamples]],
        *,
        micro_batch_size: int,
        group: SampleGroup,
        device: torch.device,
    ) -> None:
        self._parts = parts
        self._group = group
        self._device = device
        self._batches: list[_MicroBatch] = []
        self._size = 0
        for samples in (samples for sets in parts.values() for samples in sets.values()):
            for start in range(0, samples.size, micro_batch_size):
                stop = min(samples.size, start + micro_batch_size)
                batch = _MicroBatch(samples.stream, start, stop, self._size + start)
                self._batches.append(batch)
            self._size += samples.size
        vocab = self._batches[0].stream.vocabulary
        self._is_text = torch.from_numpy(vocab.is_text(np.arange(vocab.vocab_size))).to(device)

    def run(self, engine: nn.Module, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Metrics of the model as it stands; every rank must call this.

        Training goes on afterwards as if it had not been called.

        Args:
            engine: The model, or DeepSpeed around it.
            should_stop: Called by all ranks before each forward pass, and of one mind on all.

        Returns:
            The same on every rank, or None where it was told to stop.
        """
        with torch.no_grad(), _undisturbed(engine, self._device):
            nats = self._nats(engine, should_stop)
        if nats is None:
            return None
        record: dict[str, float] = {}
        first = 0
        for objective, sets in self._parts.items():
            suffix = f"/{objective}" if objective != TRAINED else ""
            begin = first
            for name, samples in sets.items():
                values = metrics([samples], nats[first : first + samples.size])
                _put(record, f"eval/{name}{suffix}", values)
                first += samples.size
            together = metrics(list(sets.values()), nats[begin:first])
            _put(record, f"eval/{ALL_HELDOUT}{suffix}", together)
        return record

    def close(self) -> None:
        """Close the data's files."""
        for sets in self._parts.values():
            for samples in sets.values():
                samples.stream.close()

    def _nats(
        self, engine: nn.Module, should_stop: Callable[[], bool]
    ) -> npt.NDArray[np.float64] | None:
        """[samples, 2] of all sets and objectives, in order: all targets, and those of text."""
        slots = torch.zeros(self._size, 2, dtype=torch.float64, device=self._device)
        last = len(self._batches) - 1
        for first in range(0, len(self._batches), self._group.count):
            if should_stop():
                return None
            # ZeRO 3 gathers weights in every forward pass: a rank for which no micro-batch is left
            # takes part with one that another counts.
            number = first + self._group.number
            batch = self._batches[min(number, last)]
            nats = self._batch_nats(engine, batch)
            if number <= last and self._group.speaks:
                slots[batch.slot : batch.slot + len(nats)] = nats
        # Each slot was filled by one rank: adding zeros changes no bit.
        dist.all_reduce(slots)
        found: npt.NDArray[np.float64] = slots.cpu().numpy()
        return found

    def _batch_nats(self, engine: nn.Module, batch: _MicroBatch) -> Tensor:
        indices = np.arange(batch.start, batch.stop, dtype=np.int64)
        inputs = self._group.inputs(self._group.read(batch.stream, indices), self._device)
        return sample_nats(engine, inputs, self._is_text)


def sample_nats(model: nn.Module, inputs: Mapping[str, Any], is_text: Tensor) -> Tensor:
    """What each sample costs a model, float64 [n, 2]: all targets, and those that are text.

    Args:
        model: In evaluation mode.
        inputs: Of n samples, as `pretrain.model_inputs` makes them.
        is_text: bool [vocab_size], which ids are text.
    """
    labels = inputs["labels"]
    logits = model(**inputs).logits
    # Without a target the cost is zero.
    nats = functional.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        reduction="none",
        ignore_index=IGNORED_LABEL,
    )
    nats = nats.double().view(labels.shape)
    text_nats = torch.where(is_text[labels.clamp(min=0)] & (labels >= 0), nats, 0.0)
    return torch.stack((nats.sum(dim=1), text_nats.sum(dim=1)), dim=1)


def build_evaluation(
    data: DataSettings,
    settings: EvaluationSettings,
    training: StreamSettings,
    *,
    micro_batch_size: int,
    baselines_file: Path,
    ranks: Ranks,
    group: SampleGroup,
    device: torch.device,
) -> Evaluation:
    """Open the held-out data and count what is to be beaten; every rank must call this.

    Args:
        data: The data of the run.
        settings: What to evaluate.
        training: The training stream.
        micro_batch_size: Samples of one forward pass.
        baselines_file: Where the frequencies of the training targets are kept.
        ranks: This process's place.
        group: The ranks that work on the same samples.
        device: Where the model is.

    Raises:
        ConfigError: If a held-out set has no text to measure.
        DataError: If data are missing or damaged.
        RunError: If the file cannot be written.
    """
    objectives: dict[str, ObjectiveSettings] = {TRAINED: data.objective, **settings.objectives}
    streams = {
        objective: {
            name: PretrainingStream(
                dataclasses.replace(
                    data.heldout_settings(training.seed, name, chosen), part=group.part
                )
            )
            for name in data.heldout_locations()
        }
        for objective, chosen in objectives.items()
    }
    firsts = {objective: next(iter(sets.values())) for objective, sets in streams.items()}
    baselines = unigram_baselines(
        {name: _under_objective_of(training, first) for name, first in firsts.items()},
        firsts[TRAINED].vocabulary,
        file=baselines_file,
        ranks=ranks,
        device=device,
    )
    text_bytes = DocumentTokenizer.load(data.tokenizer).text_bytes
    parts = {
        objective: {
            name: count_samples(
                stream,
                samples=settings.samples,
                baseline=baselines[objective],
                text_bytes=text_bytes,
                read=group.read,
            )
            for name, stream in sets.items()
        }
        for objective, sets in streams.items()
    }
    return Evaluation(parts, micro_batch_size=micro_batch_size, group=group, device=device)


def _under_objective_of(training: StreamSettings, heldout: PretrainingStream) -> StreamSettings:
    other = heldout.settings
    return dataclasses.replace(training, objective=other.objective, sentence_end=other.sentence_end)


@contextmanager
def _undisturbed(engine: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode inside; modes and randomness as before outside."""
    modes = [(module, module.training) for module in engine.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        engine.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _put(record: dict[str, float], path: str, values: Mapping[str, float]) -> None:
    for key, value in values.items():
        record[f"{path}/{key}"] = value
