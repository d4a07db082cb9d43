"""Whether a checkpoint belongs to the run that wants to go on from it."""

from __future__ import annotations

from typing import Any

from pretrain.config import RunConfig
from pretrain.data_settings import ALL_HELDOUT, SINGLE_SOURCE
from pretrain.initial_weights import INITIAL_WEIGHTS

# Sample i and the weights after step s follow from these; all else may change on the way.
_FIXED = (
    ("model",),
    ("data", "input_length_tokens"),
    ("data", "objective"),
    ("data", "windows"),
    ("data", "document_boundaries"),
    ("data", "bucket_samples"),
    ("data", "group_shards"),
    ("train", "seed"),
    ("train", "global_batch_size"),
    (INITIAL_WEIGHTS,),
)


def fingerprints(config: RunConfig) -> dict[str, str]:
    """What identifies the data of a run: the manifests and the tokenizer.

    Returns:
        `train` for the data set of that name, which a single one has, else `train.NAME` for each;
        likewise `heldout` or `heldout.NAME`; `tokenizer`.

    Raises:
        DataError: If a manifest is missing or damaged.
    """
    manifests = config.data.manifests()
    found = {
        "train" if name == SINGLE_SOURCE else f"train.{name}": manifest.fingerprint
        for name, manifest in manifests.items()
    }
    for name, place in config.data.heldout_locations().items():
        field = name if name == ALL_HELDOUT else f"{ALL_HELDOUT}.{name}"
        found[field] = config.data.load_manifest(place).fingerprint
    tokenizer = next(iter(manifests.values())).tokenizer_fingerprint
    return {**found, "tokenizer": tokenizer}


def differences(
    saved: RunConfig,
    saved_fingerprints: dict[str, str],
    config: RunConfig,
    now: dict[str, str],
    sample_index: int,
    tokens_seen: int,
) -> list[str]:
    """Why a checkpoint cannot be continued under a configuration; empty if it can.

    Only what decides the samples and the shape of the weights counts: learning rates, precision,
    micro-batch, number of processes, ZeRO stage and number of steps may change, and so may the
    mixture from the checkpoint's sample on.

    Args:
        saved: Configuration of the checkpoint.
        saved_fingerprints: Its `fingerprints`.
        config: The configuration to go on under.
        now: Its `fingerprints`.
        sample_index: Samples consumed at the checkpoint.
        tokens_seen: Tokens consumed by then.
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
    mixture, new_mixture = _mixture(saved, sample_index), _mixture(config, sample_index)
    if mixture != new_mixture:
        found.append(
            f"the mixture of the first {sample_index} samples was {mixture}, now {new_mixture} "
            "(change it from a later sample on, with data.stages)"
        )
    begun, now_begun = _begun_stages(saved, tokens_seen), _begun_stages(config, tokens_seen)
    if begun != now_begun:
        found.append(
            f"train.curriculum of the first {tokens_seen} tokens was {begun}, now {now_begun} "
            "(change only stages that have not begun)"
        )
    # The folder of the initial weights is never read again, and may be gone.
    apart = (ALL_HELDOUT, INITIAL_WEIGHTS)
    names = [name for name in saved_fingerprints if name.partition(".")[0] not in apart]
    found += [
        f"the {name} data differ from those the run began with"
        for name in names
        if saved_fingerprints[name] != now.get(name)
    ]
    return found


def _mixture(config: RunConfig, sample_index: int) -> list[tuple[int, dict[str, float | None]]]:
    """Stages that decide about the first samples; sources that rest do not count."""
    first = {name: source.weight for name, source in config.data.sources().items()}
    if len(first) == 1:
        first = dict.fromkeys(first, 1.0)
    stages: list[tuple[int, dict[str, float | None]]] = [(0, first)]
    stages += [(stage.from_sample, dict(stage.weights)) for stage in config.data.stages]
    return [
        (start, _shares(weights)) for start, weights in stages if start == 0 or start < sample_index
    ]


def _begun_stages(config: RunConfig, tokens_seen: int) -> list[dict[str, Any]]:
    stages = config.train.curriculum
    return [stage.model_dump() for stage in stages if stage.from_tokens < tokens_seen]


def _shares(weights: dict[str, float | None]) -> dict[str, float | None]:
    """Weights that sum to 1, without those that are 0; None where sizes decide."""
    total = sum(weight or 0.0 for weight in weights.values())
    return {
        name: None if weight is None else round(weight / total, 12)
        for name, weight in weights.items()
        if weight != 0
    }


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values
