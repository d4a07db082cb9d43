"""How large the measurements are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.paper.pretraining_options import SMOKE as SMOKE_PRETRAINING
from benchmarks.paper.pretraining_options import PretrainingOptions
from benchmarks.paper.scaling_options import SMOKE as SMOKE_SCALING
from benchmarks.paper.scaling_options import ScalingOptions


@dataclass(frozen=True)
class RecallOptions:
    """Of question (a)."""

    length_tokens: int = 1024
    batch: int = 8
    steps: int = 1000
    full_steps: int = 200
    """Of full attention, which needs fewer."""
    every_steps: int = 50
    """Between evaluations."""
    texts: int = 48
    """Of an evaluation."""
    ceiling_texts: int = 2000
    """Simulated for the ceilings."""
    model: dict[str, Any] = field(default_factory=dict)
    """Changes to `benchmarks.common.far_header.tagger_config`."""


@dataclass(frozen=True)
class AblationOptions:
    """Of question (b)."""

    length_tokens: int = 512
    batch: int = 8
    steps: int = 400
    every_steps: int = 25
    texts: int = 48
    """Of an evaluation."""
    most_seeds: int = 2
    model: dict[str, Any] = field(default_factory=lambda: {"num_encoder_layers": 3})
    """Of the base: changes to `benchmarks.common.far_header.tagger_config`."""


LANGUAGE_MODEL: dict[str, Any] = {
    "d_model": 64,
    "num_heads": 2,
    "head_dim": 32,
    "d_ff": 256,
    "num_decoder_layers": 3,
    "state_dim": 16,
    "local_radius_tokens": 63,
}


@dataclass(frozen=True)
class ExtrapolationOptions:
    """Of question (c)."""

    trained_tokens: int = 1024
    recall_tokens: tuple[int, ...] = (1024, 4096, 16_384)
    """Lengths that taggers are asked at."""
    texts: tuple[int, ...] = (48, 48, 24)
    """Of each length and kind."""
    full_texts: tuple[int, ...] = (48, 12)
    """The same for full attention, of as many lengths."""
    batch: int = 8
    steps: int = 500
    full_steps: int = 100
    every_steps: int = 50
    """Between evaluations."""
    tagger: dict[str, Any] = field(default_factory=dict)
    """Changes to `benchmarks.common.far_header.tagger_config`."""
    language: dict[str, Any] = field(default_factory=lambda: LANGUAGE_MODEL)
    language_tokens: tuple[int, ...] = (1024, 4096, 16_384)
    """Context that language models are asked with."""
    language_batch: int = 4
    language_steps: int = 200
    language_full_steps: int = 90
    """Of full attention, whose steps take more than twice as long."""
    documents: int = 12
    """Held-out ones, one window each."""
    artificial: bool = False
    """Take an artificial text where there are no real documents."""


@dataclass(frozen=True)
class Options:
    """Sizes of all questions.

    Fields named as a question are its own sizes.
    """

    out: Path = field(default_factory=lambda: Path(mkdtemp(prefix="spade-paper-")))
    """Where cells, tables and plots are kept; what is there is not measured again."""
    data: Path | None = None
    """Folder of real documents, holding ``sotu`` and what else pretraining asks for."""
    workers: int = 2
    """Processes of one thread each that measure at the same time; 0: this process."""
    seeds: tuple[int, ...] = (0, 1, 2)
    recall: RecallOptions = field(default_factory=RecallOptions)
    ablations: AblationOptions = field(default_factory=AblationOptions)
    extrapolation: ExtrapolationOptions = field(default_factory=ExtrapolationOptions)
    scaling: ScalingOptions = field(default_factory=ScalingOptions)
    pretraining: PretrainingOptions = field(default_factory=PretrainingOptions)


_TINY_TAGGER: dict[str, Any] = {
    "d_model": 16,
    "num_heads": 2,
    "head_dim": 8,
    "d_ff": 32,
    "state_dim": 4,
    "local_radius_tokens": 7,
}
SMOKE = Options(
    workers=0,
    seeds=(0,),
    recall=RecallOptions(
        length_tokens=128,
        batch=2,
        steps=4,
        full_steps=2,
        every_steps=2,
        texts=3,
        ceiling_texts=60,
        model=_TINY_TAGGER,
    ),
    ablations=AblationOptions(
        length_tokens=128,
        batch=2,
        steps=2,
        every_steps=1,
        texts=3,
        model=_TINY_TAGGER | {"num_encoder_layers": 3},
    ),
    extrapolation=ExtrapolationOptions(
        trained_tokens=128,
        recall_tokens=(128, 2048),
        texts=(2, 2),
        full_texts=(2,),
        batch=2,
        steps=2,
        full_steps=2,
        every_steps=1,
        tagger=_TINY_TAGGER,
        language=LANGUAGE_MODEL | _TINY_TAGGER | {"num_decoder_layers": 2},
        language_tokens=(128, 256),
        language_batch=2,
        language_steps=2,
        language_full_steps=2,
        documents=3,
        artificial=True,
    ),
    scaling=SMOKE_SCALING,
    pretraining=SMOKE_PRETRAINING,
)
"""Everything once, at sizes that show only that it runs."""
