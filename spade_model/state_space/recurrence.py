"""Linear recurrences ``x_t = a x_{t-1} + b u_t, y_t = C x_t``, dense or diagonal, for each feature.

A mixer hands one out for decoding: a step costs the same at every position, and a prompt is taken
in by matrix products on the two levels of `two_level`. States are real float tensors
[B, H, ...]; K is the number of outputs for each feature.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from spade_model.cuts import split_length
from spade_model.state_space.two_level import (
    as_real,
    dense_kernel,
    diagonal_kernel,
    extend_columns,
    extend_rows,
    from_real,
    in_blocks,
    powers,
    reduce_rows,
    rounded,
    square_increment,
)


class Recurrence(abc.ABC):
    """The discretised system of a causal mixer."""

    @abc.abstractmethod
    def initial_state(self, batch_size: int) -> Tensor:
        """Return zeros [B, H, ...]."""

    @abc.abstractmethod
    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one token [B, H]; return outputs [B, K, H] and the next state."""

    @abc.abstractmethod
    def response(self, state: Tensor, length: int) -> Tensor:
        """Return what the state adds to the next `length` outputs, [B, K, H, length]."""

    @abc.abstractmethod
    def final_state(self, u: Tensor, state: Tensor) -> Tensor:
        """Return the state after all of u [B, H, T]."""


@dataclasses.dataclass(frozen=True)
class DenseRecurrence(Recurrence):
    """With a matrix for each feature; the state is [B, H, N]."""

    increment: Tensor
    """``a - 1`` [H, N, N]."""
    inputs: Tensor
    """b [H, N]."""
    outputs: Tensor
    """C [H, K, N]."""

    def initial_state(self, batch_size: int) -> Tensor:
        """Return zeros [B, H, N]."""
        return self.inputs.new_zeros(batch_size, *self.inputs.shape)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one token [B, H]; return outputs [B, K, H] and the next state."""
        change = (state.transpose(0, 1) @ self.increment.mT).transpose(0, 1)
        state = state + change + self.inputs * u[:, :, None]
        return (state.transpose(0, 1) @ self.outputs.mT).permute(1, 2, 0), state

    def response(self, state: Tensor, length: int) -> Tensor:
        """Return what the state adds to the next `length` outputs, [B, K, H, length]."""
        vectors = state.permute(1, 2, 0)  # [H, N, B]
        vectors = vectors + self.increment @ vectors
        return dense_kernel(self.increment, vectors, self.outputs, length).permute(2, 1, 0, 3)

    def final_state(self, u: Tensor, state: Tensor) -> Tensor:
        """Return the state after all of u [B, H, T]."""
        length = u.shape[-1]
        num_rows, num_columns = split_length(length)
        columns, increment = extend_columns(self.increment, self.inputs[:, :, None], num_columns)
        # The powers that rows of this length go through are those their adjoint needs.
        _, increments = extend_rows(increment, self.outputs[:, :1], num_rows)
        blocks = in_blocks(u.flip(-1).transpose(0, 1), num_rows, num_columns)  # [H, B, i, j]
        sums = blocks.flatten(1, 2) @ columns[:, :, 0].mT
        taken_in = reduce_rows(sums.view(*blocks.shape[:3], -1), increments).transpose(0, 1)
        vectors, power = state.permute(1, 2, 0), self.increment
        while length:
            if length & 1:
                vectors = vectors + power @ vectors
            length >>= 1
            if length:
                power = square_increment(power)
        return taken_in + vectors.permute(2, 0, 1)


@dataclasses.dataclass(frozen=True)
class DiagonalRecurrence(Recurrence):
    """With n real or complex numbers for each feature; the state is [B, H, n] or [B, H, n, 2]."""

    log_transition: Tensor
    """log a [H, n], float64 or complex128."""
    inputs: Tensor
    """b [H, n], of the same type."""
    outputs: Tensor
    """C [K, H, n], of the same type; the output is the real part of ``C x``."""
    dtype: torch.dtype
    """Of the state: float32 or float64."""
    transition: Tensor = dataclasses.field(init=False)
    """a [H, n] in the precision of the state."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "transition", rounded(torch.exp(self.log_transition), self.dtype))

    def _stored(self, state: Tensor) -> Tensor:
        return torch.view_as_real(state) if state.is_complex() else state

    def _loaded(self, state: Tensor) -> Tensor:
        is_complex = self.log_transition.is_complex()
        return torch.view_as_complex(state.contiguous()) if is_complex else state

    def initial_state(self, batch_size: int) -> Tensor:
        """Return zeros [B, H, n] or [B, H, n, 2]."""
        zeros = self.transition.new_zeros(batch_size, *self.inputs.shape)
        return self._stored(zeros)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one token [B, H]; return outputs [B, K, H] and the next state."""
        moved = self._loaded(state) * self.transition
        moved = moved + rounded(self.inputs, self.dtype) * u[:, :, None]
        outputs = torch.einsum("khn,bhn->bkh", rounded(self.outputs, self.dtype), moved)
        return outputs.real if outputs.is_complex() else outputs, self._stored(moved)

    def response(self, state: Tensor, length: int) -> Tensor:
        """Return what the state adds to the next `length` outputs, [B, K, H, length]."""
        first = torch.exp(self.log_transition) * self._loaded(state)
        weights = first[:, None] * self.outputs  # [B, K, H, n]
        kernel = diagonal_kernel(weights.flatten(0, 1), self.log_transition, length, self.dtype)
        return kernel.view(*weights.shape[:3], length)

    def final_state(self, u: Tensor, state: Tensor) -> Tensor:
        """Return the state after all of u [B, H, T]."""
        length = u.shape[-1]
        num_rows, num_columns = split_length(length)
        columns = as_real(powers(self.log_transition, num_columns, 1, self.dtype))
        rows = powers(self.log_transition, num_rows, num_columns, self.dtype)
        blocks = in_blocks(u.flip(-1).transpose(0, 1), num_rows, num_columns)  # [H, B, i, j]
        sums = from_real((blocks.flatten(1, 2) @ columns).view(*blocks.shape[:3], -1), rows)
        taken_in = (sums * rows[:, None]).sum(dim=2).transpose(0, 1) * self.inputs
        kept = torch.exp(self.log_transition * length) * self._loaded(state)
        return self._stored(rounded(taken_in + kept, self.dtype))
