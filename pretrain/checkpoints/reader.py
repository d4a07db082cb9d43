"""Reading the numbers of a checkpoint by parameter name, whatever ranks wrote them."""

from __future__ import annotations

import math
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

import torch

from pretrain.checkpoints.checkpoint_format import WHOLE, rank_file, read_manifest
from pretrain.checkpoints.snapshot import OPTIMIZER, WEIGHT
from pretrain.checkpoints.strict_json import parse_json
from pretrain.checkpoints.tensor_file import TensorFile
from pretrain.errors import CheckpointError

FRAGMENTS = "fragments"
"""The word in a rank file's header under which the places of its fragments stand."""


class _Piece(NamedTuple):
    start: int
    end: int
    file: TensorFile


class CheckpointReader:
    """Random access to the numbers of one checkpoint, by parameter name.

    The caller verifies the checkpoint first. Headers are read and checked when a number is missed
    that no file read so far holds, so that a rank which asks for what it wrote reads one file of a
    thousand; no file stays open.

    Attributes:
        path: The checkpoint.
        manifest: Its manifest.
    """

    def __init__(self, path: Path, *, near: float = 0.0) -> None:
        """Read the manifest.

        Args:
            path: The checkpoint.
            near: The reader's place among its own ranks, ``rank / world_size``: the ranks that
                wrote from a like place are looked at first.

        Raises:
            CheckpointError: If the manifest or the whole tensors cannot be read.
        """
        self.path = path
        self.manifest = read_manifest(path)
        self._whole = TensorFile(path / WHOLE)
        self._pieces: dict[str, list[_Piece]] = {}
        wrote = self.manifest["world_size"]
        self._unread = sorted(range(wrote), key=lambda rank: -abs(rank / wrote - near))

    @property
    def names(self) -> list[str]:
        """Trained parameters, then buffers and frozen parameters."""
        whole = [name for name in self._whole.names if not name.startswith(OPTIMIZER)]
        return [*self.manifest["parameters"], *whole]

    def describe(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Type and shape of a parameter or buffer, as `read_full` gives it.

        Raises:
            CheckpointError: If the checkpoint does not hold it.
        """
        shape = self.manifest["parameters"].get(name)
        if shape is not None:
            return torch.float32, tuple(shape)
        if name not in self._whole:
            raise CheckpointError(f"{self.path}: holds no tensor {name}: another model?")
        return self._whole.describes(name)

    def read_full(self, name: str) -> torch.Tensor:
        """One whole parameter or buffer in its own shape.

        Raises:
            CheckpointError: If the checkpoint does not hold all of it.
        """
        shape = self.manifest["parameters"].get(name)
        if shape is None:
            return self._read_whole(name)
        return self.read_slice(WEIGHT, name, 0, math.prod(shape)).reshape(shape)

    def read_state(self, kind: str, name: str) -> torch.Tensor:
        """A state of the optimizer that is kept whole, in its own type and shape.

        Raises:
            CheckpointError: If the checkpoint does not hold it.
        """
        return self._read_whole(f"{OPTIMIZER}{kind}/{name}")

    def read_slice(self, kind: str, name: str, start: int, length: int) -> torch.Tensor:
        """Elements ``[start, start + length)`` of a flattened parameter or of one of its states.

        Returns:
            A float32 vector on the host.

        Raises:
            CheckpointError: If an element is in no rank's file.
        """
        key = f"{kind}/{name}"
        wanted = self._parts(key, name, start, length)
        while sum(high - low for low, high, _ in wanted) < length and self._unread:
            self._add(TensorFile(self.path / rank_file(self._unread.pop())))
            wanted = self._parts(key, name, start, length)
        filled = sum(high - low for low, high, _ in wanted)
        if filled != length:
            raise CheckpointError(
                f"{self.path}: holds {filled} of {length} elements of {kind} {name}: "
                "damaged, or of another model"
            )
        result = torch.empty(length, dtype=torch.float32)
        for low, high, piece in wanted:
            piece.file.read_into(key, low - piece.start, result[low - start : high - start])
        return result

    def _parts(self, key: str, name: str, start: int, length: int) -> list[tuple[int, int, _Piece]]:
        """Where elements lie in the files read so far: (first, last + 1, piece), disjoint."""
        found = []
        for piece in self._pieces.get(name, []):
            low, high = max(start, piece.start), min(start + length, piece.end)
            if low < high and key in piece.file:
                found.append((low, high, piece))
        return found

    def _read_whole(self, name: str) -> torch.Tensor:
        if name not in self._whole:
            raise CheckpointError(f"{self.path}: holds no tensor {name}: another model?")
        return self._whole.read(name)

    def _add(self, file: TensorFile) -> None:
        """Enter one rank's fragments, if they are such as its manifest's parameters have."""
        try:
            places = parse_json(file.metadata[FRAGMENTS].encode())
            fragments = {name: _place(place) for name, place in places.items()}
        except (KeyError, AttributeError, TypeError, ValueError):
            raise CheckpointError(f"{file.path}: does not say what it holds: damaged") from None
        for name, (start, length) in fragments.items():
            shape = self.manifest["parameters"].get(name)
            if shape is None or start + length > math.prod(shape):
                raise CheckpointError(f"{file.path}: holds more than there is of {name!r}: damaged")
            if length:
                self._insert(name, _Piece(start, start + length, file))
        for key in file.names:
            place = fragments.get(key.partition("/")[2])
            if place is None or file.describes(key) != (torch.float32, (place[1],)):
                raise CheckpointError(f"{file.path}: {key!r} is not what its place says: damaged")

    def _insert(self, name: str, piece: _Piece) -> None:
        """Keep the pieces of a parameter in order, and apart."""
        pieces = self._pieces.setdefault(name, [])
        place = bisect_left(pieces, piece.start, key=lambda other: other.start)
        before, after = pieces[max(place - 1, 0) : place], pieces[place : place + 1]
        if any(one.end > piece.start for one in before) or any(
            one.start < piece.end for one in after
        ):
            raise CheckpointError(f"{piece.file.path}: another rank too holds {name!r}: damaged")
        pieces.insert(place, piece)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The full float32 state dict of the model in a checkpoint, tied names included.

    The caller verifies the checkpoint first.

    Raises:
        CheckpointError: If the checkpoint cannot be read or has gaps.
    """
    reader = CheckpointReader(path)
    weights = {name: reader.read_full(name) for name in reader.names}
    for alias, name in reader.manifest["tied"].items():
        if name not in weights:
            raise CheckpointError(f"{path}: {alias!r} is tied to {name!r}, which is missing")
        weights[alias] = weights[name]
    return weights


def _place(place: object) -> tuple[int, int]:
    """First element and number of elements, as two sane numbers.

    Raises:
        ValueError: If they are anything else.
    """
    match place:
        case [int(start), int(length)] if start >= 0 and length >= 0:
            return int(start), int(length)
    raise ValueError(f"{place!r} is no place")
