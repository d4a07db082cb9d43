"""How often each token is a target of training: counted once in a run, by one rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash

from data_pipeline.objectives.batch import SpecialTokens
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import UnigramBaseline, target_unigram
from pretrain.errors import RunError
from pretrain.ranks import Ranks
from pretrain.run_folder import write_atomically

UNIGRAM_SAMPLES = 2000
"""Training samples whose targets are counted."""


def unigram_baselines(
    training: Mapping[str, StreamSettings],
    vocab: SpecialTokens,
    *,
    file: Path,
    ranks: Ranks,
    device: torch.device,
) -> dict[str, UnigramBaseline]:
    """Frequencies of target tokens under several objectives; every rank must call this.

    They are kept in a file, because a run that goes on would otherwise read the samples that it
    began with again, which may lie in remote shards that it has long dropped.

    Args:
        training: The training stream under each objective, by the objective's name.
        vocab: The ids.
        file: Where the counts are kept, JSON; rank 0 alone reads and writes it.
        ranks: This process's place.
        device: Through which the ranks talk.

    Returns:
        The baselines by the same names.

    Raises:
        DataError: If the data are damaged.
        RunError: If the file cannot be written.
    """
    shared = torch.zeros(len(training), vocab.vocab_size, dtype=torch.int64, device=device)
    if ranks.rank == 0:
        counts = _counts(list(training.values()), vocab.vocab_size, file)
        shared.copy_(torch.tensor(counts, dtype=torch.int64))
    dist.broadcast(shared, src=0)
    rows = shared.cpu().numpy()
    return {name: UnigramBaseline(row, vocab) for name, row in zip(training, rows, strict=True)}


def _counts(training: list[StreamSettings], vocab_size: int, file: Path) -> list[list[int]]:
    """From the file where they are in it, else counted, and then in the file."""
    kept = _read(file)
    current: dict[str, list[int]] = {}
    rows = []
    for settings in training:
        stream = PretrainingStream(settings)
        key = _identity(stream)
        row = _sound(kept.get(key), vocab_size)
        if row is None:
            row = target_unigram(stream, UNIGRAM_SAMPLES).counts.tolist()
        stream.close()
        current[key] = row
        rows.append(row)
    if current != kept:
        try:
            write_atomically(file, json.dumps(current) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write {file}: {error.strerror}; make room or the folder writable"
            ) from error
    return rows


def _identity(stream: PretrainingStream) -> str:
    """A key that is another one whenever the run would begin with other samples.

    What was found damaged on the way does not count: the baseline stays what it was.
    """
    settings = stream.settings
    facts = {
        "sources": {name: manifest.fingerprint for name, manifest in stream.manifests.items()},
        "objective": [type(settings.objective).__name__, repr(settings.objective)],
        "stages": [[stage.from_sample, dict(stage.weights)] for stage in settings.stages],
        "order": [settings.seed, settings.temperature, settings.windows],
        "blocks": [settings.group_shards, settings.bucket_samples],
        "samples": UNIGRAM_SAMPLES,
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(facts, sort_keys=True).encode())


def _read(file: Path) -> dict[str, Any]:
    """What is in the file; nothing where it is missing or damaged, since it can be made again."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _sound(counts: Any, vocab_size: int) -> list[int] | None:
    """Counts that are some; anything else in the file is made again."""
    is_sound = (
        isinstance(counts, list)
        and len(counts) == vocab_size
        and all(type(count) is int and 0 <= count < 2**40 for count in counts)
        and any(counts)
    )
    return counts if is_sound else None
