"""Linear recurrences as seen from the ends of a part: what goes in, passes through and comes out.

For each direction of a mixer, ``x_t = a x_{t-1} + b u_t`` with outputs ``C x``. A state is a real
tensor [B, H, ...], as in `spade_model.state_space.recurrence`.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from spade_model.cuts import split_length
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.recurrence import DenseRecurrence, DiagonalRecurrence
from spade_model.state_space.two_level import (
    apply_increment,
    as_real,
    diagonal_kernel,
    from_real,
    in_blocks,
    powers,
    reduce_rows,
    rounded,
    square_increment,
)


class Boundary(abc.ABC):
    """One direction of a mixer, differentiable in everything."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Of states and inputs."""

    @abc.abstractmethod
    def take_in(self, u: Tensor) -> Tensor:
        """Return the state ``sum_j a^j b u[j]``, u [B, H, T] from the newest token back."""

    @abc.abstractmethod
    def advance(self, state: Tensor, num_tokens: int) -> Tensor:
        """Return ``a^T x``: a state after T tokens of zero."""

    @abc.abstractmethod
    def emit(self, state: Tensor, num_tokens: int) -> Tensor:
        """Return ``C a^t x`` for t below T, [B, channels, H, T]."""


@dataclasses.dataclass(frozen=True)
class DenseBoundary(Boundary):
    """With a matrix for each feature; states [B, H, N]."""

    squares: list[Tensor]
    """``a - 1``, ``a^2 - 1``, ``a^4 - 1`` …, each [H, N, N], up to the longest part. Directions of
    one system share the list, since it is most of the memory."""
    inputs: Tensor
    """b [H, N]."""
    outputs: Tensor
    """C [H, channels, N]."""

    @property
    def dtype(self) -> torch.dtype:
        """Of states and inputs."""
        return self.inputs.dtype

    def take_in(self, u: Tensor) -> Tensor:
        """Return the state ``sum_j a^j b u[j]``, u [B, H, T] from the newest token back."""
        num_rows, num_columns = split_length(u.shape[-1])
        level = num_columns.bit_length() - 1
        columns = self._columns(self.inputs[:, :, None], level)[:, :, 0]
        blocks = in_blocks(u.transpose(0, 1), num_rows, num_columns)  # [H, B, i, j]
        sums = (blocks.flatten(1, 2) @ columns.mT).view(*blocks.shape[:3], -1)
        return reduce_rows(sums, self._row_squares(level, num_rows)).transpose(0, 1)

    def advance(self, state: Tensor, num_tokens: int) -> Tensor:
        """Return ``a^T x``: a state after T tokens of zero."""
        vectors = state.transpose(0, 1)
        for bit, increment in enumerate(self.squares):
            if num_tokens >> bit & 1:
                vectors = torch.baddbmm(vectors, vectors, increment.mT)
        return vectors.transpose(0, 1)

    def emit(self, state: Tensor, num_tokens: int) -> Tensor:
        """Return ``C a^t x`` for t below T, [B, channels, H, T]."""
        num_rows, num_columns = split_length(num_tokens)
        level = num_columns.bit_length() - 1
        columns = self._columns(state.permute(1, 2, 0), level)  # [H, N, B, j]
        rows = self.outputs[:, :, None]
        for increment in self._row_squares(level, num_rows):
            old = rows[:, :, : num_rows - rows.shape[2]]
            flat = old.flatten(1, 2)
            rows = torch.cat([rows, torch.baddbmm(flat, flat, increment).view(old.shape)], dim=2)
        emitted = rows.flatten(1, 2) @ columns.flatten(2)
        emitted = emitted.view(*rows.shape[:3], -1, num_columns)  # [H, channels, i, B, j]
        return emitted.permute(3, 1, 0, 2, 4).flatten(3)[..., :num_tokens]

    def _columns(self, vectors: Tensor, level: int) -> Tensor:
        """Return ``a^j v`` [H, N, V, 2^level] for v [H, N, V]."""
        columns = vectors[..., None]
        for increment in self.squares[:level]:
            more = apply_increment(increment, columns.flatten(2)).view(columns.shape)
            columns = torch.cat([columns, more], dim=-1)
        return columns

    def _row_squares(self, level: int, num_rows: int) -> list[Tensor]:
        return self.squares[level : level + (num_rows - 1).bit_length()]


