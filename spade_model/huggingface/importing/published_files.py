"""Reads what somebody else saved: weights and configuration of a published checkpoint.

Files come from strangers, so nothing in them is executed: weights are safetensors or refused, and
names, shapes and types are compared with what the configuration says before anything is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spade_model.published_shapes import Shapes, shape_problems, some

STATE_DICT_CONVERSION = (
    "save_file({k: v.clone() for k, v in torch.load(PATH, weights_only=True).items()}, "
    "'weights.safetensors') with safetensors.torch"
)
"""How a file that holds a state dict and nothing else becomes one that is read here."""
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


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the configuration of a published model as plain data.

    Raises:
        PublishedFileError: It cannot be read, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PublishedFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # undecodable bytes are a ValueError too
        raise PublishedFileError(
            f"{path}: is no JSON: {one_line(error)}; give the config.json beside the weights"
        ) from error
    if not isinstance(content, dict):
        raise PublishedFileError(f"{path}: holds no JSON object; give the model's config.json")
    return content


def read_shapes(path: Path, conversion: str = STATE_DICT_CONVERSION) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes in a safetensors file.

    Args:
        path: The file.
        conversion: What to tell those who give a pickle instead.

    Raises:
        PublishedFileError: It is none, or is damaged.
    """
    refuse_pickles(path, conversion)
    with _opened(path) as (_, slices):
        return {name: tuple(x.get_shape()) for name, x in slices.items()}


def read_published_weights(
    path: Path, shapes: Shapes, *, same: Mapping[str, str], unused: Sequence[str] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a published checkpoint, floats as float32.

    Args:
        path: A safetensors file.
        shapes: Every tensor that the configuration asks for.
        same: Further names of some of them, which the file may repeat.
        unused: Names that nobody asks for.

    Returns:
        Each tensor of `shapes`, and the names of those that were left out because they repeat
        another or are used by nobody.

    Raises:
        PublishedFileError: The file is no safetensors file, is damaged, or does not hold exactly
            the tensors that the configuration needs, with finite numbers.
    """
    refuse_pickles(path)
    with _opened(path) as (file, slices):
        found = {name: tuple(x.get_shape()) for name, x in slices.items()}
        problems = shape_problems(found, shapes, same=same, unused=unused)
        problems += _type_problems({name: str(x.get_dtype()) for name, x in slices.items()})
        if problems:
            raise PublishedFileError(
                f"{path}: does not fit its configuration: {'; '.join(problems)}; give the "
                "config.json that was saved beside the weights"
            )
        tensors = {name: file.get_tensor(name) for name in slices}
    for name, original in same.items():
        if name in tensors and not torch.equal(tensors[name], tensors[original]):
            raise PublishedFileError(
                f"{path}: {name} differs from {original}, but SPADE has one matrix for both; "
                "only tied checkpoints can be imported"
            )
    ignored = sorted(name for name in tensors if name in (*same, *unused))
    used = {
        name: x.float() if x.is_floating_point() else x
        for name, x in tensors.items()
        if name not in ignored
    }
    _check_values(path, used)
    return used, ignored


def check_converted(path: Path, state: Mapping[str, Tensor]) -> None:
    """Make sure that the output matrices of the state spaces could be converted back.

    Raises:
        PublishedFileError: One could not.
    """
    wrong = [name for name, x in state.items() if not bool(x.isfinite().all())]
    if wrong:
        raise PublishedFileError(
            f"{path}: the state space of {wrong[0]} cannot be converted back: I - A^L has no "
            "inverse for its L; give a checkpoint saved before its first forward pass"
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """An open safetensors file, and its tensors, which are read where they are asked for."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file, {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except PublishedFileError:
        raise
    except OSError as error:
        raise PublishedFileError(f"{path}: cannot be read: {one_line(error)}") from error
    except SafetensorError as error:
        raise PublishedFileError(
            f"{path}: is no complete safetensors file: {one_line(error)}; fetch or convert it again"
        ) from error


def refuse_pickles(path: Path, conversion: str = STATE_DICT_CONVERSION) -> None:
    """Refuse a file that can be read only by a pickle's machine.

    Raises:
        PublishedFileError: It is one, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise PublishedFileError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix in _PICKLE_ENDINGS or start.startswith(_PICKLE_STARTS):
        raise PublishedFileError(
            f"{path}: is a pickle, which can run any code when it is opened; where you trust it, "
            f"convert it: {conversion}"
        )


def _type_problems(types: dict[str, str]) -> list[str]:
    wrong = [
        f"{name} is {kind}"
        for name, kind in types.items()
        if kind not in (_INTEGERS if name.endswith(".kernel.L") else _FLOATING)
    ]
    return [f"of another type: {some(wrong)}"] if wrong else []


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


def one_line(error: BaseException) -> str:
    """The first line of an error, which may quote what a stranger wrote."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isprintable() else "?" for c in text[:200])
