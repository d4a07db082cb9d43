"""How long the state-space layers remember: the spectral radius and the time steps of each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spade_model.state_space.continuous import ContinuousStateSpace
from spade_model.state_space.mixer import SequenceMixer
from spade_model.state_space.recurrence import DiagonalRecurrence
from spade_model.state_space.s4 import S4


@torch.no_grad()
def state_space_statistics(model: nn.Module) -> dict[str, float]:
    """Look at every state space of a model.

    The spectral radius is the largest modulus of an eigenvalue of a transition; a state fades by
    it at each token, so ``memory_tokens = -1 / log(radius)`` tokens are remembered to one part in
    e. At 1 or above a layer would not forget, and its kernel would grow.

    Args:
        model: With whole parameters; under ZeRO 3 those of the mixers must have been gathered.

    Returns:
        For each layer with a state space, under ``state_space/LAYER/``: ``spectral_radius``,
        ``memory_tokens`` and, where there are time steps, ``dt_min``, ``dt_median``, ``dt_max``.
        LAYER is the layer's name in the model, such as ``encoder.layers.0``. A layer that holds
        NaN or infinities has the radius NaN.
    """
    facts: dict[str, float] = {}
    for name, mixer in _mixers(model):
        # Differences from 1 are what counts, hence the logarithm.
        slowest = _slowest(mixer)
        found = {"spectral_radius": math.exp(slowest)}
        if slowest < 0:
            found["memory_tokens"] = -1 / slowest
        if isinstance(mixer, ContinuousStateSpace):
            dt = mixer.log_dt.detach().double().exp()
            found |= {
                "dt_min": float(dt.min()),
                "dt_median": float(dt.median()),
                "dt_max": float(dt.max()),
            }
        layer = name.removeprefix("model.").removesuffix(".mixing.state_space")
        facts |= {f"state_space/{layer}/{key}": value for key, value in found.items()}
    return facts


def _mixers(model: nn.Module) -> Iterator[tuple[str, SequenceMixer]]:
    for name, module in model.named_modules():
        if isinstance(module, SequenceMixer):
            yield name, module


def _slowest(mixer: SequenceMixer) -> float:
    """Logarithm of the largest modulus of a mixer's discrete eigenvalues."""
    if not all(bool(values.isfinite().all()) for values in mixer.state_dict().values()):
        return math.nan
    if isinstance(mixer, S4):
        return float(_log_moduli_of_s4(mixer).max())
    recurrence = mixer.compute_recurrence()
    assert isinstance(recurrence, DiagonalRecurrence), f"{type(mixer).__name__} is not diagonal"
    return float(recurrence.log_transition.real.max())


def _log_moduli_of_s4(mixer: S4) -> Tensor:
    """Through the continuous eigenvalues, which the bilinear rule maps one by one.

    ``a = (1 + dt/2 w) / (1 - dt/2 w)``, so ``log |a|^2 = log1p(4 x / |1 - dt/2 w|^2)`` with
    ``x = Re(dt/2 w)``: nothing is lost where a is next to 1. Copies of the system that are equal,
    as all are unless A is learned, are decomposed once, and on the CPU: LAPACK is what GPUs use
    for eigenvalues of general matrices too.

    Returns:
        [H, N].
    """
    system = torch.cat(
        [
            values.detach().cpu().double().flatten(1)
            for values in (mixer.log_decay, mixer.frequency, mixer.P)
        ],
        dim=1,
    )
    distinct, which = torch.unique(system, dim=0, return_inverse=True)
    half = mixer.frequency.shape[-1]
    log_decay, frequency, low_rank = distinct.split([half, half, 2 * half], dim=1)
    eigenvalues = torch.linalg.eigvals(
        _continuous_matrix(log_decay, frequency, low_rank.unflatten(1, (half, 2)))
    )
    log_dt = mixer.log_dt.detach().cpu().double()
    copies = which.repeat(log_dt.numel() // len(which))  # feature h uses copy h % S
    scaled = eigenvalues[copies] * (log_dt.exp() / 2)[:, None]
    distance_squared = (1 - scaled).abs().square()
    return torch.log1p(4 * scaled.real / distance_squared) / 2


def _continuous_matrix(log_decay: Tensor, frequency: Tensor, P: Tensor) -> Tensor:
    """A in the real form of `s4_kernel`, ``[[Re w, -Im w], [Im w, Re w]] - 2 p p^T``.

    Args:
        log_decay: ``log(-Re w)`` [S, n].
        frequency: ``Im w`` [S, n].
        P: Real pairs [S, n, 2].

    Returns:
        [S, 2n, 2n].
    """
    real, imaginary = torch.diag_embed(-log_decay.exp()), torch.diag_embed(frequency)
    blocks = torch.cat(
        [torch.cat([real, -imaginary], dim=2), torch.cat([imaginary, real], dim=2)], dim=1
    )
    p = torch.cat([P[..., 0], P[..., 1]], dim=1)
    return blocks - 2 * p[:, :, None] * p[:, None, :]
