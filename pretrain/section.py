"""What every part of a configuration has in common."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration: typed, unchangeable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def problem_lines(kind: type[BaseModel], origin: str, error: ValidationError) -> list[str]:
    """What pydantic found wrong, one line a problem: field, value, remedy.

    Args:
        kind: What was validated; its names are proposed instead of misspelt ones.
        origin: Where the values came from, e.g. a file.
        error: What was found.
    """
    return [_problem(kind, origin, detail) for detail in error.errors()]


def _known_names(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys allowed where an unknown one was found."""
    section: Any = kind
    for name in location[:-1]:
        field = section.model_fields.get(name) if hasattr(section, "model_fields") else None
        section = field.annotation if field is not None else None
        if section is None:
            return []
    if hasattr(section, "model_fields"):
        return list(section.model_fields)
    return list(getattr(section, "__dataclass_fields__", ()))


def _problem(kind: type[BaseModel], origin: str, detail: Any) -> str:
    """One line for one thing pydantic found."""
    location = [part for part in detail["loc"] if part != "__root__"]
    field = ".".join(str(part) for part in location) or "configuration"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_names(kind, location)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{origin}: {field} is not a setting; {hint}"
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{origin}: {field} is missing; add it"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{origin}: {message}"
    return f"{origin}: {field} is {json.dumps(detail['input'])}: {message}"
