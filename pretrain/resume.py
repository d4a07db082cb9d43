"""Whether a checkpoint belongs to the run that wants to go on from it."""

from __future__ import annotations

from typing import Any

from data_pipeline.manifest import Manifest
from pretrain.config import RunConfig

# Sample i and the weights after step s follow from these; all else may change on the way.
_FIXED = (
    ("model",),
    ("data", "input_length_tokens"),
    ("data", "noise_density"),
    ("data", "mean_span_tokens"),
    ("train", "seed"),
    ("train", "global_batch_size"),
)


def fingerprints(config: RunConfig) -> dict[str, str]:
    """What identifies the data of a run: both manifests and the tokenizer.

    Raises:
        DataError: If a manifest is missing or damaged.
    """
    train = Manifest.load(config.data.train)
    return {
        "train": train.fingerprint,
        "heldout": Manifest.load(config.data.heldout).fingerprint,
        "tokenizer": train.tokenizer_fingerprint,
    }


def differences(
    saved: RunConfig, saved_fingerprints: dict[str, str], config: RunConfig, now: dict[str, str]
) -> list[str]:
    """Why a checkpoint cannot be continued under a configuration; empty if it can.

    Only what decides the samples and the shape of the weights counts: learning rates, precision,
    micro-batch, number of processes, ZeRO stage and number of steps may change.
    """
    old, new = saved.to_dict(), config.to_dict()
    found = []
    for path in _FIXED:
        before, after = _at(old, path), _at(new, path)
        if isinstance(before, dict) and isinstance(after, dict):
            found += [
                f"{'.'.join(path)}.{key} was {before.get(key)}, now {after.get(key)}"
                for key in sorted(set(before) | set(after))
                if before.get(key) != after.get(key)
            ]
        elif before != after:
            found.append(f"{'.'.join(path)} was {before}, now {after}")
    found += [
        f"the {name} data differ from those the run began with"
        for name in ("train", "tokenizer")
        if saved_fingerprints.get(name) != now[name]
    ]
    return found


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values
