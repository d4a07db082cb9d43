"""How large the measurements are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

SMALL_MODEL: dict[str, Any] = {
    "d_model": 32,
    "num_heads": 2,
    "head_dim": 16,
    "d_ff": 64,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "state_dim": 8,
    "local_radius_tokens": 15,
}
LARGER_MODEL: dict[str, Any] = {
    "d_model": 256,
    "num_heads": 4,
    "head_dim": 64,
    "d_ff": 1024,
    "num_encoder_layers": 4,
    "num_decoder_layers": 4,
    "state_dim": 16,
    "local_radius_tokens": 63,
}
WIDE_MODEL: dict[str, Any] = LARGER_MODEL | {
    "d_model": 768,
    "num_heads": 8,
    "head_dim": 96,
    "d_ff": 3072,
    "num_encoder_layers": 5,
    "num_decoder_layers": 5,
}


@dataclass(frozen=True)
class Options:
    """Sizes of all questions."""

    model: dict[str, Any] = field(default_factory=lambda: LARGER_MODEL)
    """Where the time of a step is measured."""
    input_length_tokens: int = 512
    global_batch_size: int = 8
    micro_batch_size: int = 4
    warm_up_steps: int = 3
    overhead_rounds: int = 40
    """Pairs of a step of the engine and one of the bare loop."""
    stages: tuple[int, ...] = (0, 1, 2, 3)
    precisions: tuple[str, ...] = ("fp32", "bf16")
    stall_steps: int = 60
    stall_every_steps: int = 10
    start_rounds: int = 3
    processes: int = 2
    late_step: int = 10**6
    kills: int = 20
    """In each of the runs that are killed."""
    killed_run_steps: int = 300
    export_model: dict[str, Any] = field(default_factory=lambda: WIDE_MODEL)
    """What is exported: about 85 million weights, beside which all else is little."""
    seed: int = 0
    """Of the moments of the kills."""
    folder: Path = field(default_factory=lambda: Path(mkdtemp(prefix="spade-benchmarks-engine-")))
    """Where data and runs are kept."""


SMOKE = Options(
    model=SMALL_MODEL,
    input_length_tokens=64,
    warm_up_steps=1,
    overhead_rounds=3,
    stages=(2,),
    precisions=("fp32",),
    stall_steps=8,
    stall_every_steps=4,
    start_rounds=1,
    processes=1,
    kills=1,
    killed_run_steps=6,
    export_model=SMALL_MODEL,
)
"""Everything once, at sizes that show only that it runs."""
