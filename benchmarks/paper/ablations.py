"""Question (b): one choice at a time, each against the same base.

Far-header recall (`benchmarks.common.far_header`), smaller than in question (a) but one layer
deeper, so that a state space can sit below, between and above window attention. The base is S4 in
the bottom layer, concatenated, trained five times as fast as the rest, with relative biases. Varied
are where the state space sits, how many there are, how it is joined, whether and how fast it
learns, which one it is, and what attention knows of distances.

That a learning rate applies is not taken from the settings: shown are the highest rate that the
optimizer's group of the state space really had, and how far its tensors moved in training, as a
part of their length.

A fair reader knows: one small task, few seeds, one budget of steps for all. What is slower here may
arrive at the same place later; base values were chosen on this family of tasks, see
`benchmarks.paper.recall`. Steps have unequal cost, so it is shown.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from benchmarks.common.report import Table
from benchmarks.paper.cells import Cell, measure_cells
from benchmarks.paper.options import AblationOptions, Options
from benchmarks.paper.tagging import Arm, chance_error, measure_arm, steps_to

SOLVED = 0.95
BASE = "base"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One choice."""

    question: str
    name: str
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Changes to the base's model."""
    state_space_factor: float = 5.0

    @property
    def file_name(self) -> str:
        """Of its cells, without a seed."""
        return f"{self.question}-{self.name}".replace(" ", "-")


def variants(layers: int) -> list[Variant]:
    """Return all choices, the base first.

    Args:
        layers: Of the encoder, at least 3.
    """
    middle, top = layers // 2, layers - 1
    return [
        Variant("all", BASE),
        Variant("where", "middle", {"state_space_layers": (middle,)}),
        Variant("where", "top", {"state_space_layers": (top,)}),
        Variant("how many", "2", {"state_space_layers": 2}),
        Variant("how many", "all", {"state_space_layers": layers}),
        Variant("joined", "add", {"combine": "add"}),
        Variant("joined", "stack", {"combine": "stack"}),
        Variant("learns", "not at all", {"trainable_state_space": ()}),
        Variant("learns", "x0.2", state_space_factor=0.2),
        Variant("learns", "x1", state_space_factor=1.0),
        *(Variant("kind", kind, {"state_space": kind}) for kind in _KINDS),
        *(Variant("position", position, {"position": position}) for position in _POSITIONS),
    ]


_KINDS = ("s4d_lin", "s4d_inv", "s4d_legs", "ema")
_POSITIONS = ("rope", "alibi", "none")
_OF_THE_BASE = {
    "where": "bottom",
    "how many": "1",
    "joined": "concat",
    "learns": "x5",
    "kind": "s4",
    "position": "relative_bias",
}


def make_arm(variant: Variant, sizes: AblationOptions, seed: int) -> Arm:
    """Return a variant under a seed."""
    return Arm(
        length_tokens=sizes.length_tokens,
        batch=sizes.batch,
        steps=sizes.steps,
        every_steps=sizes.every_steps,
        texts=sizes.texts,
        seed=seed,
        model=sizes.model | variant.model,
        state_space_factor=variant.state_space_factor,
    )


def ablations_tables(options: Options) -> list[Table]:
    """Train all variants under the first seeds."""
    sizes = options.ablations
    seeds = options.seeds[: sizes.most_seeds]
    chosen = [
        (variant, make_arm(variant, sizes, seed))
        for variant in variants(sizes.model["num_encoder_layers"])
        for seed in seeds
    ]
    cells = [Cell(f"ablations/{variant.file_name}-seed{arm.seed}", arm) for variant, arm in chosen]
    found = measure_cells(cells, measure_arm, options.out, options.workers)
    rows = [
        _row(variant, arm, result) for (variant, arm), result in zip(chosen, found, strict=True)
    ]
    by_variant = {
        variant.file_name: [row for row in rows if _is_of(row, variant)] for variant, _ in chosen
    }
    notes = (
        "base: " + ", ".join(f"{question} {value}" for question, value in _OF_THE_BASE.items()),
        (
            f"at most {sizes.steps} steps of {sizes.batch} x {sizes.length_tokens} tokens, ended "
            f"after two evaluations of 0.99; {sizes.texts} fixed texts, standard error "
            f"{chance_error(sizes.texts):.3f} at chance (0.25); "
            f"seeds: {len(seeds)}"
        ),
    )
    return [
        Table("ablations", "One choice at a time", list(map(_mean, by_variant.values())), notes),
        Table("ablations_seeds", "The same by seed", rows),
        Table(
            "ablations_rates",
            "Learning rates that were applied, and how far the state space moved",
            [
                _rates(variant, arm, result)
                for (variant, arm), result in zip(chosen, found, strict=True)
                if variant.question in ("all", "learns", "kind")
            ],
            ("moved: the change of the tensor in training, as a part of its length before",),
        ),
    ]


def _is_of(row: dict[str, Any], variant: Variant) -> bool:
    return (row["varied"], row["value"]) == (variant.question, variant.name)


def _row(variant: Variant, arm: Arm, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "varied": variant.question,
        "value": variant.name,
        "seed": arm.seed,
        "parameters": result["parameters"],
        "accuracy": result["curve"][-1][1],
        "steps": result["steps"],
        f"steps to {SOLVED}": steps_to(result["curve"], SOLVED),
        "ms/step (CPU)": 1000 * result["cpu_seconds"] / result["steps"],
    }


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Average over seeds; steps to a share only where all seeds reached it."""
    accuracies = [row["accuracy"] for row in rows]
    reached = [row[f"steps to {SOLVED}"] for row in rows]
    return {
        "varied": rows[0]["varied"],
        "value": rows[0]["value"],
        "parameters": rows[0]["parameters"],
        "accuracy": statistics.mean(accuracies),
        "lowest": min(accuracies),
        "highest": max(accuracies),
        f"steps to {SOLVED}": None if None in reached else statistics.mean(reached),
        "ms/step (CPU)": statistics.mean(row["ms/step (CPU)"] for row in rows),
    }


def _rates(variant: Variant, arm: Arm, result: dict[str, Any]) -> dict[str, Any]:
    rates, moved = result["rates"], result["moved"]
    return {
        "varied": variant.question,
        "value": variant.name,
        "seed": arm.seed,
        "model's highest rate": rates[0],
        "state space's highest rate": rates[1] if len(rates) > 1 else 0.0,
        "log_dt moved": moved.get("log_dt"),
        "C moved": moved.get("C"),
        "most moved": max(moved, key=lambda name: moved[name]),
        "by": max(moved.values()),
    }
