"""How large the measurements are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SMALL_MODEL: dict[str, Any] = {
    "vocab_size": 512,
    "d_model": 64,
    "num_heads": 4,
    "head_dim": 16,
    "d_ff": 256,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "state_dim": 16,
    "local_radius_tokens": 63,
}
WIDE_MODEL: dict[str, Any] = {"vocab_size": 512}
"""Width, heads, window and states as `SpadeConfig` has them."""
TINY_MODEL: dict[str, Any] = SMALL_MODEL | {
    "d_model": 16,
    "head_dim": 4,
    "d_ff": 32,
    "state_dim": 4,
    "local_radius_tokens": 15,
}


@dataclass(frozen=True)
class Stage:
    """Texts of one length, trained on for some steps."""

    length_tokens: int
    """A multiple of 4, see `benchmarks.context.retrieval`."""
    batch: int
    steps: int

    @classmethod
    def parse(cls, text: str) -> Stage:
        """Read ``LENGTH:BATCH:STEPS``.

        Raises:
            ValueError: It is something else.
        """
        length_tokens, batch, steps = map(int, text.split(":"))
        if min(length_tokens, batch, steps) < 1 or length_tokens % 4:
            raise ValueError(f"{text!r} is no stage")
        return cls(length_tokens, batch, steps)


@dataclass(frozen=True)
class Options:
    """Sizes of all questions."""

    traffic_model: dict[str, Any] = field(default_factory=lambda: WIDE_MODEL)
    """Built with one layer of each kind."""
    traffic_tokens: tuple[int, ...] = (16_384, 131_072, 1_048_576)
    traffic_ranks: tuple[int, ...] = (2, 4, 8, 16)
    traffic_bytes: int = 2
    """Of one activation in the comparison; what is counted here is float32."""
    counted_tokens: tuple[int, ...] = (16_384, 65_536)
    counted_ranks: tuple[int, ...] = (2, 4)
    target_tokens: int = 256
    """That the decoder is given, in traffic and training."""

    model: dict[str, Any] = field(default_factory=lambda: SMALL_MODEL)
    """Of training and length; the latter has its encoder alone."""
    training_tokens: int = 262_144
    training_ranks: tuple[int, ...] = (1, 2, 4)
    training_steps: int = 3
    processes: int = 2
    """Of length and retrieval."""
    lengths: tuple[int, ...] = (16_384, 65_536, 262_144, 1_048_576)
    repeats: int = 3
    """Measured rounds of length."""

    stages: tuple[Stage, ...] = (
        Stage(1_024, batch=8, steps=2_000),  # After 700 steps it answers two of three.
        Stage(4_096, batch=4, steps=250),
        Stage(16_384, batch=2, steps=80),
        Stage(65_536, batch=1, steps=20),
    )
    """Of the training for retrieval, one after the other."""
    retrieval_tokens: tuple[int, ...] = (1_024, 16_384, 262_144, 524_288)
    """Lengths of the texts that are asked about."""
    texts: int = 24
    """Of each length."""
    seed: int = 0


SMOKE = Options(
    traffic_model=TINY_MODEL,
    traffic_tokens=(16_384,),
    traffic_ranks=(2, 4),
    counted_tokens=(64, 128),
    counted_ranks=(2,),
    target_tokens=8,
    model=TINY_MODEL,
    training_tokens=512,
    training_ranks=(1, 2),
    training_steps=2,
    lengths=(128, 512),
    repeats=1,
    stages=(Stage(256, batch=2, steps=2), Stage(512, batch=1, steps=1)),
    retrieval_tokens=(256, 1_024),
    texts=2,
)
"""Everything once, at sizes that show only that it runs."""
