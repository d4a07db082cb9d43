"""The configuration of a run that goes on from a Hugging Face folder: continued pretraining."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.initial_weights import INITIAL_WEIGHTS, read_model_config
from pretrain.run_folder import write_atomically
from pretrain.yaml_text import to_yaml
from spade_model.config import SpadeConfig
from spade_model.cost import count_parameters

LOST = (
    "the optimizer's state: its moments begin at 0",
    "the schedule: the learning rate rises and falls anew over train.max_steps",
    "the place in the data: samples count from 0, and what was seen may be seen again",
)
"""What weights alone do not hold, in words."""

_SHORTEST_INPUT_TOKENS = 16
# Where the folder does not tell how it was pretrained; the rate is a third of that of a new model.
_SETTINGS: dict[str, Any] = {
    "train": {"max_steps": 1000, "global_batch_size": 16, "micro_batch_size": 1},
    "optimizer": {"learning_rate": 3e-4},
    "schedule": {"kind": "cosine", "warmup_steps": 100},
}


@dataclass(frozen=True)
class Continuation:
    """What was written."""

    path: Path
    """The configuration."""
    parameters: int
    """Learned numbers that the run starts from."""
    settings_from: str
    """Where train, optimizer, schedule and objective come from."""
    lost: tuple[str, ...]
    """What the folder does not hold, in words."""


def write_continuation(
    folder: Path, out: Path, *, name: str, data: Path, heldout: Path, tokenizer: Path
) -> Continuation:
    """Write a configuration that `spade pretrain` starts from a folder's weights.

    Args:
        folder: A Hugging Face folder of ours: exported, imported or fine-tuned.
        out: The file to write; absent.
        name: Of the run.
        data: The data set to train on.
        heldout: The one that is never trained on.
        tokenizer: Folder of the tokenizer of both.

    Raises:
        ConfigError: The folder, the data and the tokenizer do not belong together, or `out` is
            there already or cannot be written.
        DataError: The data or the tokenizer cannot be read.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out}: is there already; choose another --out or remove it")
    model = read_model_config(folder)
    told = _told_settings(folder)
    sections = {section: told.get(section, usual) for section, usual in _SETTINGS.items()}
    objective = told.get("objective", {"input_length_tokens": model.trained_length_tokens})
    values: dict[str, Any] = {
        "name": name,
        INITIAL_WEIGHTS: str(folder),
        "model": _fields_to_write(model),
        "data": {
            "train": str(data),
            "heldout": str(heldout),
            "tokenizer": str(tokenizer),
            **_data_settings(objective),
            **told.get("windows", {}),
        },
        **sections,
    }
    if not told:
        _shorten_input(values, model)
    config = RunConfig.from_dict(values, str(folder))
    config.check_data()
    config.check_initial_weights()
    lost = LOST
    source = "provenance.json of the folder" if told else "our defaults, the folder tells none"
    header = [f"Continued pretraining from {folder}.", f"Settings: {source}.", "Not in the folder:"]
    lines = [f"# {line}" for line in (*header, *lost)]
    try:
        write_atomically(out, "\n".join([*lines, to_yaml(values)]))
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot be written: {error.strerror}; choose another --out"
        ) from None
    try:
        if RunConfig.load(out) != config:
            raise ConfigError(f"{out}: not written: it would be read as another run")
    except BaseException:
        out.unlink()
        raise
    parameters = count_parameters(model).total
    return Continuation(out, parameters, source, lost)


def _told_settings(folder: Path) -> dict[str, Any]:
    """What an export tells of its pretraining; nothing where there is none."""
    try:
        content = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != "spade-export":
        return {}
    told = {
        "train": content.get("training"),
        **{name: content.get(name) for name in ("optimizer", "schedule", "objective", "windows")},
    }
    return {name: section for name, section in told.items() if isinstance(section, dict)}


def _fields_to_write(model: SpadeConfig) -> dict[str, Any]:
    """The fields that differ from the defaults, and those that the data would fill in otherwise."""
    usual = SpadeConfig(vocab_size=model.vocab_size).to_dict()
    filled = ("vocab_size", "trained_length_tokens", "max_target_length_tokens")
    return {
        field: value
        for field, value in model.to_dict().items()
        if field in filled or value != usual[field]
    }


def _data_settings(objective: dict[str, Any]) -> dict[str, Any]:
    """The part of an export's objective that a configuration has, in the configuration's places."""
    chosen = {
        name: value
        for name, value in objective.items()
        if name not in ("input_length_tokens", "target_length_tokens")
    }
    settings = {"input_length_tokens": objective.get("input_length_tokens")}
    return settings | ({"objective": chosen} if chosen else {})


def _shorten_input(values: dict[str, Any], model: SpadeConfig) -> None:
    """Halve the input until the targets made of it fit the decoder's positions."""
    while True:
        length = values["data"]["input_length_tokens"]
        trial = {**values, "model": {**values["model"], "max_target_length_tokens": length}}
        target = RunConfig.from_dict(trial).data.make_objective().target_length_tokens
        if target <= model.max_target_length_tokens or length // 2 < _SHORTEST_INPUT_TOKENS:
            return
        values["data"]["input_length_tokens"] = length // 2
