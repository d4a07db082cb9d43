"""How a recipe trains: what all recipes have in common."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from finetune.errors import FinetuneError

Precision = Literal["float32", "bfloat16"]

MOST_ROWS_AT_ONCE = 16
"""Rows that a process takes at once unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What the user chooses, whatever the recipe.

    Raises:
        FinetuneError: A value is impossible.
    """

    epochs: int = 10
    """Passes over the training rows, unless the validation score ends it earlier."""
    batch_size: int = 32
    """Rows of one step, over all processes."""
    micro_batch_size: int | None = None
    """Rows that a process takes at once; None: as many as divide its part, at most 16."""
    learning_rate: float = 3e-4
    """Peak rate outside the state-space layers; it falls linearly to 0."""
    state_space_learning_rate: float | None = None
    """Peak rate of the state-space layers; None: a quarter of `learning_rate`."""
    weight_decay: float = 0.01
    """Of matrices; norms, biases and state-space parameters never decay."""
    warmup_share: float = 0.06
    """Share of the steps in which the rates rise."""
    evaluate_every_steps: int | None = None
    """Steps between validations, each with a checkpoint; None: one an epoch."""
    patience: int | None = 3
    """Validations in a row without a better score that end the training; None: never."""
    seeds: int = 1
    """Trainings, each with its own order of rows, dropout, and new weights."""
    first_seed: int = 0
    """Seed of the first one; the others count up."""
    dropout: float | None = None
    """None: as in the exported configuration."""
    precision: Precision | None = None
    """Of activations; None: bfloat16 on a GPU that has it, else float32. Weights are float32."""
    zero_stage: int | None = None
    """DeepSpeed's stage; None: 2 with several processes, without DeepSpeed alone."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass, which saves memory on long inputs."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_size", "evaluate_every_steps"):
            self._check(name, 1, math.inf, "1 or more")
        for name in ("patience", "seeds"):
            self._check(name, 1, math.inf, "1 or more")
        for name in ("learning_rate", "state_space_learning_rate"):
            self._check(name, 1e-12, 1, "above 0 and at most 1")
        self._check("first_seed", 0, 2**31 - 1, "from 0 to 2147483647")
        self._check("weight_decay", 0, 1, "from 0 to 1")
        self._check("warmup_share", 0, 0.9, "from 0 to 0.9")
        self._check("dropout", 0, 0.9, "from 0 to 0.9")
        self._check("zero_stage", 0, 2, "0, 1 or 2: stage 3 would shard the weights themselves")
        if self.precision not in (None, *get_args(Precision)):
            raise FinetuneError(f"precision is {self.precision!r}: use float32 or bfloat16")

    def _check(self, name: str, least: float, most: float, remedy: str) -> None:
        value = getattr(self, name)
        # Not `<`: a NaN is outside as well.
        if value is not None and not least <= value <= most:
            raise FinetuneError(f"{name} is {value}: use {remedy}")

    @property
    def state_space_rate(self) -> float:
        """Peak rate of the state-space layers."""
        rate = self.state_space_learning_rate
        return self.learning_rate / 4 if rate is None else rate

    def rows_at_once(self, processes: int) -> int:
        """Rows that each of some processes takes at once.

        Raises:
            FinetuneError: The batch cannot be cut so.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest or share == 0:
            raise FinetuneError(
                f"batch_size is {self.batch_size}: use a multiple of the {processes} processes"
            )
        if self.micro_batch_size is None:
            return max(n for n in range(1, MOST_ROWS_AT_ONCE + 1) if share % n == 0)
        if share % self.micro_batch_size:
            raise FinetuneError(
                f"micro_batch_size is {self.micro_batch_size}: use a divisor of {share}, the rows "
                f"of one step on each of {processes} processes"
            )
        return self.micro_batch_size

    def steps_per_epoch(self, rows: int, processes: int) -> int:
        """Optimizer steps of one pass over some rows."""
        at_once = self.rows_at_once(processes)
        micro_batches = math.ceil(math.ceil(rows / at_once) / processes)
        return math.ceil(micro_batches / self.accumulation_steps(processes))

    def accumulation_steps(self, processes: int) -> int:
        """Micro-batches of one step on each of some processes."""
        return self.batch_size // (self.rows_at_once(processes) * processes)

    def decisive(self) -> dict[str, Any]:
        """What must be the same when a run goes on; how many seeds there are may change."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "seeds"}
