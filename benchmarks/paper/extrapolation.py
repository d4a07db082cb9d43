"""Question (c): trained at one length, asked at longer ones.

Two parts. The task of question (a), trained at 1,024 tokens, is asked ``around`` (the same text
somewhere in a longer one of noise) and ``behind`` (the header first, questions over all the rest,
so at distances that training never had), see `benchmarks.common.far_header`. And causal language
models over the bytes of real documents, trained at 1,024 bytes, predict the same last bytes of
held-out documents with more and more of the document in front of them. Compared are SPADE, the
window alone, and full attention with two ways to know distances: within a window they are few.

A fair reader knows: one seed, small networks, a few CPU-minutes of training each. Losses are worse
than those of any compressor; only how a network's loss changes with its context is of interest, and
what can be gained beyond 1,024 bytes by so small networks is small. Full attention takes fewer
steps of language modelling, in about the same time, so levels compare compute, not data. At the
shortest context the first bytes that are scored have next to nothing in front of them, so the last
quarter is shown as well. Full attention is asked fewer texts, and none of the longest, where each
would cost half a minute.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from benchmarks.common.report import Table
from benchmarks.model.recall import RecallOptions as Asking
from benchmarks.model.recall import accuracy
from benchmarks.paper.cells import Cell, measure_cells
from benchmarks.paper.language import LanguageArm, measure_language
from benchmarks.paper.options import ExtrapolationOptions, Options
from benchmarks.paper.recall import FULL_ATTENTION
from benchmarks.paper.tagging import Arm, train_arm

_RESAMPLES = 2000
_WINDOW_ONLY: dict[str, Any] = {"state_space": "none"}
NETWORKS: dict[str, dict[str, Any]] = {
    "SPADE, relative_bias": {"position": "relative_bias"},
    "window only, relative_bias": _WINDOW_ONLY | {"position": "relative_bias"},
    "full, relative_bias": FULL_ATTENTION | {"position": "relative_bias"},
    "full, rope": FULL_ATTENTION | {"position": "rope"},
}
"""What is compared, as changes to a `SpadeConfig`."""


@dataclasses.dataclass(frozen=True)
class AskedArm:
    """A tagger, and the lengths it is asked at."""

    arm: Arm
    lengths_tokens: tuple[int, ...]
    texts: tuple[int, ...]
    """Of each length and kind."""


def measure_asked(asked: AskedArm) -> dict[str, Any]:
    """Train a tagger and ask it.

    Returns:
        What `train_arm` tells, and ``around`` and ``behind``: the share of right answers by length
        as text, and ``far``: [from, to, share] by distance from the header, of the longest.
    """
    model, told = train_arm(asked.arm)
    # The definition of full attention would write out every score of 16,384 tokens.
    model.encoder.set_attention_backend("tiled")
    found: dict[str, Any] = told | {"around": {}, "behind": {}, "far": []}
    for length, texts in zip(asked.lengths_tokens, asked.texts, strict=True):
        # `Asking` halves the texts of lengths that are more than eight times the trained one.
        halved = length > 8 * asked.arm.length_tokens
        asking = Asking(
            trained_length=asked.arm.length_tokens,
            texts=2 * texts if halved else texts,
            seed=asked.arm.seed,
        )
        found["around"][str(length)] = accuracy(model, asking, length, "around")[0]
        share, spans = accuracy(model, asking, length, "behind")
        # Few texts may have no question at some distance; their mean is no number.
        found["far"] = [[low, high, None if math.isnan(x) else x] for low, high, x in spans]
        found["behind"][str(length)] = share
    return found


def _is_full(changes: dict[str, Any]) -> bool:
    return changes.get("attention") == "full"


def asked_arms(sizes: ExtrapolationOptions, seed: int) -> dict[str, AskedArm]:
    """Return the taggers by name."""
    arms = {}
    for name, changes in NETWORKS.items():
        full = _is_full(changes)
        arm = Arm(
            length_tokens=sizes.trained_tokens,
            batch=sizes.batch,
            steps=sizes.full_steps if full else sizes.steps,
            every_steps=sizes.every_steps,
            texts=sizes.texts[0],
            seed=seed,
            model=sizes.tagger | changes,
        )
        texts = sizes.full_texts if full else sizes.texts
        arms[name] = AskedArm(arm, sizes.recall_tokens[: len(texts)], texts)
    return arms


def language_arms(options: Options) -> dict[str, LanguageArm]:
    """Return the language models by name."""
    sizes = options.extrapolation
    return {
        name: LanguageArm(
            data=options.data,
            trained_tokens=sizes.trained_tokens,
            lengths_tokens=sizes.language_tokens,
            scored_tokens=sizes.trained_tokens - 1,
            batch=sizes.language_batch,
            steps=sizes.language_full_steps if _is_full(changes) else sizes.language_steps,
            documents=sizes.documents,
            seed=options.seeds[0],
            model=sizes.language | changes,
        )
        for name, changes in NETWORKS.items()
    }


def extrapolation_tables(options: Options) -> list[Table]:
    """Train all networks at the short length, and ask them at all.

    Raises:
        ValueError: There are no real documents.
    """
    if options.data is None and not options.extrapolation.artificial:
        raise ValueError(
            "extrapolation needs real documents; give --data FOLDER that holds sotu/docs.jsonl.gz"
        )
    return [*_recall_tables(options), *_language_tables(options)]


def _recall_tables(options: Options) -> list[Table]:
    sizes = options.extrapolation
    arms = asked_arms(sizes, options.seeds[0])
    cells = [Cell(f"extrapolation/recall-{_file_name(name)}", arm) for name, arm in arms.items()]
    results = measure_cells(cells, measure_asked, options.out, options.workers)
    found = dict(zip(arms, results, strict=True))
    rows = [
        {
            "network": name,
            "length": length,
            "around": found[name]["around"][str(length)],
            "behind": found[name]["behind"][str(length)],
            "texts": texts,
            "steps": found[name]["steps"],
        }
        for name, arm in arms.items()
        for length, texts in zip(arm.lengths_tokens, arm.texts, strict=True)
    ]
    longest = max(sizes.recall_tokens)
    asked = {
        name: found[name]["far"] for name, arm in arms.items() if longest in arm.lengths_tokens
    }
    far = [
        {"distance from": low, "to": high}
        | {name: spans[index][2] for name, spans in asked.items()}
        for index, (low, high, _) in enumerate(next(iter(asked.values())))
    ]
    note = (
        f"trained at {sizes.trained_tokens:,} tokens, seed {options.seeds[0]}; chance 0.25; "
        "each text of each kind has 4 independent labels"
    )
    return [
        Table("extrapolation", "Share of right answers in longer texts", rows, (note,)),
        Table(
            "extrapolation_distance",
            f"Share of right answers by distance from the header, behind, {longest:,} tokens",
            far,
            ("distances beyond the trained length were never asked about in training",),
        ),
    ]


def _file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of a mean, resampling documents.

    Args:
        values: One for each document.
        seed: Of the resampling.
    """
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _language_tables(options: Options) -> list[Table]:
    arms = language_arms(options)
    cells = [Cell(f"extrapolation/text-{_file_name(name)}", arm) for name, arm in arms.items()]
    results = measure_cells(cells, measure_language, options.out, options.workers)
    rows = [
        _language_row(name, length, result, arm)
        for (name, arm), result in zip(arms.items(), results, strict=True)
        for length in arm.lengths_tokens
    ]
    sizes = options.extrapolation
    documents = len(next(iter(results[0]["whole"].values())))
    text = "ARTIFICIAL TEXT, which shows only that it runs" if options.data is None else "speeches"
    notes = (
        (
            f"{text}; {documents} held-out documents, one window each; the same last "
            f"{sizes.trained_tokens - 1:,} bytes (late: the last quarter of them) at every context"
        ),
        (
            f"steps of {sizes.language_batch} x "
            f"{sizes.trained_tokens:,} bytes, seed {options.seeds[0]}; late low, late high and "
            "change low, change high: 95 % intervals over documents; change: late against the "
            "shortest context, paired, negative is better"
        ),
    )
    return [Table("extrapolation_text", "Held-out nats a byte by context", rows, notes)]


def _language_row(
    name: str, length: int, result: dict[str, Any], arm: LanguageArm
) -> dict[str, Any]:
    late = np.array(result["late"][str(length)])
    change = late - np.array(result["late"][str(arm.lengths_tokens[0])])
    low, high = bootstrap_interval(late)
    change_low, change_high = bootstrap_interval(change)
    return {
        "network": name,
        "context": length,
        "nats/byte": float(np.mean(result["whole"][str(length)])),
        "late": float(late.mean()),
        "late low": low,
        "late high": high,
        "change": float(change.mean()),
        "change low": change_low,
        "change high": change_high,
        "steps": arm.steps,
        "CPU-seconds": result["cpu_seconds"],
    }
