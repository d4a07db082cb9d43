"""What a configuration says about the update: optimizer, schedule, curriculum, spikes."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pretrain.errors import ConfigError
from pretrain.section import NonNegative, Positive, Section

OptimizerKind = Literal["adamw", "adamw_rms", "adafactor", "muon"]
ScheduleKind = Literal["inverse_sqrt", "cosine", "wsd", "constant"]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, lt=1)]

BETAS = (0.9, 0.98)
EPSILON = 1e-8
MOMENTUM = 0.95


class OptimizerSettings(Section):
    """The update, in groups: decayed, not decayed, state-space; see `docs/training.md`."""

    kind: OptimizerKind = "adamw"
    """`adamw`; `adamw_rms`: AdamW whose step is scaled by each tensor's own size; `adafactor`;
    `muon`: orthogonal steps for the matrices of the layers, AdamW for everything else. All but
    `adamw` need `deepspeed.zero_stage: 0`."""
    learning_rate: Rate
    """Peak rate of every parameter outside the state-space layers. `adamw_rms` and `adafactor`
    measure it in units of the tensor's own size: 1e-2 is common."""
    state_space_learning_rate: Rate | None = None
    """Peak rate of the state-space parameters; none means `learning_rate`."""
    state_space_learning_rates: dict[str, Rate] = Field(default_factory=dict)
    """Peak rates of single state-space quantities, such as ``{log_dt: 1.0e-4}``, where they differ
    from `state_space_learning_rate`. Names are those of `model.trainable_state_space`, and for an
    EMA those of its tensors."""
    learning_rate_multipliers: dict[str, Rate] = Field(default_factory=dict)
    """Factors for the rates of the parameters whose names match a shell-style pattern, such as
    ``{"*.decoder.*": 0.5}``; a pattern that matches no trained parameter is an error."""
    momentum: Moment = MOMENTUM
    """For `muon` alone: how much of the mean gradient of a matrix is kept at each step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of matrices and embeddings; norms, biases and state-space parameters never decay."""
    betas: tuple[Moment, Moment] = BETAS
    """Decay rates of AdamW's two moments."""
    epsilon: Annotated[float, Field(gt=0)] = EPSILON
    """Added to the root of AdamW's second moment."""

    @model_validator(mode="after")
    def _settings_belong_to_the_kind(self) -> OptimizerSettings:
        if self.kind == "adafactor" and (self.betas != BETAS or self.epsilon != EPSILON):
            raise ValueError(
                f"optimizer.betas {list(self.betas)} and optimizer.epsilon {self.epsilon} are "
                "AdamW's, and optimizer.kind is adafactor; leave both out"
            )
        if self.kind != "muon" and self.momentum != MOMENTUM:
            raise ValueError(
                f"optimizer.momentum {self.momentum} is muon's, and optimizer.kind is {self.kind}; "
                "leave it out"
            )
        return self

    def check_sharding(self, zero_stage: int) -> None:
        """Refuse kinds whose step depends on whole tensors where ranks hold flattened shards.

        At ZeRO stages 1 to 3 an optimizer sees one long vector of many tensors. The RMS of that
        vector is near the embedding's: scaled by it, the steps of attention's matrices would be 27
        to 217 times too large (measured). DeepSpeed's own Muon is exact there, yet it measures and
        clips the norm of the orthogonal steps, so with `train.gradient_clipping` the steps shrink
        by that norm and no spike of the gradients can be seen.

        Raises:
            ConfigError: If this kind does not work at this stage.
        """
        if zero_stage > 0 and self.kind != "adamw":
            raise ConfigError(
                f"optimizer.kind {self.kind} needs whole tensors, and deepspeed.zero_stage "
                f"{zero_stage} gives each rank a flattened shard, whose steps would be of a wrong "
                "size; set deepspeed.zero_stage to 0 or optimizer.kind to adamw"
            )


