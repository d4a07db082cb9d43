"""How large the measurement of question (e) is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_pipeline.objectives.span_corruption import SpanCorruption


@dataclass(frozen=True)
class DataOptions:
    """What decides about the samples."""

    vocab_size: int = 1536
    """Small, so that a network gets beyond frequencies within minutes."""
    sentinels: int = 256
    shortest_document_bytes: int = 16_000
    """Shorter documents are left out: about two windows."""
    heldout_fraction: float = 0.06
    """Of whole documents."""
    input_length_tokens: int = 2048
    """Longest encoder input, after span corruption at T5's 15 % and mean length 3."""
    windows: int = 64
    """Held out, for the losses that are reported."""
    watched_windows: int = 16
    """Held out beside these, for curves and the choice of learning rates."""

    @property
    def heldout_windows(self) -> int:
        """Of both kinds."""
        return self.windows + self.watched_windows

    @property
    def objective(self) -> SpanCorruption:
        """What is made of windows."""
        return SpanCorruption(self.input_length_tokens)


@dataclass(frozen=True)
class RunOptions:
    """What all networks have in common."""

    model: dict[str, Any] = field(
        default_factory=lambda: {
            "d_model": 128,
            "num_heads": 4,
            "head_dim": 32,
            "d_ff": 512,
            "num_encoder_layers": 3,
            "num_decoder_layers": 2,
            "state_dim": 32,
            "local_radius_tokens": 63,
            # As T5 has it.
            "norm": "rms_norm",
            "embedding_norm": False,
            "shared_relative_bias": True,
            "decoder_position": "relative_bias",
        }
    )
    """Of `SpadeConfig`; without a state space and with full attention it is T5's architecture."""
    state_space_rate_factor: float = 1 / 3
    """Of the learning rate."""
    warm_up_share: float = 0.03
    """Of the budget; a cosine to a twentieth of the rate follows."""
    gradient_norm: float = 1.0
    """To which larger gradients are cut."""
    first_watched_step: int = 16
    """The loss is watched there, at twice as many steps, and so on, and at the end."""
    piece_tokens: int = 256
    """To which the encoder's sight is cut, in a measurement of what it makes of far context."""


@dataclass(frozen=True)
class PretrainingOptions:
    """Of question (e)."""

    cpu_minutes: float = 3.0
    """Of each run."""
    learning_rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2)
    """Tried for each network; Muon's, and AdamW's for what Muon does not take."""
    trial_share: float = 1 / 6
    """Of a run's budget, for each trial."""
    data: DataOptions = field(default_factory=DataOptions)
    run: RunOptions = field(default_factory=RunOptions)
    invented: bool = False
    """Learn small invented documents where there is no folder of real ones."""


SMOKE = PretrainingOptions(
    cpu_minutes=0.01,
    learning_rates=(3e-3,),
    data=DataOptions(
        vocab_size=400,
        shortest_document_bytes=500,
        heldout_fraction=0.2,
        input_length_tokens=64,
        windows=8,
        watched_windows=2,
    ),
    run=RunOptions(
        model=RunOptions().model
        | {
            "d_model": 32,
            "num_heads": 2,
            "head_dim": 16,
            "d_ff": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 1,
            "state_dim": 8,
            "local_radius_tokens": 15,
        },
        first_watched_step=1,
        piece_tokens=16,
    ),
    invented=True,
)
"""Everything once, at sizes that show only that it runs."""
