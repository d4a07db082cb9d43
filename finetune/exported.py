"""The folder that a recipe starts from: what `spade export` wrote, or any of its like."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

import spade_model.huggingface  # noqa: F401 - registers the Auto classes
from finetune.errors import FinetuneError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
)


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the configuration of an exported folder.

    Raises:
        FinetuneError: It is none, or of another kind of model.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise FinetuneError(
            f"{folder}: no exported model (no config.json); make one with spade export"
        ) from error
    except ValueError as error:
        raise FinetuneError(f"{folder}/config.json: not JSON ({error}); export again") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "spade":
        raise FinetuneError(
            f"{folder}/config.json: model_type is {kind!r}, not 'spade'; give a folder that spade "
            "export wrote"
        )
    if not _weights(folder):
        raise FinetuneError(
            f"{folder}: no *.safetensors with weights; export again (other formats are not read)"
        )
    return dict(config)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer beside the weights.

    Raises:
        FinetuneError: There is none.
    """
    if not (folder / "tokenizer.json").is_file():
        raise FinetuneError(f"{folder}: no tokenizer.json; export again with the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise FinetuneError(f"{folder}: the tokenizer lacks padding or end of text; export again")
    # In texts `</s>` is four characters, and so it was when the model was pretrained.
    tokenizer.split_special_tokens = True
    return tokenizer


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files as they are; one that was used may save how it was used."""
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def fingerprint(folder: Path) -> str:
    """Return a digest of the configuration and the weights."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *_weights(folder)):
        digest.update(file_digest(path).encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