class ScheduleSettings(Section):
    """How the learning rates move; see `pretrain.optimization.schedules`."""

    kind: ScheduleKind = "cosine"
    """`inverse_sqrt`, `cosine`, `wsd` (warm-up, stable, decay), or `constant`."""
    warmup_steps: NonNegative | None = None
    """Updates of linear warm-up; 100 where `warmup_tokens` is not given either."""
    warmup_tokens: Positive | None = None
    """Tokens of linear warm-up, instead of `warmup_steps`."""
    decay_steps: NonNegative = 0
    """Updates of the closing decay; for `wsd`, where it must be above 0."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Rate at the last step over the peak rate; for `cosine` and `wsd`."""

    @model_validator(mode="after")
    def _values_fit_together(self) -> ScheduleSettings:
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ValueError(
                f"schedule.warmup_steps {self.warmup_steps} and schedule.warmup_tokens "
                f"{self.warmup_tokens} are both given; keep one of them"
            )
        if self.kind == "wsd" and self.decay_steps == 0:
            raise ValueError(
                "schedule.decay_steps is 0; kind: wsd needs a decay, a tenth of max_steps is common"
            )
        if self.kind != "wsd" and self.decay_steps != 0:
            raise ValueError(
                f"schedule.decay_steps is {self.decay_steps} but only kind: wsd decays so; "
                "remove it"
            )
        return self

    def steps_of_warmup(self) -> int:
        """Updates of warm-up; 0 where the warm-up is counted in tokens."""
        if self.warmup_tokens is not None:
            return 0
        return 100 if self.warmup_steps is None else self.warmup_steps


class CurriculumStage(Section):
    """A part of the run with a batch or a length of its own."""

    from_tokens: NonNegative
    """Tokens seen when the stage begins; it holds until the next one begins."""
    global_batch_size: Positive | None = None
    """Samples of one optimizer step; left out: `train.global_batch_size`."""
    input_length_tokens: Positive | None = None
    """Tokens of a window; left out: `data.input_length_tokens`, which no stage may exceed."""


def _ascending(stages: tuple[CurriculumStage, ...]) -> tuple[CurriculumStage, ...]:
    for before, after in pairwise(stages):
        if after.from_tokens <= before.from_tokens:
            raise ValueError(
                f"from_tokens {after.from_tokens} follows {before.from_tokens}; "
                "write the stages in ascending order"
            )
    return stages


Curriculum = Annotated[tuple[CurriculumStage, ...], AfterValidator(_ascending)]
"""Stages in ascending order; before the first, and without any, `train` and `data` hold."""


class SpikeSettings(Section):
    """What happens when loss or gradients jump; see `pretrain.optimization.spikes`."""

    enabled: bool = True
    """Judge losses and gradient norms, and roll back. Steps that are not finite are skipped in any
    case."""
    window_steps: Annotated[int, Field(ge=8)] = 128
    """Applied steps that a new one is compared with."""
    minimum_history_steps: Annotated[int, Field(ge=8)] = 64
    """Applied steps before anything finite is judged."""
    z_threshold: Annotated[float, Field(ge=3, allow_inf_nan=False)] = 12.0
    """Robust standard deviations above the median from which a step is skipped."""
    patience: Positive = 5
    """Steps in a row that are skipped, or whose loss is over half the threshold, before the run
    rolls back to its last good checkpoint and steps over the samples since."""
    max_skips_in_row: Positive = 20
    """Skipped steps in a row before the run gives up."""
    max_roll_backs: NonNegative = 3
    """Roll-backs to one and the same checkpoint before the run gives up; 0: never roll back."""

    @model_validator(mode="after")
    def _values_fit_together(self) -> SpikeSettings:
        if self.minimum_history_steps > self.window_steps:
            raise ValueError(
                f"spikes.minimum_history_steps {self.minimum_history_steps} exceeds "
                f"spikes.window_steps {self.window_steps}; lower it"
            )
        if self.patience > self.max_skips_in_row:
            raise ValueError(
                f"spikes.patience {self.patience} exceeds spikes.max_skips_in_row "
                f"{self.max_skips_in_row}, so the run would give up before it rolls back; lower it"
            )
        return self
