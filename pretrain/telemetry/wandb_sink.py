"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pretrain.telemetry.histograms import Histogram
from pretrain.telemetry.sinks import numbers_of

_CONNECTING_SECONDS = 20.0
"""Shorter than what a run waits for its trackers at its end."""


class WandbSink:
    """One run of Weights & Biases for the whole run, over all its restarts.

    Values are drawn over our ``step``: its own count of calls may then go on after a restart, where
    otherwise steps made again would be refused.

    Args:
        folder: The run's folder; files go to ``wandb/`` in it.
        identity: Names the run there; the same after a restart.
        name: Shown.
        project: It belongs to.
        configuration: The run's configuration, nested.
        offline: Write files alone, for ``wandb sync``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        name: str,
        project: str,
        configuration: Mapping[str, Any],
        offline: bool,
    ) -> None:
        # Nor are its makers told of errors.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        # Nothing but our numbers is sent: no console, no source code, no state of the checkout.
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            silent=True,
            init_timeout=_CONNECTING_SECONDS,
        )
        self._run = wandb.init(
            project=project,
            name=name,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=dict(configuration),
            # Online, who starts the run may still say otherwise in WANDB_MODE.
            mode="offline" if offline else None,
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Mapping[str, Any]) -> None:
        """Write all numbers of a record."""
        self._run.log({**numbers_of(record), "step": record["step"]})

    def text(self, name: str, text: str, step: int) -> None:
        """Write a text."""
        self._run.log({name: self._wandb.Html(_preformatted(text), inject=False), "step": step})

    def histogram(self, name: str, values: Histogram, step: int) -> None:
        """Write a histogram."""
        drawn = self._wandb.Histogram(np_histogram=(list(values.counts), list(values.edges)))
        self._run.log({name: drawn, "step": step})

    def go_back(self, step: int) -> None:
        """Keep what is there: both branches of the curve are drawn over their steps."""

    def close(self, *, finished: bool) -> None:
        """Send what is left; a run that is not finished can be resumed."""
        self._run.finish(exit_code=0 if finished else 1)


def _preformatted(text: str) -> str:
    from html import escape

    return f"<pre>{escape(text)}</pre>"
