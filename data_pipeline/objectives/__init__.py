"""Objectives by name: pure functions that make samples of token windows.

objective = make_objective("span_corruption", input_length_tokens=512)
objective.check_vocabulary(vocab)
batch = objective.make(windows, sample_keys, vocab)
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.objectives.batch import Batch, SpecialTokens, Windows
from data_pipeline.objectives.causal_lm import CausalLanguageModel
from data_pipeline.objectives.gap_sentences import GapSentences
from data_pipeline.objectives.objective import Objective
from data_pipeline.objectives.prefix_lm import PrefixLanguageModel
from data_pipeline.objectives.span_corruption import SpanCorruption
from data_pipeline.objectives.ul2 import MixtureOfDenoisers

__all__ = ["OBJECTIVES", "Batch", "Objective", "SpecialTokens", "Windows", "make_objective"]

# Another objective is a dataclass that fulfils `Objective`, added here.
OBJECTIVES: dict[str, type[Any]] = {
    "span_corruption": SpanCorruption,
    "ul2": MixtureOfDenoisers,
    "prefix_lm": PrefixLanguageModel,
    "causal_lm": CausalLanguageModel,
    "gap_sentences": GapSentences,
}

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
}


def make_objective(kind: str, **settings: Any) -> Objective:
    """Makes an objective out of its name and settings.

    Args:
        kind: One of `OBJECTIVES`.
        **settings: The fields of its class.

    Raises:
        DataError: If the name or a setting is unknown, missing, or out of range.
    """
    if kind not in OBJECTIVES:
        raise DataError(f"there is no objective {kind!r}{_nearest(kind, OBJECTIVES)}")
    fields = {field.name: field for field in dataclasses.fields(OBJECTIVES[kind])}
    for name, value in settings.items():
        if name not in fields:
            raise DataError(f"objective {kind} has no setting {name!r}{_nearest(name, fields)}")
        wanted = str(fields[name].type)
        if isinstance(value, bool) or not isinstance(value, _TYPES[wanted]):
            raise DataError(f"objective {kind}: {name} must be of type {wanted}, not {value!r}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in settings:
            raise DataError(f"objective {kind} needs the setting {name!r}")
    objective: Objective = OBJECTIVES[kind](**settings)
    return objective


def _nearest(name: str, names: Iterable[str]) -> str:
    """What may have been meant, and what there is."""
    close = difflib.get_close_matches(name, list(names), n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{meant} choose from {', '.join(names)}"
