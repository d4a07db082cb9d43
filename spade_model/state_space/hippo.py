"""HiPPO-LegS and its normal-plus-low-rank form: where a state-space layer starts from.

Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces" (S4,
arXiv 2111.00396), theorem 1 and appendix C; all in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NormalPlusLowRank(NamedTuple):
    """``A = V (diag(w, w*) - (P, P*)(P, P*)^H) V^H`` and ``B`` in the basis V, one of each pair.

    All are complex128 of shape [N / 2]; the conjugate halves are left out.
    """

    w: Tensor
    P: Tensor
    B: Tensor


def hippo_legs(state_dim: int) -> tuple[Tensor, Tensor]:
    """Return the HiPPO-LegS matrices.

    ``A[i, j] = -sqrt((2i+1)(2j+1))`` below the diagonal, ``-(i+1)`` on it, 0 above;
    ``B[i] = sqrt(2i+1)``.

    Args:
        state_dim: N.

    Returns:
        A [N, N] and B [N], float64.
    """
    index = torch.arange(state_dim, dtype=torch.float64, device="cpu")
    root = torch.sqrt(2 * index + 1)
    A = -torch.tril(torch.outer(root, root), diagonal=-1) - torch.diag(index + 1)
    return A, root


def normal_plus_low_rank_legs(state_dim: int) -> NormalPlusLowRank:
    """Diagonalise HiPPO-LegS up to rank one.

    With ``P[i] = sqrt(i + 1/2)`` the matrix ``S = A + P P^T`` is ``-I/2`` plus a skew-symmetric
    one, so ``-iS`` without its real part is Hermitian. Of each conjugate pair of eigenvalues we
    keep the one with the negative imaginary part, the most negative first. The phases of the
    eigenvectors are arbitrary and cancel in every product that the layer uses.

    Args:
        state_dim: N, even.
    """
    A, B = hippo_legs(state_dim)
    P = torch.sqrt(torch.arange(state_dim, dtype=torch.float64, device="cpu") + 0.5)
    S = A + torch.outer(P, P)
    real_part = S.diagonal().mean()
    skew = (S - S.T) / 2
    imaginary_part, V = torch.linalg.eigh(-1j * skew)
    half = state_dim // 2
    basis = V[:, :half].mH
    w = torch.complex(real_part.expand(half), imaginary_part[:half])
    return NormalPlusLowRank(w=w, P=basis @ P.to(V.dtype), B=basis @ B.to(V.dtype))
