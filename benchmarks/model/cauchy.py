"""The S4 kernel by its Cauchy sum, the way of the paper: what ours is compared with.

A plain and correct version (arXiv 2111.00396, appendix C): the generating function of the kernel at
the L-th roots of unity, of which the kernel is the inverse transform. Memory and time grow with
features * states * length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spade_model.state_space.s4 import S4


def _pairs(x: Tensor, features: int) -> Tensor:
    """Complex [S, n] to all 2n conjugates for each feature, [H, 2n]."""
    both = torch.cat([x, x.conj()], dim=-1)
    return both.repeat(features // both.shape[0], 1)


def cauchy_kernel(mixer: S4, length: int) -> Tensor:
    """Return the kernels [K, H, L] of an S4 layer in the precision of its parameters.

    ``K^(w) = 2 / (1 + w) (r_CB - r_CP r_QB / (1 + r_QP))`` with ``r_xy = dt sum x y / (z - dt a)``,
    ``z = 2 (1 - w) / (1 + w)``, Q = P*, and ``C~ = C (I - Ad^L)`` in place of C, which makes the
    truncated generating function a rational one.
    """
    features = mixer.log_dt.shape[0]
    dt = torch.exp(mixer.log_dt)[:, None]
    spectrum = torch.complex(-torch.exp(mixer.log_decay), mixer.frequency)
    a, P = _pairs(spectrum, features), _pairs(torch.view_as_complex(mixer.P), features)
    B = _pairs(torch.view_as_complex(mixer.B), features)
    half = torch.view_as_complex(mixer.C)
    C = torch.cat([half, half.conj()], dim=-1).transpose(0, 1)  # [H, K, 2n]
    C = C - C @ _power(a, P, dt, length).to(C.dtype)

    count = length // 2 + 1
    angles = -2 * torch.pi * torch.arange(count, dtype=torch.float64) / length
    omega = torch.polar(torch.ones_like(angles), angles)
    last_is_infinite = length % 2 == 0
    if last_is_infinite:
        omega[-1] = 1  # replaced below by its limit
    z = (2 * (1 - omega) / (1 + omega)).to(a.dtype)
    weight = (2 / (1 + omega)).to(a.dtype)
    sums = dt[:, :, None] / (z - (dt * a)[:, :, None])  # [H, 2n, count]
    Q = P.conj()
    left = torch.cat([C * B[:, None], C * P[:, None], (Q * B)[:, None], (Q * P)[:, None]], dim=1)
    r = left @ sums  # [H, 2K + 2, count]
    kernels = C.shape[1]
    r_CB, r_CP, r_QB, r_QP = r.split([kernels, kernels, 1, 1], dim=1)
    values = weight * (r_CB - r_CP * r_QB / (1 + r_QP))
    if last_is_infinite:
        limit = dt[:, :, None] * (C @ B[:, :, None]) / 2
        values = torch.cat([values[..., :-1], limit], dim=-1)
    return torch.fft.irfft(values, n=length).transpose(0, 1)


def _power(a: Tensor, P: Tensor, dt: Tensor, length: int) -> Tensor:
    """Return Ad^L [H, 2n, 2n], complex128 and without gradients, as the published code does."""
    with torch.no_grad():
        a, P, dt = a.to(torch.complex128), P.to(torch.complex128), dt.double()
        A = torch.diag_embed(a) - P[:, :, None] * P.conj()[:, None]
        one = torch.eye(a.shape[-1], dtype=A.dtype)
        half = dt[:, :, None] / 2 * A
        return torch.linalg.matrix_power(torch.linalg.solve(one - half, one + half), length)
