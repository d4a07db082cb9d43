"""How a tensor's values are distributed, in numbers small enough to log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_BINS = 64
_PART = 2**20


@dataclass(frozen=True)
class Histogram:
    """Counts of a tensor's finite values in bins of equal width."""

    smallest: float
    largest: float
    count: int
    """Finite values."""
    total: float
    """Their sum."""
    sum_of_squares: float
    edges: tuple[float, ...]
    """Borders of the bins, one more than there are bins, from `smallest` to `largest`."""
    counts: tuple[int, ...]
    """Values in each bin; the last bin includes its upper border."""
    non_finite: int
    """Values that are NaN or infinite, and in no bin."""


@torch.no_grad()
def histogram_of(values: Tensor) -> Histogram:
    """Count a tensor's values on its own device; only the counts leave it.

    Args:
        values: Real, of any shape and device. Beyond it a few dozen megabytes are needed.
    """
    flat = values.detach().flatten()
    starts = range(0, flat.numel(), _PART)
    finite_parts = [_finite(flat[start : start + _PART]) for start in starts]
    bounds = [torch.aminmax(part) for part in finite_parts if part.numel()]
    count = sum(part.numel() for part in finite_parts)
    if not bounds:
        return Histogram(0.0, 0.0, 0, 0.0, 0.0, (0.0, 0.0), (0,), values.numel())
    smallest = min(low.item() for low, _ in bounds)
    largest = max(high.item() for _, high in bounds)
    width = (largest - smallest) / _BINS
    bins = _BINS if width > 0 else 1
    counts = torch.zeros(bins, dtype=torch.int64, device=values.device)
    total = sum_of_squares = 0.0
    for part in finite_parts:
        precise = part.double()
        # Counted here and not by torch.histc, whose form for GPUs differs from run to run.
        places = ((precise - smallest) / (width or 1)).long().clamp_(0, bins - 1)
        counts += torch.bincount(places, minlength=bins)
        total += precise.sum().item()
        sum_of_squares += precise.square().sum().item()
    edges = [smallest + width * number for number in range(bins)] + [largest]
    return Histogram(
        smallest=smallest,
        largest=largest,
        count=count,
        total=total,
        sum_of_squares=sum_of_squares,
        edges=tuple(edges),
        counts=tuple(counts.tolist()),
        non_finite=values.numel() - count,
    )


def _finite(part: Tensor) -> Tensor:
    """The finite values of a vector: itself where all are."""
    is_finite = torch.isfinite(part)
    return part if bool(is_finite.all()) else part[is_finite]


def model_histograms(model: nn.Module) -> Iterator[tuple[str, Histogram]]:
    """Histograms of all parameters, one at a time.

    Args:
        model: With whole parameters; under ZeRO 3 they must have been gathered.

    Yields:
        ``weights/NAME`` and the histogram.
    """
    for name, parameter in model.named_parameters():
        yield f"weights/{name}", histogram_of(parameter)
