"""The held-out loss of an exported model on any documents, under its own objective.

The documents become a data set in a folder that is removed afterwards, and its windows samples as
in pretraining, so that the loss is that of `evaluation`: the same, if the documents, their order
and the seed are those of the run's held-out data.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors import SafetensorError

from data_pipeline.building.build import build_dataset
from data_pipeline.errors import DataError
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import target_unigram
from data_pipeline.tokenization.tokenizer import (
    FORMAT_VERSION,
    MODEL_FILE,
    DocumentTokenizer,
)
from pretrain.data_settings import DataSettings
from pretrain.errors import ConfigError
from pretrain.evaluation.evaluation import sample_nats
from pretrain.evaluation.samples import HeldoutSamples, count_samples, metrics
from pretrain.exporting.errors import ExportError
from pretrain.exporting.export import is_export
from pretrain.exporting.provenance import PROVENANCE
from pretrain.model_inputs import model_inputs
from pretrain.ranks import find_ranks
from pretrain.sample_groups import SampleGroup, make_sample_group
from spade_model import SpadeForSeq2Seq
from spade_model.context_parallel.checks import check_context
from spade_model.context_parallel.group import ContextGroup

_REMEDY = "export the checkpoint again"


@dataclass(frozen=True)
class DenoisingReport:
    """What documents cost an exported model."""

    documents: int
    tokens: int
    """Of the documents, each with its end."""
    objective: str
    """Its kind."""
    metrics: dict[str, float]
    """As of `samples.metrics`; `unigram_loss` is that of a model that knows how often each token is
    a target in these very samples, which no model can know beforehand."""
    sample_nats: npt.NDArray[np.float64]
    """[samples] what the targets of each cost."""
    sample_targets: npt.NDArray[np.int64]
    """[samples] how many there are."""
    heldout_loss_of_the_run: float | None
    """At the exported step, on the run's own held-out data."""


