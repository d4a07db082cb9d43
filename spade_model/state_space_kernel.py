"""The convolution kernel of S4, as pure functions of its parameters.

Notation: H features, N real states (``N = state_dim``; the layer stores n = N / 2 complex ones,
the other half are their conjugates), S copies of (A, B, P), K kernels per feature.

The continuous system is ``x' = A x + B u, y = C x`` with ``A = diag(w) - P P^H`` over the full
set of conjugate pairs. Writing ``x = (Re z, Im z)`` for the stored half z makes it real:

    A_real = [[diag Re w, -diag Im w], [diag Im w, diag Re w]] - 2 p p^T,  p = (Re P, Im P)
    B_real = (Re B, Im B),  C_real = 2 (Re C, -Im C)

The bilinear rule with time step dt gives ``Ad = (I - dt/2 A)^-1 (I + dt/2 A)`` and
``Bd = (I - dt/2 A)^-1 dt B``, and the kernel is ``K[t] = C Ad^t Bd``. It is computed on two
levels: ``X = [Ad^j Bd]`` for j < m and ``Y = [C Ad^(im)]`` for i < L / m, each by doubling, and
``K = Y X``; with m about sqrt(L) that is some log2(L) batched products of N by N matrices. No
length is built into the parameters, so any L is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def state_space_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type of state-space results: float64 for float64 parameters, else float32."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def _product_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which powers of Ad are multiplied.

    They lose their meaning when products are rounded to ten or seven bits, which torch does to
    float32 matrices where it was allowed to (TF32 and the like); float64 is exempt from that.
    """
    backend = torch.backends.cuda if parameter.is_cuda else torch.backends.mkldnn
    if backend.matmul.fp32_precision in ("none", "ieee"):
        return state_space_dtype(parameter)
    return torch.float64


def _real_pair(z: Tensor) -> Tensor:
    """Complex [..., n] to the real vector (Re z, Im z) [..., 2n]."""
    return torch.cat([z.real, z.imag], dim=-1)


def _real_matrix(z: Tensor) -> Tensor:
    """Complex [..., n] to the real matrix [..., 2n, 2n] that multiplies by z."""
    real, imaginary = torch.diag_embed(z.real), torch.diag_embed(z.imag)
    return torch.cat(
        [torch.cat([real, -imaginary], dim=-1), torch.cat([imaginary, real], dim=-1)], dim=-2
    )


def _tile(parameter: Tensor, num_features: int) -> Tensor:
    """[S, n] to [H, n]: feature h uses copy ``h % S``."""
    return parameter.repeat(num_features // parameter.shape[0], 1)


def discretize(
    log_decay: Tensor, frequency: Tensor, P: Tensor, B: Tensor, log_dt: Tensor
) -> tuple[Tensor, Tensor]:
    """Discretise the real form by the bilinear rule, in float64.

    ``I - dt/2 A_real = R + dt p p^T`` where R multiplies by ``1 - dt/2 w``, so its inverse is
    known in closed form (Sherman and Morrison) and ``Ad = 2 (I - dt/2 A)^-1 - I``. Nothing is
    ill-conditioned: the real part of ``1 - dt/2 w`` is above 1.

    Args:
        log_decay: ``log(-Re w)`` [S, n].
        frequency: ``Im w`` [S, n].
        P: Real pairs [S, n, 2].
        B: Real pairs [S, n, 2].
        log_dt: [H], S divides H.

    Returns:
        Ad [H, N, N] and Bd [H, N], float64.
    """
    num_features = log_dt.shape[0]
    w = torch.complex(-torch.exp(log_decay.double()), frequency.double())
    dt = torch.exp(log_dt.double())[:, None]
    P_complex = _tile(torch.view_as_complex(P.double()), num_features)
    B_complex = _tile(torch.view_as_complex(B.double()), num_features)
    inverse = 1 / (1 - dt / 2 * _tile(w, num_features))
    p = _real_pair(P_complex)
    left = _real_pair(inverse * P_complex)  # R^-1 p
    right = _real_pair(inverse.conj() * P_complex)  # R^-T p
    scale = dt / (1 + dt * (p * left).sum(dim=-1, keepdim=True))
    identity = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
    Ad = 2 * (_real_matrix(inverse) - (scale * left)[:, :, None] * right[:, None, :]) - identity
    B_real = _real_pair(B_complex)
    projection = scale * (right * B_real).sum(dim=-1, keepdim=True)
    Bd = dt * (_real_pair(inverse * B_complex) - projection * left)
    return Ad, Bd


def real_output(C: Tensor) -> Tensor:
    """Return ``C_real = 2 (Re C, -Im C)`` [K, H, N] of the real pairs C [K, H, n, 2]."""
    return 2 * torch.cat([C[..., 0], -C[..., 1]], dim=-1)


def two_level_kernel(Ad: Tensor, Bd: Tensor, C_real: Tensor, length_tokens: int) -> Tensor:
    """Return ``K[t] = C Ad^t Bd`` for t below the length.

    Args:
        Ad: [H, N, N].
        Bd: [H, N].
        C_real: [K, H, N].
        length_tokens: L, at least 1.

    Returns:
        [K, H, L].
    """
    num_columns = 1 << ((length_tokens - 1).bit_length() + 1) // 2
    num_rows = -(-length_tokens // num_columns)
    power = Ad
    columns = Bd[:, :, None]  # X: [H, N, j]
    while columns.shape[-1] < num_columns:
        columns = torch.cat([columns, power @ columns], dim=-1)
        power = power @ power
    # `power` is now Ad^m. Rows are ordered [H, K, i, N] so that a kernel is a row of blocks.
    rows = C_real.transpose(0, 1)[:, :, None, :]
    while rows.shape[2] < num_rows:
        missing = num_rows - rows.shape[2]
        # Both kernels in one product: broadcasting `power` over them would copy it.
        more = rows[:, :, :missing].flatten(1, 2) @ power
        rows = torch.cat([rows, more.view(*rows.shape[:2], -1, rows.shape[3])], dim=2)
        if rows.shape[2] < num_rows:
            power = power @ power
    kernel = (rows.flatten(1, 2) @ columns).view(*rows.shape[:2], -1)  # [H, K, i * m]
    return kernel[..., :length_tokens].transpose(0, 1)


def state_space_kernel(
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
    dtype = _product_dtype(C)
    Ad, Bd = discretize(log_decay, frequency, P, B, log_dt)
    C_real = real_output(C.to(dtype))
    kernel = two_level_kernel(Ad.to(dtype), Bd.to(dtype), C_real, length_tokens)
    return kernel.to(state_space_dtype(C))
