"""How large the measurements are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from finetune.settings import TrainingSettings

NETWORK: dict[str, Any] = {
    "d_model": 192,
    "num_heads": 6,
    "head_dim": 32,
    "d_ff": 768,
    "num_encoder_layers": 3,
    "num_decoder_layers": 2,
    "trained_length_tokens": 4096,
    "state_space_layers": 1,
    "state_dim": 32,
    "local_radius_tokens": 63,
    # No table of learned positions: summaries are longer than most targets of pretraining.
    "decoder_position": "rope",
}


@dataclass(frozen=True)
class Options:
    """Sizes of all questions."""

    data: Path | None = None
    """Holds the folders ``sotu``, ``peps``, ``sumpubmed``, ``sst2``, ``mrpc`` and
    ``movie_reviews``; None: small invented ones."""
    folder: Path = field(default_factory=lambda: Path(mkdtemp(prefix="spade-downstream-")))
    """Where corpora, runs and results are kept; what is there is not made again."""
    workers: int = 2
    """Processes of one thread each that work at the same time; 0: this process, all its threads."""
    network: dict[str, Any] = field(default_factory=lambda: NETWORK)
    vocab_size: int = 6144
    pretraining_steps: int = 2300
    """Of each network; about one epoch."""
    continued_steps: int = 400
    """With movie reviews, in the batches of pretraining; about one epoch."""
    pretraining_cpu_minutes: float = 60.0
    """Of each network, user and system time; a run that needs more is stopped there."""
    pretraining_length_tokens: int = 1024
    pretraining_batch_size: int = 4
    precision: str = "bfloat16"
    """bfloat16 or float32, of everything."""
    sentences: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            epochs=3, batch_size=32, learning_rate=1e-3, dropout=0.1, seeds=3, patience=None
        )
    )
    summaries: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            epochs=1, batch_size=2, micro_batch_size=1, learning_rate=1e-3, patience=None
        )
    )
    reviews: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(
            epochs=3, batch_size=16, micro_batch_size=4, learning_rate=2e-3, patience=None
        )
    )
    summary_input_tokens: int = 4096
    cut_input_tokens: int = 512
    beams: int = 1
    """1 is greedy; with more, every step copies what all of them read of 4,096 tokens."""
    most_summary_tokens: int = 512


SMOKE = Options(
    workers=0,
    network=NETWORK
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
    vocab_size=400,
    pretraining_steps=4,
    continued_steps=4,
    pretraining_length_tokens=64,
    precision="float32",
    sentences=TrainingSettings(epochs=1, batch_size=8, seeds=2),
    summaries=TrainingSettings(epochs=1, batch_size=4, micro_batch_size=2),
    reviews=TrainingSettings(epochs=1, batch_size=4),
    summary_input_tokens=128,
    cut_input_tokens=32,
    beams=2,
    most_summary_tokens=8,
)
"""Everything once, at sizes that show only that it runs."""