@dataclasses.dataclass(frozen=True)
class DiagonalBoundary(Boundary):
    """With real or complex numbers for each feature; states [B, H, n] or [B, H, n, 2]."""

    system: DiagonalRecurrence

    @property
    def dtype(self) -> torch.dtype:
        """Of states and inputs."""
        return self.system.dtype

    def take_in(self, u: Tensor) -> Tensor:
        """Return the state ``sum_j a^j b u[j]``, u [B, H, T] from the newest token back."""
        num_rows, num_columns = split_length(u.shape[-1])
        log_a = self.system.log_transition
        columns = as_real(powers(log_a, num_columns, 1, self.dtype))
        rows = powers(log_a, num_rows, num_columns, self.dtype)
        blocks = in_blocks(u.transpose(0, 1), num_rows, num_columns)  # [H, B, i, j]
        sums = from_real((blocks.flatten(1, 2) @ columns).view(*blocks.shape[:3], -1), rows)
        state = (sums * rows[:, None]).sum(dim=2).transpose(0, 1) * self.system.inputs
        return self._stored(state)

    def advance(self, state: Tensor, num_tokens: int) -> Tensor:
        """Return ``a^T x``: a state after T tokens of zero."""
        return self._stored(
            torch.exp(self.system.log_transition * num_tokens) * self._loaded(state)
        )

    def emit(self, state: Tensor, num_tokens: int) -> Tensor:
        """Return ``C a^t x`` for t below T, [B, channels, H, T]."""
        weights = self._loaded(state)[:, None] * self.system.outputs  # [B, channels, H, n]
        log_a = self.system.log_transition
        emitted = diagonal_kernel(weights.flatten(0, 1), log_a, num_tokens, self.dtype)
        return emitted.view(*weights.shape[:3], num_tokens)

    def _stored(self, state: Tensor) -> Tensor:
        state = rounded(state, self.dtype)
        return torch.view_as_real(state) if state.is_complex() else state

    def _loaded(self, state: Tensor) -> Tensor:
        is_complex = self.system.log_transition.is_complex()
        return torch.view_as_complex(state.contiguous()) if is_complex else state


def boundaries(mixer: SequenceMixer, longest_tokens: int) -> list[Boundary]:
    """Return the boundary of each direction of a mixer: past, and perhaps future.

    Args:
        mixer: Of either kind.
        longest_tokens: Tokens that `Boundary` is asked for at most.

    Raises:
        ValueError: The mixer is no linear recurrence of these kinds.
    """
    system, channels = mixer.compute_recurrence(), mixer.num_channels
    directions = range(mixer.num_directions)
    if isinstance(system, DenseRecurrence):
        squares = [system.increment]
        while longest_tokens >> len(squares):
            squares.append(square_increment(squares[-1]))
        outputs = [system.outputs[:, d * channels : (d + 1) * channels] for d in directions]
        return [DenseBoundary(squares, system.inputs, x) for x in outputs]
    if isinstance(system, DiagonalRecurrence):
        return [DiagonalBoundary(_direction(system, mixer, d)) for d in directions]
    raise ValueError(
        f"the state of {type(mixer).__name__} cannot be passed between ranks; use a state_space "
        "whose recurrence is dense or diagonal, or a context of 1"
    )


def _direction(
    system: DiagonalRecurrence, mixer: SequenceMixer, direction: int
) -> DiagonalRecurrence:
    features, channels = mixer.num_features, mixer.num_channels
    if system.inputs.shape[0] == features:  # One system, outputs for each direction.
        outputs = system.outputs[direction * channels : (direction + 1) * channels]
        return dataclasses.replace(system, outputs=outputs)
    part = slice(direction * features, (direction + 1) * features)
    return dataclasses.replace(
        system,
        log_transition=system.log_transition[part],
        inputs=system.inputs[part],
        outputs=system.outputs[:, part],
    )