def evaluate_export(
    folder: Path,
    files: Sequence[Path],
    *,
    samples: int,
    batch_size: int = 4,
    seed: int = 0,
    text_field: str = "text",
    context: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> DenoisingReport:
    """Measure an exported encoder-decoder on documents; on a GPU if there is one.

    Args:
        folder: Written by `pretrain.exporting.export.export`.
        files: Documents, as for `spade data build`.
        samples: At most so many, and no window twice.
        batch_size: Samples of one forward pass.
        seed: Chooses windows and masks.
        text_field: Of JSON lines and parquet files.
        context: Processes that share each input; all of them call this, and get the same.
        say: Takes lines of progress.

    Raises:
        ExportError: The folder is no export, or cannot be read.
        ConfigError: The documents are too short for the model's windows, or inputs cannot be shared
            by so many.
        DataError: The documents cannot be read.
    """
    check_export(folder, context)
    provenance = _read_provenance(folder)
    tokenizer = _tokenizer(folder, provenance)
    model = _load(folder)
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "data"
        summary = build_dataset(
            list(files),
            tokenizer,
            built,
            heldout_fraction=0.0,
            text_field=text_field,
            keep_duplicates=True,
        )
        built_from = summary.train
        line = f"{built_from.documents:,} documents of {built_from.tokens:,} tokens"
        say(line + (f", {summary.quarantined:,} left out" if summary.quarantined else ""))
        data = _data_settings(provenance, built)
        _check_length(data, built_from.tokens)
        stream = PretrainingStream(data.heldout_settings(seed))
        try:
            size = min(samples, *stream.samples_per_epoch.values())
            heldout = count_samples(
                stream,
                samples=size,
                baseline=target_unigram(stream, size),
                text_bytes=tokenizer.text_bytes,
            )
            with _sample_group(context) as group:
                nats = _nats(model, heldout, batch_size, group, say)
        finally:
            stream.close()
    run = (provenance.get("heldout") or {}).get("eval/heldout/loss")
    return DenoisingReport(
        documents=built_from.documents,
        tokens=built_from.tokens,
        objective=data.objective.kind,
        metrics=metrics([heldout], nats),
        sample_nats=nats[:, 0],
        sample_targets=heldout.counts.targets.astype(np.int64),
        heldout_loss_of_the_run=run,
    )


def check_export(folder: Path, context: int) -> None:
    """Make sure that a folder can be measured by so many processes, before they are started.

    Args:
        folder: Written by `pretrain.exporting.export.export`.
        context: Processes that share each input.

    Raises:
        ExportError: The folder is no export.
        ConfigError: Its inputs cannot be shared by so many.
    """
    provenance = _read_provenance(folder)
    if context > 1:
        from spade_model.huggingface import SpadePretrainedConfig

        model = SpadePretrainedConfig.from_pretrained(folder).to_spade_config()
        try:
            check_context(model, context, provenance["objective"]["input_length_tokens"])
        except ValueError as error:
            raise ConfigError(f"{folder}: {error}") from None


@contextmanager
def _sample_group(context: int) -> Iterator[SampleGroup]:
    """The processes that share each input: all that a launcher has started.

    Raises:
        ConfigError: It has started another number of them.
    """
    if context == 1:
        yield SampleGroup(0, 1, ContextGroup.alone())
        return
    ranks = find_ranks(os.environ)
    if ranks.world_size != context:
        raise ConfigError(
            f"context {context} wants as many processes, and {ranks.world_size} were started; "
            "start as many"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield make_sample_group(ranks, context)
    finally:
        dist.destroy_process_group()


def _read_provenance(folder: Path) -> dict[str, Any]:
    if not is_export(folder):
        raise ExportError(
            f"{folder}: no {PROVENANCE} of `spade export`, which says how the model was trained; "
            "give an exported folder"
        )
    provenance: dict[str, Any] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    return provenance


def _tokenizer(folder: Path, provenance: dict[str, Any]) -> DocumentTokenizer:
    """The tokenizer of pretraining; its fingerprint says whether it still is that one."""
    try:
        manifest = {
            **provenance["tokenizer"],
            "format_version": FORMAT_VERSION,
            "fingerprint": provenance["fingerprints"]["tokenizer"],
        }
        return DocumentTokenizer((folder / MODEL_FILE).read_bytes(), manifest)
    except (OSError, KeyError, TypeError, DataError) as error:
        raise ExportError(
            f"{folder}: its tokenizer is not that of pretraining ({error}); {_REMEDY}"
        ) from error


def _load(folder: Path) -> SpadeForSeq2Seq:
    """The plain network, which takes the documents of a window apart where it was trained to."""
    from spade_model.huggingface import SpadeForConditionalGeneration

    try:
        wrapped = SpadeForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or ["unreadable"])[0]
        raise ExportError(f"{folder}: cannot be loaded: {reason}; {_REMEDY}") from error
    plain = SpadeForSeq2Seq(wrapped.config.to_spade_config())
    plain.load_state_dict(wrapped.state_dict())
    return plain.eval()


def _data_settings(provenance: dict[str, Any], built: Path) -> DataSettings:
    objective = dict(provenance["objective"])
    input_length_tokens = objective.pop("input_length_tokens")
    del objective["target_length_tokens"]  # follows from the others
    try:
        return DataSettings.model_validate_json(
            json.dumps(
                {
                    "train": str(built / "train"),
                    "heldout": str(built / "train"),
                    "tokenizer": str(built / "tokenizer"),
                    "input_length_tokens": input_length_tokens,
                    "objective": objective,
                    # Exports of before did not say; so most are trained.
                    **provenance.get("windows", {}),
                }
            )
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ExportError(
            f"{PROVENANCE}: states an objective that this program does not know ({reason}); "
            f"{_REMEDY}"
        ) from error


def _check_length(data: DataSettings, tokens: int) -> None:
    """Make sure that there is a window."""
    objective = data.make_objective()
    if data.windows == "concat" and tokens < objective.window_tokens:
        raise ConfigError(
            f"the documents have {tokens} tokens in all and a window of the model "
            f"{objective.window_tokens}; give more documents"
        )
    data.check_objective()


def _nats(
    model: SpadeForSeq2Seq,
    heldout: HeldoutSamples,
    batch_size: int,
    group: SampleGroup,
    say: Callable[[str], None],
) -> npt.NDArray[np.float64]:
    """[samples, 2] all targets, and those that are text."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    stream = heldout.stream
    vocab = stream.vocabulary
    is_text = torch.from_numpy(vocab.is_text(np.arange(vocab.vocab_size))).to(device)
    parts = []
    with torch.no_grad():
        for first in range(0, heldout.size, batch_size):
            last = min(heldout.size, first + batch_size)
            batch = stream.batch(np.arange(first, last, dtype=np.int64))
            inputs = group.share(model_inputs(batch, device))
            parts.append(sample_nats(model, inputs, is_text).cpu().numpy())
            if len(parts) % 16 == 0:
                say(f"{last:,} of {heldout.size:,} samples")
    return np.concatenate(parts)
