"""Data sets and configurations of the runs that are measured."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.engine.options import SMALL_MODEL, Options

_DOCUMENTS = 300
_WORDS = 500
_VOCAB_SIZE = 1024
_SENTINELS = 100
SOURCES = ("plain", "other")


def make_data(folder: Path) -> Path:
    """Make two data sets of invented prose and their tokenizer, unless they are there."""
    from data_pipeline.building.build import build_dataset
    from data_pipeline.corpora.corpus import iterate_documents
    from data_pipeline.tokenization.tokenizer import train_tokenizer

    data = folder / "data"
    if (data / "done").exists():
        return data
    data.mkdir(parents=True, exist_ok=True)
    corpora = [_write_corpus(data / f"{name}.jsonl", name) for name in SOURCES]
    tokenizer = train_tokenizer(
        iterate_documents(corpora),
        vocab_size=_VOCAB_SIZE,
        sentinels=_SENTINELS,
        out=data / "tokenizer",
        seed=0,
    )
    for name, corpus in zip(SOURCES, corpora, strict=True):
        build_dataset([corpus], tokenizer, data / name, heldout_fraction=0.1)
    (data / "done").touch()
    return data


def _write_corpus(path: Path, seed: str) -> Path:
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioulnrstdm", k=draw.randint(2, 9))) for _ in range(3000)]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(_DOCUMENTS):
            text = " ".join(draw.choices(words, k=_WORDS))
            stream.write(json.dumps({"id": f"{seed}-{number}", "text": text}) + "\n")
    return path


def timed_run(options: Options, name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run whose time is measured: nothing in it but steps.

    Args:
        options: Sizes.
        name: Of the run.
        sections: What is changed, by section.
    """
    data = make_data(options.folder)
    settings: dict[str, Any] = {
        "name": name,
        "run_dir": str(options.folder / "runs"),
        "model": options.model,
        "data": {
            "train": str(data / "plain" / "train"),
            "heldout": str(data / "plain" / "heldout"),
            "tokenizer": str(data / "tokenizer"),
            "input_length_tokens": options.input_length_tokens,
        },
        "train": {
            "max_steps": 10**7,
            "global_batch_size": options.global_batch_size,
            "micro_batch_size": options.micro_batch_size,
            "precision": "fp32",
        },
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"kind": "constant", "warmup_steps": 1},
        "evaluation": {"every_steps": 10**9, "samples": 2},
        "checkpoint": {"every_steps": 10**9},
        "telemetry": {"sample_fills": 0},
    }
    return _changed(settings, sections)


def killed_run(options: Options, name: str, stage: int, precision: str) -> dict[str, Any]:
    """Settings of a run that is killed: small, with all that must come back exactly."""
    data = make_data(options.folder)
    settings = timed_run(options, name)
    changes = {
        "model": SMALL_MODEL | {"dropout": 0.1},
        "data": {
            "train": {source: {"path": str(data / source / "train")} for source in SOURCES},
            "heldout": {source: str(data / source / "heldout") for source in SOURCES},
            "input_length_tokens": 64,
        },
        "train": {
            "max_steps": options.killed_run_steps,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "precision": precision,
            "activation_checkpointing": "full",
        },
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "evaluation": {"every_steps": 5, "samples": 8},
        "checkpoint": {"every_steps": 2, "keep_last": 2},
        "deepspeed": {"zero_stage": stage},
    }
    settings.pop("model")
    return _changed(settings, changes)


def write_config(options: Options, settings: dict[str, Any]) -> Path:
    """Write settings as a configuration file of their own."""
    from pretrain.yaml_text import to_yaml

    path = options.folder / f"{settings['name']}.yaml"
    path.write_text(to_yaml(settings), encoding="utf-8")
    return path


def _changed(settings: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    sections = {name: settings.get(name, {}) | values for name, values in changes.items()}
    return settings | sections
