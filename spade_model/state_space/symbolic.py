"""Kernels of a length that is not known yet: what `torch.export` traces with a dynamic length.

The same two levels as in `two_level`, but with a fixed number of columns and without loops whose
count depends on the length: row i is reached by the powers of two that i is made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spade_model.state_space.two_level import extend_columns, square_increment

_COLUMNS = 256
_ROW_BITS = 16
"""Rows have numbers of so many bits: kernels of up to 16 million taps."""


def is_symbolic(length_tokens: int) -> bool:
    """Whether a length is a symbol of a graph that is being traced."""
    return isinstance(length_tokens, torch.SymInt)


def symbolic_dense_kernel(
    increment: Tensor, inputs: Tensor, outputs: Tensor, length: int
) -> Tensor:
    """Return ``K[k, t] = C_k a^t b`` for t below the length.

    Args:
        increment: ``a - 1`` [H, N, N].
        inputs: b [H, N].
        outputs: C [K, H, N].
        length: L.

    Returns:
        [K, H, L].
    """
    columns, increment = extend_columns(increment, inputs[:, :, None], _COLUMNS)
    number = torch.arange(_rows(length), device=outputs.device)[:, None]
    rows = outputs[:, :, None].expand(-1, -1, number.shape[0], -1)
    for bit in range(_ROW_BITS):
        rows = torch.where((number >> bit) % 2 == 1, rows + rows @ increment, rows)
        increment = square_increment(increment)
    return _joined(rows @ columns[:, :, 0], length)


def symbolic_diagonal_kernel(
    weights: Tensor, log_transition: Tensor, length: int, dtype: torch.dtype
) -> Tensor:
    """Return ``K[k, h, t] = Re sum_n V[k, h, n] exp(t log a[h, n])`` for t below the length.

    Args:
        weights: V [K, H, n], complex128 or float64.
        log_transition: log a [H, n], of the same type.
        length: L.
        dtype: Of the result.

    Returns:
        [K, H, L].
    """
    time = torch.arange(_COLUMNS, dtype=torch.float64, device=weights.device)
    number = torch.arange(_rows(length), dtype=torch.float64, device=weights.device)
    columns = torch.exp(log_transition[:, :, None] * time)
    rows = weights[:, :, None] * torch.exp(number[:, None] * _COLUMNS * log_transition[:, None, :])
    kernel = _joined(rows @ columns, length)
    return (kernel.real if kernel.is_complex() else kernel).to(dtype)


def _rows(length: int) -> int:
    # One more than needed at least: two rows or more, whatever the length.
    return length // _COLUMNS + 2


def _joined(blocks: Tensor, length: int) -> Tensor:
    """Return the first taps [K, H, L] of [K, H, rows, columns]."""
    time = torch.arange(length, device=blocks.device)
    return blocks[:, :, time // _COLUMNS, time % _COLUMNS]
