"""MLflow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pretrain.telemetry.histograms import Histogram
from pretrain.telemetry.sinks import numbers_of

_SWITCHES = (
    "MLFLOW_ALLOW_FILE_STORE",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT",
)
_IDENTITY_TAG = "spade.identity"
# What the server takes in one call, and how long a parameter may be.
_MOST_METRICS = 1000
_MOST_PARAMETERS = 100
_PARAMETER_CHARACTERS = 500
_SENDING_SECONDS = 5.0


class MlflowSink:
    """One run of MLflow for the whole run, over all its restarts.

    Args:
        folder: The run's folder.
        identity: Found again by it after a restart.
        name: Shown.
        project: The experiment it belongs to.
        configuration: The run's configuration, nested.
        offline: Write to ``mlflow/`` in the run's folder. That is also done where
            ``MLFLOW_TRACKING_URI`` is not set.
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
        # MLflow asks for the first before it writes files without a database; the others keep it
        # from sending statistics to its makers and from printing addresses between our lines.
        for variable in _SWITCHES:
            os.environ.setdefault(variable, "true")
        from mlflow.tracking import MlflowClient

        self._waiting: list[Any] = []
        self._send_at = time.monotonic() + _SENDING_SECONDS
        is_local = offline or not os.environ.get("MLFLOW_TRACKING_URI")
        place = (folder / "mlflow").resolve().as_uri() if is_local else None
        self._client = MlflowClient(tracking_uri=place)
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = (
            self._client.create_experiment(project)
            if experiment is None
            else experiment.experiment_id
        )
        found = self._client.search_runs(
            [experiment_id], filter_string=f"tags.`{_IDENTITY_TAG}` = '{identity}'", max_results=1
        )
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            run = self._client.create_run(
                experiment_id, run_name=name, tags={_IDENTITY_TAG: identity}
            )
            self._run_id = run.info.run_id
            self._tell_parameters(configuration)

    def _tell_parameters(self, configuration: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [
            Param(_allowed(key), str(value)[:_PARAMETER_CHARACTERS])
            for key, value in _flattened(configuration)
        ]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            some = parameters[start : start + _MOST_PARAMETERS]
            self._client.log_batch(self._run_id, params=some)

    def write(self, record: Mapping[str, Any]) -> None:
        """Take all numbers of a record; they are sent some seconds' worth at a time."""
        from mlflow.entities import Metric

        now_milliseconds = int(time.time() * 1000)
        self._waiting += [
            Metric(_allowed(name), value, now_milliseconds, record["step"])
            for name, value in numbers_of(record).items()
        ]
        if len(self._waiting) >= _MOST_METRICS or time.monotonic() > self._send_at:
            self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._send_at = time.monotonic() + _SENDING_SECONDS
        for start in range(0, len(waiting), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=waiting[start : start + _MOST_METRICS])

    def text(self, name: str, text: str, step: int) -> None:
        """Write a text as an artifact."""
        self._client.log_text(self._run_id, text, f"{_allowed(name)}/step-{step:08d}.md")

    def histogram(self, name: str, values: Histogram, step: int) -> None:
        """Keep nothing: MLflow has no histograms."""

    def go_back(self, step: int) -> None:
        """Keep what is there: MLflow draws a step that was made twice twice."""

    def close(self, *, finished: bool) -> None:
        """Send what is left and how it ended; a run that was stopped can be resumed."""
        self._send()
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")


def _allowed(name: str) -> str:
    """A name MLflow takes: letters, digits, underscores, dashes, dots, spaces, colons, slashes."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{name}.")
        else:
            yield name, value
