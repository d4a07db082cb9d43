"""Kernels ``K[t] = C a^t b`` of linear recurrences by two levels of matrix products.

With t = i m + j every kernel is a product ``K = Y X`` of rows ``Y_i = C a^(im)`` and columns
``X_j = a^j b``; m is near the square root of the length, so both are small. No length is built
into anything, and every prefix of a kernel is the kernel of a shorter length.

For dense transitions rows and columns are made by doubling. Powers are kept as increments
``E = a - 1``, whose square step is ``2 E + E E``: a transition of small time step is close to the
identity, and what is lost in rounding is then relative to the difference. For diagonal transitions
they are exponentials ``exp(k log a)``, taken in float64 because the angles grow with k.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spade_model.cuts import split_length


def state_space_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type of state-space results: float64 for float64 parameters, else float32."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def outside_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autocast for devices that have one; the meta device has none."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def product_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which matrices are multiplied for results of `state_space_dtype`.

    Powers lose their meaning when products are rounded to ten or seven bits, which torch does to
    float32 matrices where it was allowed to (TF32 and the like); float64 is exempt from that.
    """
    backend = torch.backends.cuda if parameter.is_cuda else torch.backends.mkldnn
    if backend.matmul.fp32_precision in ("none", "ieee"):
        return state_space_dtype(parameter)
    return torch.float64


def apply_increment(increment: Tensor, columns: Tensor) -> Tensor:
    """Return ``(1 + E) x`` for E [..., N, N] and columns x [..., N, w]."""
    return torch.baddbmm(columns, increment, columns)


def square_increment(increment: Tensor) -> Tensor:
    """Return the increment of the squared transition, ``2 E + E E = E (E + 2)``."""
    identity = torch.eye(increment.shape[-1], dtype=increment.dtype, device=increment.device)
    return increment @ (increment + 2 * identity)


def extend_columns(increment: Tensor, vectors: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Return ``a^j b`` for j below a power of two, and the increment of ``a^num_columns``.

    Args:
        increment: ``a - 1`` [H, N, N].
        vectors: b, [H, N, V] for V of them.
        num_columns: m.

    Returns:
        [H, N, V, m] and [H, N, N].
    """
    columns = vectors[..., None]
    while columns.shape[-1] < num_columns:
        more = apply_increment(increment, columns.flatten(2)).view(columns.shape)
        columns = torch.cat([columns, more], dim=-1)
        increment = square_increment(increment)
    return columns, increment


def extend_rows(increment: Tensor, outputs: Tensor, num_rows: int) -> tuple[Tensor, list[Tensor]]:
    """Return ``C a^i`` for i below a number, and the increments of a, a^2, a^4 … that it took.

    Args:
        increment: ``a - 1`` [H, N, N].
        outputs: C [H, K, N].
        num_rows: Of each kernel.

    Returns:
        [H, K, rows, N] and the increments, each [H, N, N].
    """
    rows, increments = outputs[:, :, None], []
    while rows.shape[2] < num_rows:
        increments.append(increment)
        old = rows[:, :, : num_rows - rows.shape[2]]
        # All kernels in one product: broadcasting the increment over them would copy it.
        flat = old.flatten(1, 2)
        rows = torch.cat([rows, torch.baddbmm(flat, flat, increment).view(old.shape)], dim=2)
        if rows.shape[2] < num_rows:
            increment = square_increment(increment)
    return rows, increments


def reduce_rows(rows: Tensor, increments: list[Tensor]) -> Tensor:
    """Return ``sum_i y_i (a^i)^T``, the adjoint of `extend_rows`.

    Args:
        rows: y [H, K, rows, N].
        increments: Those of a, a^2, a^4 …, as many as `extend_rows` gave.

    Returns:
        [H, K, N].
    """
    for level in reversed(range(len(increments))):
        half = 1 << level
        more = rows[:, :, half:]
        flat = more.flatten(1, 2)
        moved = torch.baddbmm(flat, flat, increments[level].mT).view(more.shape)
        missing = half - more.shape[2]
        rows = rows[:, :, :half] + torch.nn.functional.pad(moved, (0, 0, 0, missing))
    return rows[:, :, 0]


def dense_kernel(increment: Tensor, vectors: Tensor, outputs: Tensor, length: int) -> Tensor:
    """Return ``K[k, v, t] = C_k a^t b_v`` for t below the length, differentiable in everything.

    Args:
        increment: ``a - 1`` [H, N, N].
        vectors: b [H, N, V].
        outputs: C [H, K, N].
        length: L, at least 1.

    Returns:
        [H, K, V, L].
    """
    num_rows, num_columns = split_length(length)
    columns, increment = extend_columns(increment, vectors, num_columns)
    rows, _ = extend_rows(increment, outputs, num_rows)
    kernel = rows.flatten(1, 2) @ columns.flatten(2)  # [H, K * i, V * j]
    kernel = kernel.view(*rows.shape[:3], -1, num_columns).transpose(2, 3)
    return kernel.flatten(3)[..., :length]


def in_blocks(gradient: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Pad [..., L] with zeros and fold it to [..., rows, columns]."""
    missing = num_rows * num_columns - gradient.shape[-1]
    padded = torch.nn.functional.pad(gradient, (0, missing))
    return padded.view(*gradient.shape[:-1], num_rows, num_columns)


def feature_chunks(parameter: Tensor, num_features: int) -> list[slice]:
    """Cut the features so that what is made of a few matrices for each stays in a CPU's cache."""
    width = 64 if parameter.device.type == "cpu" else num_features
    return [
        slice(start, min(start + width, num_features)) for start in range(0, num_features, width)
    ]


def as_real(z: Tensor) -> Tensor:
    """[..., n] real to itself, complex to real pairs side by side [..., 2n]."""
    return torch.view_as_real(z).flatten(-2) if z.is_complex() else z


def from_real(x: Tensor, like: Tensor) -> Tensor:
    """Undo `as_real` for a tensor of the kind of `like`."""
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)) if like.is_complex() else x


