"""Question (a): does a state space bring evidence from where no window reaches?

Far-header recall (`benchmarks.common.far_header`): an encoder of two layers and radius 15 answers
questions that stand 31 to 512 tokens behind all evidence. Compared are

- SPADE: window attention and, in the bottom layer, a trained S4 of both directions;
- the window alone, without a state space;
- full attention, without a state space;
- S4 frozen: its random weights are constants, the gradient reaches its input;
- S4 without gradient: its output is a constant, as in the published encoder-decoder;

and, by simulation, the best that is possible for who sees the windows, and for who sees all.

A fair reader knows: this is one small task, found after four others that SPADE did not learn in as
many steps, and the state size and the state space's learning rate were chosen on one of those. It
shows that spread evidence is integrated, not that one far token is copied. Networks have random
weights at first, so a frozen state space has not what a large pretraining would build around it.
Full attention needs fewer steps, and is given fewer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.common.far_header import tagger_config
from benchmarks.common.report import Table
from benchmarks.paper.ceilings import Ceiling, simulate_ceiling
from benchmarks.paper.cells import Cell, measure_cells
from benchmarks.paper.options import Options, RecallOptions
from benchmarks.paper.tagging import Arm, chance_error, measure_arm, steps_to

SOLVED = 0.98
FULL_ATTENTION: dict[str, Any] = {"attention": "full", "state_space": "none"}
_FROZEN = {"trainable_state_space": ()}
_WINDOW = "window only"


def arms(options: RecallOptions, seed: int) -> dict[str, Arm]:
    """Return the variants under a seed, by name."""
    base = Arm(
        length_tokens=options.length_tokens,
        batch=options.batch,
        steps=options.steps,
        every_steps=options.every_steps,
        texts=options.texts,
        seed=seed,
        model=options.model,
    )

    def changed(model: dict[str, Any], **fields: Any) -> Arm:
        return dataclasses.replace(base, model=options.model | model, **fields)

    return {
        "SPADE": base,
        _WINDOW: changed({"state_space": "none"}),
        "full attention": changed(FULL_ATTENTION, steps=options.full_steps),
        "S4 frozen": changed(_FROZEN),
        "S4 without gradient": changed(_FROZEN, gradient=False),
    }


def recall_tables(options: Options) -> list[Table]:
    """Train all variants under all seeds, and simulate the ceilings."""
    sizes = options.recall
    named = [(name, arm) for seed in options.seeds for name, arm in arms(sizes, seed).items()]
    named.sort(key=lambda pair: list(arms(sizes, 0)).index(pair[0]))
    cells = [Cell(f"recall/{name.replace(' ', '-')}-seed{arm.seed}", arm) for name, arm in named]
    found = measure_cells(cells, measure_arm, options.out, options.workers)
    rows = [_row(name, arm, result) for (name, arm), result in zip(named, found, strict=True)]
    curves = [
        {"variant": name, "seed": arm.seed} | {str(step): share for step, share in result["curve"]}
        for (name, arm), result in zip(named, found, strict=True)
    ]
    error = chance_error(sizes.texts)
    notes = (
        (
            f"{sizes.texts} fixed texts, {4 * sizes.texts} independent labels: standard error "
            f"{error:.3f} at chance (0.25), less near 1; at most {sizes.steps} steps of "
            f"{sizes.batch} x {sizes.length_tokens:,} tokens (full attention {sizes.full_steps}), "
            "ended after two evaluations of 0.99; time is that of training alone, on one thread"
        ),
    )
    return [
        Table("recall", "Share of right answers beyond all windows", rows, notes),
        Table("recall_curve", "Share of right answers by steps", curves),
        _ceiling_table(sizes),
    ]


def _row(name: str, arm: Arm, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "variant": name,
        "seed": arm.seed,
        "parameters": result["parameters"],
        "accuracy": result["curve"][-1][1],
        "steps": result["steps"],
        f"steps to {SOLVED}": steps_to(result["curve"], SOLVED),
        "CPU-seconds": result["cpu_seconds"],
        "ms/step (CPU)": 1000 * result["cpu_seconds"] / result["steps"],
    }


def ceilings(sizes: RecallOptions) -> list[Ceiling]:
    """Simulate what can be reached within the windows, within more, and with the whole text."""
    config = tagger_config(sizes.length_tokens, **sizes.model)
    reach = config.num_encoder_layers * config.local_radius_tokens
    length = sizes.length_tokens
    windows = sorted({reach, *(length // part for part in (8, 4, 2)), length})
    return [
        simulate_ceiling(window, texts=sizes.ceiling_texts, length_tokens=length, reach=reach)
        for window in windows
        if window >= reach
    ]


def _ceiling_table(sizes: RecallOptions) -> Table:
    found = ceilings(sizes)
    rows = [
        {
            "seen on either side, tokens": ceiling.window_tokens,
            "what that is": "the windows of all layers"
            if ceiling is found[0]
            else ("the whole text" if ceiling is found[-1] else "a part"),
            "best possible": ceiling.expected,
            "standard error": ceiling.error,
            "share right": ceiling.right,
        }
        for ceiling in found
    ]
    note = f"{sizes.ceiling_texts:,} texts; mean probability of the best answer, and how it did"
    return Table("recall_ceilings", "The best that is possible", rows, (note,))
