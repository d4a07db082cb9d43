"""What several seeds have in common: mean and spread of each number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune.training import VALIDATION


def summarize(
    score: str, settings: dict[str, Any], seeds: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the results of a run.

    Args:
        score: Name of the metric that chose the checkpoints.
        settings: What the run was made with.
        seeds: What `train_seed` returned.

    Returns:
        ``score``; ``summary``: for each set of rows and each metric ``mean``,
        ``standard_deviation`` (of the sample; None for one seed) and ``values``, one a seed;
        ``settings`` and ``seeds`` as given.
    """
    sets = {VALIDATION: [seed[VALIDATION] for seed in seeds]}
    for name in seeds[0]["tests"]:
        sets[name] = [seed["tests"][name] for seed in seeds]
    return {
        "score": score,
        "summary": {
            name: {metric: _spread([numbers[metric] for numbers in found]) for metric in found[0]}
            for name, found in sets.items()
        },
        "settings": settings,
        "seeds": list(seeds),
    }


def table_rows(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of a table: data, metric, mean ± standard deviation, and the values."""
    rows = []
    for name, metrics in results["summary"].items():
        for metric, spread in metrics.items():
            text = f"{spread['mean']:.4f}"
            if spread["standard_deviation"] is not None:
                text += f" ± {spread['standard_deviation']:.4f}"
            values = " ".join(f"{value:.4f}" for value in spread["values"])
            rows.append((name, metric, text, values))
    return rows


TABLE_COLUMNS = ("data", "metric", "mean ± standard deviation", "by seed")


def _spread(values: list[float]) -> dict[str, Any]:
    mean = math.fsum(values) / len(values)
    deviation = None
    if len(values) > 1:
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return {"mean": mean, "standard_deviation": deviation, "values": values}
