"""The convolution kernel of S4, as pure functions of its parameters.

Notation: H features, N real states (``N = state_dim``; the layer stores n = N / 2 complex ones,
the other half are their conjugates), S copies of (A, B, P), K kernels per feature.

The continuous system is ``x' = A x + B u, y = C x`` with ``A = diag(w) - P P^H`` over the full
set of conjugate pairs. Writing ``x = (Re z, Im z)`` for the stored half z makes it real:

    A_real = [[diag Re w, -diag Im w], [diag Im w, diag Re w]] - 2 p p^T,  p = (Re P, Im P)
    B_real = (Re B, Im B),  C_real = 2 (Re C, -Im C)

The bilinear rule with time step dt gives ``Ad = (I - dt/2 A)^-1 (I + dt/2 A)`` and
``Bd = (I - dt/2 A)^-1 dt B``, and the kernel is ``K[t] = C Ad^t Bd``, see `two_level`.

Differentiating the rule by log dt gives ``dAd = (Ad^2 - I) / 2``, which commutes with Ad, and
``dBd = (Ad + I) / 2 Bd``. So the derivative of a kernel is made of two more kernels with the same
powers: ``dK[t] = t C Ad^(t-1) b1 + C Ad^t b2`` with ``b1 = (Ad^2 - I) / 2 Bd`` and
``b2 = (Ad + I) / 2 Bd``. As long as A, B and P are constants, the backward pass needs no powers
but those of the forward pass and costs about half of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spade_model.cuts import split_length
from spade_model.state_space.symbolic import is_symbolic, symbolic_dense_kernel
from spade_model.state_space.two_level import (
    dense_kernel,
    extend_columns,
    extend_rows,
    feature_chunks,
    in_blocks,
    outside_autocast,
    product_dtype,
    reduce_rows,
    square_increment,
    state_space_dtype,
)


def tile(parameter: Tensor, num_features: int) -> Tensor:
    """[S, n] to [H, n]: feature h uses copy ``h % S``."""
    copies = parameter.shape[0]
    return parameter if copies == num_features else parameter.repeat(num_features // copies, 1)


def _real_pair(z: Tensor) -> Tensor:
    """Complex [..., n] to the real vector (Re z, Im z) [..., 2n]."""
    return torch.cat([z.real, z.imag], dim=-1)


def discretize_increment(
    log_decay: Tensor, frequency: Tensor, P: Tensor, B: Tensor, log_dt: Tensor
) -> tuple[Tensor, Tensor]:
    """Discretise the real form by the bilinear rule, in float64.

    ``I - dt/2 A_real = R + dt p p^T`` where R multiplies by ``1 - dt/2 w``, so its inverse is
    known in closed form (Sherman and Morrison). Nothing is ill-conditioned: the real part of
    ``1 - dt/2 w`` is above 1. Returned is ``Ad - I``, formed without subtracting I.

    Args:
        log_decay: ``log(-Re w)`` [S, n].
        frequency: ``Im w`` [S, n].
        P: Real pairs [S, n, 2].
        B: Real pairs [S, n, 2].
        log_dt: [H], S divides H.

    Returns:
        ``Ad - I`` [H, N, N] and Bd [H, N], float64.
    """
    num_features, half = log_dt.shape[0], frequency.shape[-1]
    w = tile(torch.complex(-torch.exp(log_decay.double()), frequency.double()), num_features)
    dt = torch.exp(log_dt.double())[:, None]
    P_complex = tile(torch.view_as_complex(P.double()), num_features)
    B_complex = tile(torch.view_as_complex(B.double()), num_features)
    inverse = 1 / (1 - dt / 2 * w)
    p = _real_pair(P_complex)
    left = _real_pair(inverse * P_complex)  # R^-1 p
    right = _real_pair(inverse.conj() * P_complex)  # R^-T p
    scale = dt / (1 + dt * (p * left).sum(dim=-1, keepdim=True))
    increment = (-2 * scale * left)[:, :, None] * right[:, None, :]
    diagonal = dt * w * inverse  # 2 (R^-1 - 1)
    increment[:, :half, :half].diagonal(dim1=1, dim2=2).add_(diagonal.real)
    increment[:, half:, half:].diagonal(dim1=1, dim2=2).add_(diagonal.real)
    increment[:, :half, half:].diagonal(dim1=1, dim2=2).sub_(diagonal.imag)
    increment[:, half:, :half].diagonal(dim1=1, dim2=2).add_(diagonal.imag)
    B_real = _real_pair(B_complex)
    projection = scale * (right * B_real).sum(dim=-1, keepdim=True)
    Bd = dt * (_real_pair(inverse * B_complex) - projection * left)
    return increment, Bd


def discretize(
    log_decay: Tensor, frequency: Tensor, P: Tensor, B: Tensor, log_dt: Tensor
) -> tuple[Tensor, Tensor]:
    """Return Ad [H, N, N] and Bd [H, N] in float64, see `discretize_increment`."""
    increment, Bd = discretize_increment(log_decay, frequency, P, B, log_dt)
    return increment + torch.eye(Bd.shape[-1], dtype=Bd.dtype, device=Bd.device), Bd


def real_output(C: Tensor) -> Tensor:
    """Return ``C_real = 2 (Re C, -Im C)`` [K, H, N] of the real pairs C [K, H, n, 2]."""
    return 2 * torch.cat([C[..., 0], -C[..., 1]], dim=-1)


class _ConstantSystemKernel(torch.autograd.Function):
    """The kernel with gradients for C and log_dt alone, some features at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        C_real: Tensor,
        log_dt: Tensor,
        log_decay: Tensor,
        frequency: Tensor,
        P: Tensor,
        B: Tensor,
        length: int,
    ) -> Tensor:
        num_kernels, num_features, _ = C_real.shape
        num_rows, num_columns = split_length(length)
        kernel = C_real.new_empty(num_features, num_kernels, num_rows * num_columns)
        to_C, to_dt = ctx.needs_input_grad[:2]
        tiled = [tile(x.flatten(1), num_features) for x in (log_decay, frequency, P, B)]
        kept: list[Tensor] = []
        for part in feature_chunks(C_real, num_features):
            decay, imaginary, low_rank, inputs = (x[part] for x in tiled)
            E, Bd = discretize_increment(
                decay,
                imaginary,
                low_rank.view(len(low_rank), -1, 2),
                inputs.view(len(inputs), -1, 2),
                log_dt[part],
            )
            vectors = Bd[:, :, None]
            if to_dt:
                half = E @ vectors / 2
                vectors = torch.cat([vectors, E @ half + 2 * half, vectors + half], dim=2)
            columns, E = extend_columns(E.to(C_real.dtype), vectors.to(C_real.dtype), num_columns)
            rows, increments = extend_rows(E, C_real[:, part].transpose(0, 1), num_rows)
            flat = rows.flatten(1, 2)
            torch.bmm(flat, columns[:, :, 0], out=kernel[part].view(*flat.shape[:2], num_columns))
            if to_C or to_dt:
                # Squaring again is cheaper than keeping every power.
                kept += [columns, rows, *(increments[:1] if to_C else [])]
        ctx.save_for_backward(*kept)
        ctx.facts = (length, C_real.shape, num_rows, num_columns)
        return kernel.transpose(0, 1)[..., :length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Some run the backward pass under autocast as well.
        with outside_autocast(gradient):
            length, shape, num_rows, num_columns = ctx.facts
            to_C, to_dt = ctx.needs_input_grad[:2]
            C_gradient = gradient.new_empty(shape) if to_C else None
            dt_gradient = gradient.new_empty(shape[1]) if to_dt else None
            time = torch.arange(1, length, dtype=gradient.dtype, device=gradient.device)
            parts = feature_chunks(gradient, shape[1])
            saved = ctx.saved_tensors
            per_part = len(saved) // len(parts)
            for number, part in enumerate(parts):
                columns, rows, *increments = saved[number * per_part : (number + 1) * per_part]
                G = gradient[:, part].transpose(0, 1)  # [h, K, L]
                blocks = in_blocks(G, num_rows, num_columns).flatten(1, 2)
                if C_gradient is not None:
                    while increments and 1 << len(increments) < num_rows:
                        increments.append(square_increment(increments[-1]))
                    sums = (blocks @ columns[:, :, 0].mT).view(rows.shape)
                    C_gradient[:, part] = reduce_rows(sums, increments).transpose(0, 1)
                if dt_gradient is not None:
                    # Each t K1[t - 1] is credited to the token before.
                    timed = in_blocks(G[..., 1:] * time, num_rows, num_columns).flatten(1, 2)
                    sums = torch.baddbmm(timed @ columns[:, :, 1].mT, blocks, columns[:, :, 2].mT)
                    dt_gradient[part] = (sums.view(rows.shape) * rows).sum(dim=(1, 2, 3))
            return C_gradient, dt_gradient, None, None, None, None, None


def s4_kernel(
    *,
    C: Tensor,
    B: Tensor,
    P: Tensor,
    log_decay: Tensor,
    frequency: Tensor,
    log_dt: Tensor,
    length_tokens: int,
) -> Tensor:
    """Return the kernels of an S4 layer in the precision of `state_space_dtype`.

    The discretisation is done in float64 and then rounded: it is cheap, and the powers amplify
    its error.

    Args:
        C: Real pairs [K, H, n, 2].
        B: Real pairs [S, n, 2].
        P: Real pairs [S, n, 2].
        log_decay: ``log(-Re w)`` [S, n].
        frequency: ``Im w`` [S, n].
        log_dt: [H].
        length_tokens: L.

    Returns:
        [K, H, L].
    """
    dtype = product_dtype(C)
    system = (log_decay, frequency, P, B)
    C_real = real_output(C.to(dtype))
    if is_symbolic(length_tokens):
        increment, Bd = discretize_increment(*system, log_dt)
        kernel = symbolic_dense_kernel(increment.to(dtype), Bd.to(dtype), C_real, length_tokens)
    elif torch.is_grad_enabled() and any(x.requires_grad for x in system):
        increment, Bd = discretize_increment(*system, log_dt)
        outputs = C_real.transpose(0, 1)
        kernel = dense_kernel(
            increment.to(dtype), Bd[:, :, None].to(dtype), outputs, length_tokens
        )[:, :, 0].transpose(0, 1)
    else:
        if not torch.is_grad_enabled():
            C_real, log_dt = C_real.detach(), log_dt.detach()
        kernel = _ConstantSystemKernel.apply(  # type: ignore[no-untyped-call]
            C_real, log_dt, *system, length_tokens
        )
    return kernel.to(state_space_dtype(C))
