"""How large the measurement of question (d) is."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.model.encoders import Sizes


@dataclass(frozen=True)
class ScalingOptions:
    """Of question (d)."""

    lengths_tokens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    fit_from_tokens: int = 4096
    """Shortest length that exponents are fitted to."""
    sizes: Sizes = field(
        default_factory=lambda: Sizes(d_model=128, num_heads=4, d_ff=512, vocab_size=4096)
    )
    layers: int = 2
    memory_limit_gib: float = 8.0
    """Of one process, above weights and libraries."""
    cpu_limit_seconds: float = 40.0
    """Of one process, all its passes together."""


SMOKE = ScalingOptions(
    lengths_tokens=(64, 128),
    fit_from_tokens=64,
    sizes=Sizes(d_model=32, num_heads=2, d_ff=64, radius=15, vocab_size=256, state_dim=16),
    layers=1,
)
"""Shows only that it runs."""
