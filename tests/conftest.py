"""Small real inputs that several rooms' tests use: documents, a tokenizer, shards."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A busy machine is no reason to fail: how long an example takes is not what the tests are about.
hypothesis.settings.register_profile(
    "project", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("project")

# A job in the background ignores Ctrl-C, and so would every process that the tests start from one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Everything the tests start runs without a network and on few threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def write_documents(path: Path, *, documents: int, seed: int = 0) -> Path:
    """Write a jsonl of made-up prose whose words follow one another in a learnable way."""
    words = random.Random(seed)
    vocabulary = ["".join(words.choices("aeioulnrstdm", k=words.randint(2, 8))) for _ in range(400)]
    follow = {word: words.sample(vocabulary, 4) for word in vocabulary}
    with path.open("w", encoding="utf-8") as stream:
        for number in range(documents):
            word, lines = words.choice(vocabulary), []
            for _ in range(words.randint(20, 60)):
                line = []
                for _ in range(12):
                    word = words.choice(follow[word])
                    line.append(word)
                lines.append(" ".join(line) + ".")
            record = {"id": f"document-{number:05d}", "text": "\n".join(lines)}
            stream.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="session")
def prose_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 short documents in one jsonl file."""
    return write_documents(tmp_path_factory.mktemp("corpus") / "prose.jsonl", documents=120)


@pytest.fixture(scope="session")
def prose_data(prose_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same documents tokenized into ``train/``, ``heldout/`` and ``tokenizer/``."""
    from data_pipeline.building.build import build_dataset
    from data_pipeline.corpora.corpus import iterate_documents
    from data_pipeline.tokenization.tokenizer import train_tokenizer

    out = tmp_path_factory.mktemp("data")
    tokenizer = train_tokenizer(
        iterate_documents([prose_corpus]), vocab_size=512, sentinels=64, out=out / "tok", seed=0
    )
    build_dataset(
        [prose_corpus],
        tokenizer,
        out / "built",
        heldout_fraction=0.1,
        shard_text_bytes=60_000,
        keep_names=True,
    )
    return out / "built"


@pytest.fixture
def run_settings(prose_data: Path, tmp_path: Path) -> dict[str, Any]:
    """A run that takes seconds, as plain data: tests change what they are about."""
    return {
        "name": "tiny",
        "run_dir": str(tmp_path / "runs"),
        "model": {
            "d_model": 32,
            "num_heads": 2,
            "head_dim": 16,
            "d_ff": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 1,
            "state_dim": 8,
            "local_radius_tokens": 15,
        },
        "data": {
            "train": str(prose_data / "train"),
            "heldout": str(prose_data / "heldout"),
            "tokenizer": str(prose_data / "tokenizer"),
            "input_length_tokens": 64,
        },
        "train": {"max_steps": 6, "global_batch_size": 8, "micro_batch_size": 2},
        "optimizer": {"learning_rate": 3e-3, "state_space_learning_rate": 1e-3},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "evaluation": {"every_steps": 3, "samples": 8},
        "checkpoint": {"every_steps": 3, "keep_last": 2},
    }


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write settings as a YAML file and return its path."""

    def write(settings: dict[str, Any]) -> Path:
        import yaml

        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return path

    return write
