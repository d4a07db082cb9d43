"""A few steps under torch's profiler, as a trace that Perfetto opens."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import torch

from pretrain.ranks import Ranks
from pretrain.telemetry.settings import ProfileSettings

PROFILE_FOLDER = "profile"
"""In the run's folder."""


class ProfilerWindow:
    """Profiles the steps that the settings name and writes one trace a rank.

    The trace holds every operator and kernel and, as ``step/NAME``, the parts of `StepTimer`. A
    run that is resumed within the window profiles what is left of it.

    Args:
        settings: Which steps and ranks; None for no profile at all.
        run_folder: Traces go to ``profile/`` in it.
        ranks: This process's place.
        device: Where it computes.
        logger: Told where a trace was written, or why not.
    """

    def __init__(
        self,
        settings: ProfileSettings | None,
        run_folder: Path,
        ranks: Ranks,
        device: torch.device,
        logger: logging.Logger,
    ) -> None:
        takes_part = settings is not None and ranks.rank in settings.ranks
        self._settings = settings if takes_part else None
        self._folder = run_folder / PROFILE_FOLDER
        self._rank, self._device, self._logger = ranks.rank, device, logger
        self._profiler: torch.profiler.profile | None = None
        self._first_step = self._step = 0

    def before_step(self, step: int) -> None:
        """Begin with the first step of the window."""
        settings = self._settings
        if settings is None or self._profiler is not None:
            return
        if settings.first_step <= step < settings.first_step + settings.steps:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(
                activities=activities, profile_memory=settings.memory
            )
            self._profiler.start()
            self._first_step = step

    def after_step(self, step: int) -> None:
        """End with the last step of the window, and write the trace."""
        if self._profiler is None or self._settings is None:
            return
        self._step = step
        if step >= self._settings.first_step + self._settings.steps - 1:
            self.close()

    def close(self) -> None:
        """Write what has been profiled of a window that the run's end cut short."""
        if self._profiler is None:
            return
        profiler, self._profiler, self._settings = self._profiler, None, None
        profiler.stop()
        if self._step < self._first_step:
            return  # not one whole step
        name = f"rank-{self._rank:05d}-steps-{self._first_step:08d}-{self._step:08d}.json.gz"
        partial = self._folder / f".partial-{name}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(partial))
            partial.replace(self._folder / name)
        except OSError as error:
            self._logger.warning("no trace of the profiler: %s", error)
            with contextlib.suppress(OSError):
                partial.unlink()
        else:
            self._logger.info("trace of the profiler: %s", self._folder / name)
