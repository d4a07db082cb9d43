"""The jobs of a run one after the other: a successor for each that reaches its time limit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from launch.clusters.record import append_event, read_events
from launch.clusters.slurm.controller import cancel, job_facts, requeue, submit
from launch.clusters.slurm.excluded import excluded_hosts
from launch.clusters.slurm.script import exclusion_option
from launch.console import say, warn
from launch.failures import CommandError
from launch.keep_running import newest_checkpoint
from pretrain.run_folder import RunFolder

_CLOSE_SECONDS = 5.0  # Slurm looks at time limits so seldom


class Chain:
    """A job's place in the chain, and the job after it."""

    def __init__(self, run: Path, job: str, excluded: Sequence[str]) -> None:
        """Begin.

        Args:
            run: The run's folder.
            job: This job.
            excluded: Nodes that the cluster's description leaves out.
        """
        self._run = run
        self._job = job
        self._excluded = excluded
        self._step = newest_checkpoint(run)
        self._limit: float | None = None
        self._requeues = False
        self.successor: str | None = None

    def follows_in_vain(self) -> bool:
        """Whether the job before this one, which ran to its limit, made no newer checkpoint."""
        for event in reversed(read_events(self._run)):
            if event.get("event") == "chained" and event.get("next") == self._job:
                step = event.get("from_step")
                return isinstance(step, int) and self._step <= step
        return False

    def has_progressed(self) -> bool:
        """Whether there is a newer checkpoint than when this job began."""
        return newest_checkpoint(self._run) > self._step

    def submit_successor(self) -> None:
        """See to it that the run goes on after this job's time limit; once."""
        if self.successor is not None or self._requeues:
            return
        try:
            self._limit = job_facts(self._job).end
        except CommandError as error:
            warn(f"warning: {error}")
        try:
            self._submit("time limit", from_step=self._step)
        except CommandError as error:
            warn(f"warning: no successor could be submitted: {error}; this job will be requeued")
            self._requeues = True

    def submit_elsewhere(self) -> None:
        """Hand the run on to a job without the nodes that have failed.

        Raises:
            CommandError: If it is refused, as where too few other nodes exist.
        """
        self._submit("nodes left out")

    def requeue(self) -> None:
        """Where no successor could be submitted put this job back, which will end it.

        Raises:
            CommandError: If Slurm refuses that as well.
        """
        links = {"job": self._job, "next": self._job}
        append_event(
            self._run, "slurm", "chained", reason="time limit", from_step=self._step, **links
        )
        requeue(self._job)

    def cancel_successor(self) -> None:
        """The run needs none any more."""
        if self.successor is not None:
            cancel(self.successor)
            say(f"cancelled the successor, job {self.successor}")
            self.successor = None

    def ends_early(self) -> bool:
        """Whether this job's time limit, if it has come near, lies ahead still."""
        return self._limit is not None and time.time() < self._limit - _CLOSE_SECONDS

    def _submit(self, reason: str, **facts: int) -> None:
        hosts = list(dict.fromkeys([*self._excluded, *excluded_hosts(self._run)]))
        script = RunFolder(self._run).launch / "slurm.sh"
        self.successor = submit(script, exclusion_option(hosts))
        links = {"job": self._job, "next": self.successor}
        append_event(self._run, "slurm", "chained", reason=reason, **links, **facts)
        say(f"submitted job {self.successor} to go on with the run ({reason})")
