"""Reads what somebody else saved: weights and configuration of a published checkpoint.

Files come from strangers, so nothing in them is executed: weights are safetensors or refused, and
names, shapes and types are compared with what the configuration says before anything is used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spade_model.config import SpadeConfig
from spade_model.published_shapes import TIED, UNUSED, shape_problems, some

_PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02")
_FLOATING = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")


class PublishedFileError(ValueError):
    """A file that is not what a published checkpoint consists of; one line, with the remedy."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_published_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a published model as plain data.

    Raises:
        PublishedFileError: It cannot be read, or says something that the published code does not
            honour either.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PublishedFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # undecodable bytes are a ValueError too
        raise PublishedFileError(
            f"{path}: is no JSON: {_line(error)}; give the config.json beside the weights"
        ) from error
    if not isinstance(content, dict):
        raise PublishedFileError(f"{path}: holds no JSON object; give the model's config.json")
    if content.get("model_type", "msrlongt5") != "msrlongt5":
        raise PublishedFileError(
            f"{path}: model_type is {content['model_type']!r} and not 'msrlongt5'; give the "
            "configuration of a published SPADE model"
        )
    if content.get("tie_word_embeddings") is False:
        raise PublishedFileError(
            f"{path}: tie_word_embeddings is false, but SPADE's output head is the embedding; only "
            "tied checkpoints can be imported"
        )
    if content.get("s4_channels", 1) != 1:
        raise PublishedFileError(
            f"{path}: s4_channels is {content['s4_channels']!r}; the published layers run with 1"
        )
    return content


def read_published_weights(path: Path, config: SpadeConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a published checkpoint, floats as float32.

    Args:
        path: A safetensors file.
        config: From `published.published_config`.

    Returns:
        Each tensor of `published_shapes`, and the names of those that were left out because they
        repeat the embedding or are used by nobody.

    Raises:
        PublishedFileError: The file is no safetensors file, is damaged, or does not hold exactly
            the tensors that the configuration needs, with finite numbers.
    """
    _refuse_pickles(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(x.get_shape()) for name, x in slices.items()}
            problems = shape_problems(shapes, config)
            types = {name: str(x.get_dtype()) for name, x in slices.items()}
            problems += _type_problems(types)
            if problems:
                raise PublishedFileError(
                    f"{path}: does not fit its configuration: {'; '.join(problems)}; give the "
                    "config.json that was saved beside the weights"
                )
            tensors = {name: file.get_tensor(name) for name in slices}
    except PublishedFileError:
        raise
    except OSError as error:
        raise PublishedFileError(f"{path}: cannot be read: {_line(error)}") from error
    except SafetensorError as error:
        raise PublishedFileError(
            f"{path}: is no complete safetensors file: {_line(error)}; fetch or convert it again"
        ) from error
    _check_tied(path, tensors)
    ignored = sorted(name for name in tensors if name in (*TIED, *UNUSED))
    used = {
        name: x.float() if x.is_floating_point() else x
        for name, x in tensors.items()
        if name not in ignored
    }
    _check_values(path, used)
    return used, ignored


def _refuse_pickles(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise PublishedFileError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix in _PICKLE_ENDINGS or start.startswith(_PICKLE_STARTS):
        raise PublishedFileError(
            f"{path}: is a pickle, which can run any code when it is opened; where you trust it, "
            "convert it to safetensors: save_file({k: v.clone() for k, v in torch.load(PATH, "
            "weights_only=True).items()}, 'weights.safetensors') with safetensors.torch"
        )


def _type_problems(types: dict[str, str]) -> list[str]:
    wrong = [
        f"{name} is {kind}"
        for name, kind in types.items()
        if kind not in (_INTEGERS if name.endswith(".kernel.L") else _FLOATING)
    ]
    return [f"of another type: {some(wrong)}"] if wrong else []


def _check_tied(path: Path, tensors: dict[str, Tensor]) -> None:
    for name in TIED:
        if name in tensors and not torch.equal(tensors[name], tensors["shared.weight"]):
            raise PublishedFileError(
                f"{path}: {name} differs from shared.weight, but SPADE has one matrix for both; "
                "only tied checkpoints can be imported"
            )


def _check_values(path: Path, tensors: dict[str, Tensor]) -> None:
    wrong = [name for name, x in tensors.items() if not bool(x.isfinite().all())]
    if wrong:
        raise PublishedFileError(
            f"{path}: holds numbers that are not finite: {some(wrong)}; fetch it again"
        )
    for name, x in tensors.items():
        if name.endswith(".kernel.L") and int(x) < 0:
            raise PublishedFileError(
                f"{path}: {name} is {int(x)}, but a length is at least 0; fetch it again"
            )


def _line(error: BaseException) -> str:
    """The first line of an error, which may quote what a stranger wrote."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isprintable() else "?" for c in text[:200])
