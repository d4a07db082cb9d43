"""What lies in a run folder, read without trust: what cannot be read is told, never raised.

The run may still be going on, have been copied while it was, or be damaged: a report of what is
left is better than none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import RunError
from pretrain.report.curves import Curves, is_step
from pretrain.run_folder import RunFolder
from pretrain.yaml_text import parse_yaml

_DECISIONS = "decisions.jsonl"
_FILLS = "fills.jsonl"
_MOST_VALUES = 5000
"""In one object. A configuration has hundreds; YAML's aliases make a billion of a few lines."""
_DEEPEST = 50
"""Objects within objects."""
_LARGEST_FILE_BYTES = 4 * 2**20
"""Of a configuration or an environment."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        folder: Where it lies.
        curves: Its metrics.
        config: Its settings; empty if they are not there.
        config_text: The same, as they stand in the file.
        environment: Versions and machine of the newest start.
        fills: The newest sample fills: ``step`` and ``samples``.
        roll_backs: Steps of the checkpoints that it went back to because of a spike.
        skipped_steps: Steps that it left out because of a spike or a number that is none.
        problems: What could not be read, a line each.
    """

    folder: RunFolder
    curves: Curves
    config: Mapping[str, Any]
    config_text: str
    environment: Mapping[str, Any]
    fills: Mapping[str, Any]
    roll_backs: list[int]
    skipped_steps: int
    problems: list[str]

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.path.resolve().name

    @property
    def last_step(self) -> int:
        """The newest training step that was logged, 0 before the first."""
        return int(self.curves.train[-1]["step"]) if self.curves.train else 0

    @property
    def max_steps(self) -> int | None:
        """Steps of the whole run, where the configuration says."""
        train = self.config.get("train")
        value = train.get("max_steps") if isinstance(train, dict) else None
        return value if type(value) is int else None

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.folder.stop_marker.exists():
            return f"stopped on request after step {self.last_step:,}; the same command goes on"
        if self.max_steps is None:
            return f"step {self.last_step:,} when this report was written"
        if self.last_step >= self.max_steps:
            return f"finished after {self.last_step:,} steps"
        return f"step {self.last_step:,} of {self.max_steps:,} when this report was written"


def read_run(path: Path) -> RunRecord:
    """Read all that a run folder holds about the run.

    Raises:
        RunError: If there is no such folder, or no run has written into it.
    """
    folder = RunFolder(path)
    if not folder.metrics_path.exists() and not folder.config_path.exists():
        raise RunError(f"{path}: no run has written here; name a folder below run_dir")
    problems: list[str] = []
    config_text = _text(folder.config_path, problems)
    decisions = list(_lines(path / _DECISIONS, problems))
    fills = list(_lines(path / _FILLS, problems))
    return RunRecord(
        folder=folder,
        curves=Curves.from_metrics(_lines(folder.metrics_path, problems)),
        config=_settings(config_text, folder.config_path, problems),
        config_text=config_text,
        environment=_object(folder.environment_path, problems),
        fills=fills[-1] if fills else {},
        roll_backs=[
            line["to_step"]
            for line in decisions
            if line.get("action") == "roll_back" and is_step(line.get("to_step"))
        ],
        skipped_steps=sum(line.get("action") == "skip" for line in decisions),
        problems=problems,
    )


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Names of settings as in overrides (``train.max_steps``) and their values as text."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            flat[prefix] = value if isinstance(value, str) else json.dumps(value, default=str)

    add("", settings)
    return flat


def _text(path: Path, problems: list[str]) -> str:
    """A small text file; empty where there is none."""
    if not path.exists():
        return ""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE_BYTES:
            problems.append(f"{path.name}: not a small file, left out")
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name}: cannot be read ({_reason(error)})")
        return ""


def _settings(text: str, path: Path, problems: list[str]) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = parse_yaml(text, path.name)
        if isinstance(value, dict) and _is_small(value):
            return value
        problems.append(f"{path.name}: holds no settings")
    # PyYAML's constructors stumble in all these ways over scalars that claim to be what they are
    # not, such as `!!timestamp x`.
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problems.append(f"{path.name}: cannot be read ({_reason(error)})")
    return {}


def _is_small(value: Any) -> bool:
    """Whether a value that may refer to its parts many times stays small when written out."""
    left, waiting = _MOST_VALUES, [(value, 0)]
    while waiting and left > 0:
        item, depth = waiting.pop()
        left -= 1
        if depth > _DEEPEST:
            return False
        if isinstance(item, dict):
            waiting.extend((inner, depth + 1) for inner in item.values())
        elif isinstance(item, (list, tuple, set)):
            waiting.extend((inner, depth + 1) for inner in item)
    return not waiting


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _text(path, problems)
    if not text:
        return {}
    value = _json(text)
    if isinstance(value, dict) and _is_small(value):
        return value
    problems.append(f"{path.name}: not a JSON object")
    return {}


def _lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """JSON objects, one a line; a last line without its end is being written and left out."""
    if not path.exists():
        return
    if not path.is_file():
        problems.append(f"{path.name}: not a file")
        return
    damaged: list[int] = []
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                value = _json(line) if line.endswith(b"\n") else {}
                if not isinstance(value, dict) or not _is_small(value):
                    damaged.append(number)
                elif value:
                    yield value
    except OSError as error:
        problems.append(f"{path.name}: cannot be read to its end ({_reason(error)})")
    if damaged:
        problems.append(f"{path.name}: {len(damaged)} lines damaged, the first is {damaged[0]}")


def _json(text: str | bytes) -> Any:
    """A JSON value, None where there is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
