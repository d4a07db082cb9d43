"""Where rank 0 tells its numbers to: opened together, written together, closed together."""

from __future__ import annotations

import importlib.util
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pretrain.errors import ConfigError
from pretrain.run_folder import RunFolder, write_json
from pretrain.telemetry.background import BackgroundSink
from pretrain.telemetry.histograms import Histogram
from pretrain.telemetry.mlflow_sink import MlflowSink
from pretrain.telemetry.settings import TelemetrySettings, TrackerName
from pretrain.telemetry.sinks import JsonLines, MetricsSink
from pretrain.telemetry.tensorboard_sink import TensorBoardSink
from pretrain.telemetry.wandb_sink import WandbSink

ABANDONED_FILE = "abandoned.jsonl"
"""Lines of ``metrics.jsonl`` that a roll-back made void."""
_IDENTITY_FILE = "trackers.json"
# How long the end of a run waits for what was told last: files of its own, and a network.
_DISK_SECONDS = 300.0
_NETWORK_SECONDS = 30.0
_TRACKERS: dict[TrackerName, type[WandbSink] | type[MlflowSink]] = {
    "wandb": WandbSink,
    "mlflow": MlflowSink,
}


def check_trackers(settings: TelemetrySettings) -> None:
    """Make sure that the packages of all trackers are installed, without importing them.

    Raises:
        ConfigError: One is not.
    """
    for name in settings.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"telemetry.trackers names {name}, which is not installed; "
                "pip install 'spade-pretrain[tracking]' or take it out"
            )


class MetricsWriter:
    """Writes to ``metrics.jsonl`` at once, to all other places in the background.

    Args:
        lines: ``metrics.jsonl``.
        others: Further places, none of which can fail or wait.
    """

    def __init__(self, lines: JsonLines, others: Sequence[MetricsSink]) -> None:
        self._lines, self._others = lines, tuple(others)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record; it carries ``step``.

        Raises:
            OSError: ``metrics.jsonl`` cannot be written.
        """
        self._lines.write(record)
        for sink in self._others:
            sink.write(record)

    def text(self, name: str, text: str, step: int) -> None:
        """Show a text in Markdown."""
        for sink in self._others:
            sink.text(name, text, step)

    def histogram(self, name: str, values: Histogram, step: int) -> None:
        """Show a distribution."""
        for sink in self._others:
            sink.histogram(name, values, step)

    def sync(self) -> None:
        """Make sure that ``metrics.jsonl`` survives the host, as a checkpoint about to be written.

        Raises:
            OSError: It cannot be written.
        """
        self._lines.sync()

    def go_back(self, step: int) -> None:
        """Know that the run was rolled back to a step and makes those behind it again.

        Their lines move from ``metrics.jsonl`` to ``abandoned.jsonl``.
        """
        self._lines.go_back(step)
        for sink in self._others:
            sink.go_back(step)

    def close(self, *, finished: bool) -> None:
        """Flush and close all; a tracker that does not answer is given half a minute.

        Args:
            finished: Whether the run has made its last step.
        """
        self._lines.close(finished=finished)
        for sink in self._others:
            sink.close(finished=finished)


def open_metrics(
    folder: RunFolder,
    settings: TelemetrySettings,
    *,
    name: str,
    configuration: Mapping[str, Any],
    configuration_yaml: str,
    start_step: int,
    logger: logging.Logger,
) -> MetricsWriter:
    """Open every place a run tells its numbers to. For rank 0.

    Open it after processes were forked: trackers start threads.

    Args:
        folder: The run's folder.
        settings: Which trackers.
        name: Of the run.
        configuration: The resolved configuration as plain data.
        configuration_yaml: The same as YAML.
        start_step: The step resumed from; what was told of later ones is forgotten.
        logger: Told where a place cannot be reached.

    Raises:
        OSError: The run's folder cannot be written.
    """
    lines = JsonLines(folder.metrics_path, start_step, folder.path / ABANDONED_FILE)
    others = [
        BackgroundSink(
            "TensorBoard",
            partial(TensorBoardSink, folder.tensorboard, start_step, configuration_yaml),
            logger.warning,
            closing_seconds=_DISK_SECONDS,
        )
    ]
    identity = _identity(folder) if settings.trackers else ""
    for tracker in settings.trackers:
        make = partial(
            _TRACKERS[tracker],
            folder.path,
            identity=identity,
            name=name,
            project=settings.project,
            configuration=configuration,
            offline=settings.offline,
        )
        others.append(
            BackgroundSink(tracker, make, logger.warning, closing_seconds=_NETWORK_SECONDS)
        )
    return MetricsWriter(lines, others)


def _identity(folder: RunFolder) -> str:
    """A name of this run that no other has, the same after every restart."""
    path = folder.path / _IDENTITY_FILE
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))["identity"]
        if isinstance(identity, str) and identity.isalnum() and identity.isascii():
            return identity
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the first start, or damaged: a new one costs no more than a second curve
    identity = secrets.token_hex(8)
    write_json(path, {"identity": identity})
    return identity
