"""The weights on their way from a checkpoint into safetensors files, one tensor at a time.

Weights alone are read, never what an optimizer remembers, and nothing is held twice: the model that
an export is compared with is gone before the first file is written.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch

from pretrain.checkpoints.reader import CheckpointReader
from pretrain.checkpoints.tensor_file import write_described
from pretrain.config import RunConfig
from pretrain.exporting.errors import ExportError
from spade_model import SpadeForSeq2Seq

WeightType = Literal["float32", "bfloat16", "float16"]
"""What weights outside of the state-space layers can be stored as."""
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
DEFAULT_SHARD_SIZE = "5GB"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_HEAD = "lm_head.weight"
_STATE_SPACE = ".state_space."
_SIZE = re.compile(r"([0-9]{1,15})(KB|MB|GB|TB|KiB|MiB|GiB|TiB)", re.ASCII)
_METADATA = {"format": "pt"}


def parse_size(text: str) -> int:
    """Bytes of a size such as ``2GB``, ``500MB`` (powers of 1000) or ``2GiB`` (of 1024).

    Raises:
        ExportError: If it is anything else, or nothing.
    """
    match = _SIZE.fullmatch(text)
    size_bytes = 0
    if match is not None:
        base = 1024 if match[2][1] == "i" else 1000
        size_bytes = int(match[1]) * base ** (1 + "KMGT".index(match[2][0]))
    if not size_bytes:
        raise ExportError(
            f"max_shard_size {text!r} is no size; give a whole number and a unit, such as 500MB, "
            "5GB or 2GiB"
        )
    return size_bytes


class _Stored(NamedTuple):
    """A tensor as it will lie in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class CheckpointWeights:
    """The weights of a checkpoint as an export holds them, read when they are asked for.

    Attributes:
        dtype: Of floating-point weights outside of the state-space layers.
        tensors: What an export holds: name, type and shape. The output head is not among them, it
            is the embedding.
    """

    def __init__(self, checkpoint: Path, dtype: WeightType) -> None:
        """Read the headers.

        Args:
            checkpoint: A verified one.
            dtype: See the class.

        Raises:
            CheckpointError: If the checkpoint cannot be read.
        """
        self._reader = CheckpointReader(checkpoint)
        self._checkpoint = checkpoint
        self.dtype = dtype
        self.tensors = [self._stored(name) for name in self._reader.names if name != _HEAD]

    @property
    def parameters(self) -> int:
        """Trained numbers, each counted once."""
        return sum(map(math.prod, self._reader.manifest["parameters"].values()))

    def read(self, name: str) -> torch.Tensor:
        """One tensor in the type it is stored as.

        Raises:
            CheckpointError: If the checkpoint does not hold all of it.
            ExportError: If a number is beyond the type's range.
        """
        value = self._reader.read_full(name)
        stored = value.to(self._type_of(name, value.dtype))
        if stored.dtype == torch.float16 and not bool(stored.isfinite().all()):
            raise ExportError(
                f"{self._checkpoint}: {name} has numbers beyond float16's {2**16 - 32}; use "
                "bfloat16 or float32"
            )
        return stored

    def load_plain_model(self, config: RunConfig) -> SpadeForSeq2Seq:
        """The pretrained network in float32, its weights rounded to what the export will hold.

        Raises:
            CheckpointError: If the checkpoint cannot be read.
            ExportError: If the weights do not fit the model.
        """
        with torch.device("meta"):
            plain = SpadeForSeq2Seq(config.model)
        weights = {stored.name: self._read_widened(stored.name) for stored in self.tensors}
        weights |= {
            alias: weights[name]
            for alias, name in self._reader.manifest["tied"].items()
            if name in weights
        }
        try:
            plain.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ExportError(
                f"{self._checkpoint}: its weights do not fit its model: {reason}; restore its "
                "config.yaml"
            ) from error
        plain.lm_head.weight = plain.model.shared.weight
        return plain.eval()

    def write(self, folder: Path, max_shard_bytes: int) -> None:
        """Write one safetensors file, or several with an index, as `transformers` names them.

        Args:
            folder: An existing one.
            max_shard_bytes: Most bytes of tensors in a file; a larger tensor gets one of its own.

        Raises:
            CheckpointError: If the checkpoint cannot be read.
            ExportError: If a number is beyond the type's range.
            OSError: If the disk refuses.
        """
        shards = _cut(self.tensors, max_shard_bytes)
        if len(shards) == 1:
            self._write_file(folder / WEIGHTS, shards[0])
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._write_file(folder / file, shard)
            weight_map |= {stored.name: file for stored in shard}
        index = {
            "metadata": {
                "total_parameters": self.parameters,
                "total_size": sum(stored.size_bytes for stored in self.tensors),
            },
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write_file(self, path: Path, shard: Iterable[_Stored]) -> None:
        described = {stored.name: (stored.dtype, stored.shape) for stored in shard}
        write_described(path, described, self.read, _METADATA)

    def _stored(self, name: str) -> _Stored:
        dtype, shape = self._reader.describe(name)
        return _Stored(name, self._type_of(name, dtype), shape)

    def _type_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The type a tensor is stored as; what are no weights, such as counts, stay as they are."""
        if not dtype.is_floating_point:
            return dtype
        return torch.float32 if _STATE_SPACE in name else getattr(torch, self.dtype)

    def _read_widened(self, name: str) -> torch.Tensor:
        value = self.read(name)
        return value.float() if value.is_floating_point() else value


def _cut(tensors: Iterable[_Stored], max_shard_bytes: int) -> list[list[_Stored]]:
    """Tensors in their order, in as many lists as their sizes ask for."""
    shards: list[list[_Stored]] = [[]]
    filled_bytes = 0
    for stored in tensors:
        if shards[-1] and filled_bytes + stored.size_bytes > max_shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(stored)
        filled_bytes += stored.size_bytes
    return shards


def check_type(dtype: str) -> WeightType:
    """A type's name, if weights can be stored as it.

    Raises:
        ExportError: If they cannot.
    """
    for known in WEIGHT_TYPES:
        if dtype == known:
            return known
    raise ExportError(f"dtype {dtype!r} is unknown; use float32, bfloat16 or float16")
