"""When a run stops, and after how long it takes itself or a rank for dead."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pretrain.section import Section

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StopSettings(Section):
    """Requests to stop beside the signals SIGTERM, SIGINT, SIGUSR1 and the file STOP."""

    wall_clock_seconds: Seconds | None = None
    """Stop, with a checkpoint, so long after a process of the run has started; none is no limit. A
    restarted process counts anew. Leave enough of what the scheduler grants for the checkpoint."""


class WatchdogSettings(Section):
    """When a rank takes itself for hung: it writes what it was doing and ends.

    Time in which the process or the machine is suspended does not count.
    """

    enabled: bool = True
    first_step_seconds: Seconds = 1800.0
    """Longest silence until the first step is done: loading, compiling, the first batch."""
    step_seconds: Seconds = 600.0
    """Longest silence afterwards. Every micro-step, every batch of an evaluation and every save
    is a sign of life."""

    @model_validator(mode="after")
    def _the_first_step_takes_longest(self) -> WatchdogSettings:
        if self.first_step_seconds < self.step_seconds:
            raise ValueError(
                f"watchdog.first_step_seconds {self.first_step_seconds:g} is below step_seconds "
                f"{self.step_seconds:g}; the first step takes longest, so raise it"
            )
        return self


class LivenessSettings(Section):
    """When the ranks take one of them for dead: all end, so that a launcher can start them again.

    All are gone within a second after a process has died, and with the defaults within 25 s after
    a host or the network has, or a process was stopped.
    """

    enabled: bool = True
    beat_seconds: Seconds = 1.0
    """Time between two signs of life of each rank. Rank 0 answers all of them, which takes it 5 %
    of one core for 1,000 ranks at 1 s."""
    silence_seconds: Seconds = 20.0
    """A rank that is silent for so long is dead. The signs come from a thread, so a step may take
    longer; only a call that never lets other threads run may not."""

    @model_validator(mode="after")
    def _some_beats_may_be_lost(self) -> LivenessSettings:
        if self.silence_seconds < 3 * self.beat_seconds:
            raise ValueError(
                f"liveness.silence_seconds {self.silence_seconds:g} is below three times "
                f"beat_seconds {self.beat_seconds:g}: one late sign of life would end the run; "
                "raise it or lower beat_seconds"
            )
        return self


class ResilienceSettings(Section):
    """What ends a run that cannot or shall not go on."""

    stop: StopSettings = StopSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    liveness: LivenessSettings = LivenessSettings()
    collective_timeout_seconds: Seconds = 1800.0
    """Longest wait of a rank inside one collective operation, in every group of ranks. The last
    net, below the watchdog and liveness, and the only one where both are switched off."""
