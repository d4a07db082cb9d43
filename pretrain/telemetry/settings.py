"""What a run tells while it goes on, and whom."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.section import NonNegative, Positive, Section

TrackerName = Literal["wandb", "mlflow"]


class ProfileSettings(Section):
    """A few steps under torch's profiler; the traces open in Perfetto or ``chrome://tracing``."""

    first_step: Positive
    """The first step that is profiled. Early ones compile and allocate: 10 shows a usual step."""
    steps: Positive = 3
    """Steps in the trace; each takes tens of megabytes at the size of a base model."""
    ranks: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (0,)
    """Ranks that write a trace. The others run at full speed, so compare traces with care."""
    memory: bool = False
    """Record every allocation as well; the trace becomes several times as large."""


class TelemetrySettings(Section):
    """What is told. ``metrics.jsonl`` and TensorBoard are always written, on rank 0."""

    trackers: tuple[TrackerName, ...] = ()
    """Further places for the same numbers: `wandb` (Weights & Biases) and `mlflow`. They need
    ``pip install 'spade-pretrain[tracking]'``. A tracker that cannot be reached is said once and
    left out; it neither stops nor slows a run."""
    project: Annotated[str, Field(min_length=1, max_length=128)] = "spade"
    """Project of Weights & Biases, experiment of MLflow."""
    offline: bool = False
    """Let trackers write into the run folder alone: `wandb/`, to be sent with ``wandb sync``, and
    `mlflow/`. Otherwise they go by their own variables, such as ``WANDB_API_KEY`` and
    ``MLFLOW_TRACKING_URI``; without the latter MLflow writes into the run folder too."""
    histograms_every_steps: Positive | None = None
    """Steps between two histograms of every parameter; none are made unless this is given. They
    read each weight once and need it whole."""
    state_space_every_steps: Positive | None = 100
    """Steps between two looks at the state-space layers: spectral radius and time steps. Cheap
    as long as `A` is no part of `model.trainable_state_space`; null means never."""
    straggler_percent: Annotated[float, Field(gt=0)] = 20.0
    """A rank that needs so much longer than the middle one for its own work is named in the
    log."""
    sample_fills: NonNegative = 2
    """Held-out samples whose gaps the model fills in at each evaluation, as text; 0 for none."""
    profile: ProfileSettings | None = None
    """Steps under the profiler; none unless this is given."""
    log_megabytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    """Size at which the log of a rank, `logs/rank-NNNNN.log`, is put aside as `.log.1`, what was
    `.log.1` as `.log.2`, and so on; likewise, when a rank starts, what ranks print
    (`logs/rank-NNNNN.out`)."""
    log_files: Annotated[int, Field(ge=2)] = 4
    """Files of each rank's log that are kept; the oldest is removed."""

    @model_validator(mode="after")
    def _trackers_make_sense(self) -> TelemetrySettings:
        if len(set(self.trackers)) != len(self.trackers):
            raise ValueError(
                f"telemetry.trackers {list(self.trackers)} names one of them twice; name each once"
            )
        if self.offline and not self.trackers:
            raise ValueError(
                "telemetry.offline is true but telemetry.trackers is empty; name a tracker, or "
                "remove offline"
            )
        return self
