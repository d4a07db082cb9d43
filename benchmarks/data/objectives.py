"""How fast objectives make batches of windows, and span corruption beside the usual collator."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.common.report import Table
from benchmarks.data.collator import UsualCollator
from benchmarks.data.options import Options
from data_pipeline.objectives import Objective, SpecialTokens, Windows, make_objective

_VOCAB_SIZE, _SENTINELS = 34_048, 2_048
_INPUT_LENGTHS = (512, 2_048, 4_096, 16_384)
_OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ul2", {"shortest_mean_span_tokens": 8.0}),
    ("prefix_lm", {}),
    ("causal_lm", {}),
    ("gap_sentences", {}),
)


def objectives_tables(options: Options) -> list[Table]:
    """Measure every length."""
    rows, others = [], []
    for length in _INPUT_LENGTHS:
        rows.append(_span_corruption(length, options))
        others.append(_other_objectives(length, options))
    how = (
        "CPU time on one core, medians over alternating rounds; tokens are those of the windows. "
        "Ours stays in the stored two bytes, the usual collator makes eight-byte ids."
    )
    cases = "segments: with the document of each input token; ragged: rows up to 8 % shorter"
    return [
        Table("span_corruption", "Span corruption, million tokens a second", rows, (how, cases)),
        Table("objectives", "Other objectives, million tokens a second", others, (how,)),
    ]


def _vocab() -> SpecialTokens:
    ends = np.zeros(_VOCAB_SIZE, dtype=np.bool_)
    ends[[1, *range(3, 400)]] = True
    return SpecialTokens(_VOCAB_SIZE, _SENTINELS, 1, 0, ends)


def _windows(objective: Objective, tokens: int, *, segments: bool, ragged: bool) -> Windows:
    random = np.random.default_rng(0)
    width = objective.window_tokens
    num_rows = max(1, tokens // width)
    # About as in text: few ids are frequent, and a sentence end comes every 20 tokens or so.
    ids = (3 + 31_000 * random.random((num_rows, width)) ** 2.5).astype("<u2")
    lengths = np.full(num_rows, width)
    if ragged:
        lengths -= random.integers(0, width // 12, num_rows)
        ids[np.arange(width) >= lengths[:, None]] = 0
    numbers = np.repeat(np.arange(1, 1 + -(-width // 700)), 700)[:width].astype(np.uint16)
    return Windows(ids, lengths, np.tile(numbers, (num_rows, 1)) if segments else None)


def _maker(objective: Objective, windows: Windows, vocab: SpecialTokens) -> Callable[[], object]:
    objective.check_vocabulary(vocab)
    keys = np.random.default_rng(1).integers(0, 2**64, len(windows.lengths), dtype=np.uint64)

    def make() -> object:
        nonlocal keys
        keys = keys + np.uint64(1)
        return objective.make(windows, keys, vocab)

    return make


def _span_corruption(input_length: int, options: Options) -> dict[str, Any]:
    vocab = _vocab()
    objective = make_objective("span_corruption", input_length_tokens=input_length)
    cases = {
        "ours": _windows(objective, options.objective_tokens, segments=False, ragged=False),
        "segments": _windows(objective, options.objective_tokens, segments=True, ragged=False),
        "ragged": _windows(objective, options.objective_tokens, segments=False, ragged=True),
    }
    functions = {name: _maker(objective, windows, vocab) for name, windows in cases.items()}
    collate = UsualCollator(vocab.vocab_size, vocab.eos_token_id, 0.15, 3.0, seed=0)
    examples = list(cases["ours"].tokens)
    functions["usual collator"] = lambda: collate(examples)
    taken = _median_seconds(functions, options.objective_rounds)
    full = int(cases["ours"].lengths.sum())
    speeds = {name: full / seconds / 1e6 for name, seconds in taken.items()}
    speeds["ragged"] = int(cases["ragged"].lengths.sum()) / taken["ragged"] / 1e6
    return {
        "input": input_length,
        "window": objective.window_tokens,
        "rows": len(examples),
        **speeds,
        "ratio": speeds["ours"] / speeds["usual collator"],
    }


def _other_objectives(input_length: int, options: Options) -> dict[str, Any]:
    vocab = _vocab()
    functions, tokens = {}, {}
    for kind, settings in _OTHERS:
        objective = make_objective(kind, input_length_tokens=input_length, **settings)
        windows = _windows(objective, options.objective_tokens, segments=False, ragged=False)
        functions[kind] = _maker(objective, windows, vocab)
        tokens[kind] = int(windows.lengths.sum())
    taken = _median_seconds(functions, options.objective_rounds)
    return {"input": input_length} | {
        kind: tokens[kind] / seconds / 1e6 for kind, seconds in taken.items()
    }


def _median_seconds(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of a call: medians over rounds that take the functions in turn."""
    calls = {name: _calls_in(function) for name, function in functions.items()}
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.process_time()
            for _ in range(calls[name]):
                function()
            taken[name].append((time.process_time() - started) / calls[name])
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _calls_in(function: Callable[[], object], seconds: float = 0.03) -> int:
    """How many calls take about this long."""
    function()
    started = time.perf_counter()
    function()
    return max(1, round(seconds / max(time.perf_counter() - started, 1e-6)))
