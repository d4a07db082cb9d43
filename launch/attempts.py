"""What a launcher writes down about each start of a run's ranks, and tells of its end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.console import warn
from launch.failures import EXIT_INTERRUPTED, EXIT_RESUMABLE
from launch.first_failure import clear_failures, tell_first_failure

_ASKED = (EXIT_RESUMABLE, EXIT_INTERRUPTED, 128 + signal.SIGTERM)


@dataclass
class Attempts:
    """The starts of one run by one launcher, as lines of ``launch/events.jsonl``.

    A folder that cannot be written is told once and ends nothing.
    """

    run: Path
    """The run's folder."""
    launcher: str
    """local, slurm, ssh, mpi or kubernetes."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else each start is told with, as plain data: nodes, processes, job."""
    _started: int = 0
    _complained: bool = False

    def begin(self) -> None:
        """Call it before the ranks are started."""
        try:
            clear_failures(self.run)
        except OSError as error:
            self._complain(error)
        event = "restarted" if self._started else "started"
        place = {"host": socket.gethostname(), "process": os.getpid()}
        self._append(event, **place, **self.facts, restarts=self._started)
        self._started += 1

    def end(self, exit_code: int, *, asked_to_stop: bool, restart: bool) -> None:
        """Tell how the ranks ended, the first failure before anything else.

        Args:
            exit_code: Of the ranks together.
            asked_to_stop: Somebody wanted the run to end.
            restart: They will be started again.
        """
        if exit_code == 0:
            self._append("done", exit_code=0)
        elif exit_code == EXIT_RESUMABLE or (asked_to_stop and exit_code in _ASKED):
            self._append("stopped", exit_code=exit_code)
        else:
            first = tell_first_failure(self.run)
            reason = None if first is None else f"rank {first.rank}: {first.message}"
            self._append("failed", exit_code=exit_code, reason=reason, restart=restart)

    def give_up(self, exit_code: int, *, asked_to_stop: bool) -> None:
        """Tell that a restart that was announced does not come.

        Args:
            exit_code: Of the last start.
            asked_to_stop: Somebody wanted the run to end meanwhile; else the machines are gone.
        """
        event = "stopped" if asked_to_stop else "failed"
        reason = None if asked_to_stop else "the machines did not come back"
        self._append(event, exit_code=exit_code, reason=reason, restart=False)

    def _append(self, event: str, **facts: Any) -> None:
        from launch.clusters.record import append_event

        try:
            append_event(self.run, self.launcher, event, **facts)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            warn(f"{self.run}: what happens to the run cannot be written down: {error}")