def powers(log_transition: Tensor, count: int, stride: int, dtype: torch.dtype) -> Tensor:
    """Return ``exp(k stride log a)`` for k below a number.

    It is computed in float64, with few exponentials because these are slow: each power is the
    product of two.

    Args:
        log_transition: log a [H, n], float64 or complex128.
        count: Powers.
        stride: Between their exponents.
        dtype: The result has this type, or the complex type of its pairs.

    Returns:
        [H, count, n].
    """
    num_rows, num_columns = split_length(count)
    steps = torch.arange(num_rows + num_columns, dtype=torch.float64, device=log_transition.device)
    scaled = (stride * log_transition)[:, None]
    fine = torch.exp(steps[:num_columns, None] * scaled)
    coarse = torch.exp((steps[:num_rows, None] * num_columns) * scaled)
    exact = coarse[:, :, None] * fine[:, None]
    return rounded(exact, dtype).flatten(1, 2)[:, :count]


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round real x to a type, complex x to the complex type of its pairs."""
    if not x.is_complex():
        return x.to(dtype)
    return x.to(torch.complex128 if dtype == torch.float64 else torch.complex64)


class _DiagonalKernel(torch.autograd.Function):
    """``K[k, t] = Re sum_n V[k, n] a[n]^t``, its gradients by two more products of that size.

    With ``G`` the gradient of K: that of V is ``sum_t G[t] conj(a^t)``, and that of log a
    ``sum_t t G[t] conj(V a^t)``.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, log_transition: Tensor, length: int, dtype: torch.dtype
    ) -> Tensor:
        num_kernels, num_features = weights.shape[:2]
        num_rows, num_columns = split_length(length)
        kernel = weights.new_empty(num_features, num_kernels, num_rows * num_columns, dtype=dtype)
        for part in feature_chunks(weights, num_features):
            log_a = log_transition[part]
            columns = as_real(powers(log_a, num_columns, 1, dtype))
            # The real part of a product is the scalar product of one pair with the conjugate.
            rows = powers(log_a.conj(), num_rows, num_columns, dtype)
            factors = weights[:, part].transpose(0, 1).conj().to(rows.dtype)
            left = as_real(factors[:, :, None] * rows[:, None]).flatten(1, 2)
            blocks = kernel[part].view(left.shape[0], left.shape[1], num_columns)
            torch.bmm(left, columns.mT, out=blocks)
        ctx.save_for_backward(weights, log_transition)
        ctx.facts = (length, dtype)
        return kernel.transpose(0, 1)[..., :length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Some run the backward pass under autocast as well.
        with outside_autocast(gradient):
            weights, log_transition = ctx.saved_tensors
            length, dtype = ctx.facts
            num_rows, num_columns = split_length(length)
            time = torch.arange(length, dtype=dtype, device=weights.device)
            to_weights, to_log = ctx.needs_input_grad[:2]
            weight_gradient = torch.empty_like(weights) if to_weights else None
            log_gradient = torch.empty_like(log_transition) if to_log else None
            for part in feature_chunks(weights, weights.shape[1]):
                log_a = log_transition[part]
                columns = as_real(powers(log_a, num_columns, 1, dtype))
                rows = powers(log_a, num_rows, num_columns, dtype)[:, None]
                G = gradient[:, part].transpose(0, 1).to(dtype)  # [h, K, L]
                if weight_gradient is not None:
                    total = (rows * _inner(G, columns, num_rows, weights)).sum(dim=2)
                    weight_gradient[:, part] = total.conj().transpose(0, 1)
                if log_gradient is not None:
                    total = (rows * _inner(G * time, columns, num_rows, weights)).sum(dim=2)
                    total = (total * weights[:, part].transpose(0, 1)).sum(dim=1)
                    log_gradient[part] = total.conj()
            return weight_gradient, log_gradient, None, None


def _inner(G: Tensor, columns: Tensor, num_rows: int, like: Tensor) -> Tensor:
    """Return ``sum_j G[i m + j] a^j`` [h, K, i, n], real or complex as `like`."""
    blocks = in_blocks(G, num_rows, columns.shape[1])
    sums = blocks.flatten(1, 2) @ columns
    return from_real(sums.view(*blocks.shape[:3], -1), like)


def diagonal_kernel(
    weights: Tensor, log_transition: Tensor, length: int, dtype: torch.dtype
) -> Tensor:
    """Return ``K[k, h, t] = Re sum_n V[k, h, n] exp(t log a[h, n])`` for t below the length.

    Args:
        weights: V [K, H, n], complex128 or float64.
        log_transition: log a [H, n], of the same type.
        length: L, at least 1.
        dtype: Type in which the matrices are multiplied.

    Returns:
        [K, H, L] in that type.
    """
    result: Tensor = _DiagonalKernel.apply(  # type: ignore[no-untyped-call]
        weights, log_transition, length, dtype
    )
    return result
