"""Runs a training under mpiexec and keeps it running.

What mpiexec says of the end counts little: MPICH's exit code is the bitwise or of all ranks', or 9
for one that was killed; Open MPI's is that of the rank that was noticed first, and 1 when mpiexec
itself was ended. The run's folder tells instead: see :func:`verdict`.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from launch.attempts import Attempts
from launch.clusters.job import freeze_config
from launch.clusters.mpi.plan import MpiPlan
from launch.console import say, warn
from launch.failures import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_RESUMABLE, EXIT_USAGE, CommandError
from launch.first_failure import first_failure
from launch.keep_running import RunResult, keep_running, newest_checkpoint
from launch.mpi import examine_start
from launch.processes import ProcessResult, StopRequests, run_supervised
from pretrain.config import RunConfig
from pretrain.resilience.ending import LOST_EXIT_CODE
from pretrain.resilience.failures import failures_folder
from pretrain.run_folder import RunFolder, write_atomically

# A rank that has lost another ends within 20 s; then mpiexec waits for a machine that is gone.
_AFTER_FAILURE_SECONDS = 40.0
_LOOK_SECONDS = 2.0
_BETWEEN_PROBES_SECONDS = 5.0
_HAVE_ANOTHER_MEANING = (0, EXIT_USAGE, EXIT_RESUMABLE, EXIT_INTERRUPTED, 143)


class _Overdue(Exception):
    """mpiexec does not end although ranks have failed."""


@dataclass
class MpiLauncher:
    """The starts of one run."""

    plan: MpiPlan
    config: RunConfig
    _folder: RunFolder = field(init=False)

    def __post_init__(self) -> None:
        self._folder = RunFolder(self.config.run_path)

    def show(self) -> None:
        """Print exactly what would run."""
        if self.plan.hosts:
            say(f"# {self.plan.hostfile}")
            for line in self.plan.hostfile_text.splitlines():
                say(f"#   {line}")
        say(self.plan.shown())

    def run(self) -> RunResult:
        """Run the training to its end, or until it is asked to stop.

        Raises:
            CommandError: mpiexec cannot start its ranks as one world.
            OSError: A file cannot be written.
        """
        freeze_config(self.config)
        if self.plan.hostfile is not None:
            write_atomically(self.plan.hostfile, self.plan.hostfile_text)
        problem = self._probe()
        if problem:
            raise CommandError(problem)
        job = self.plan.job
        facts = {"nodes": job.nodes, "processes": job.processes_per_node, "mpi": self.plan.flavour}
        return keep_running(
            self._start,
            stop_marker=self._folder.stop_marker,
            max_restarts=job.max_restarts,
            step_of_checkpoint=lambda: newest_checkpoint(self._folder.path),
            wait_until_ready=self._wait_until_ready if job.nodes > 1 else None,
            attempts=Attempts(self._folder.path, "mpi", facts),
        )

    def _probe(self) -> str:
        """Why mpiexec cannot start the ranks as one world; "" where it can."""
        job, environment = self.plan.job, self.plan.environment()
        ranks = job.nodes * job.processes_per_node
        found = examine_start(self.plan.mpiexec, self.plan.probe_command(), environment, ranks)
        # MPICH, Intel MPI and MVAPICH understand one another; Open MPI stands alone.
        foreign = found.library.startswith("Open MPI") != (self.plan.flavour == "openmpi")
        if not found.problem or not found.library or not foreign:
            return found.problem
        return (
            f"{self.plan.mpiexec} belongs to another MPI than mpi4py's ({found.library}): name its "
            "libmpi.so as `library` in the cluster's description, or use mpi4py's own mpiexec"
        )

    def _start(self) -> ProcessResult:
        """Start all ranks once and wait for their end."""
        request = _StopFile(self._folder)
        try:
            result = run_supervised(
                self.plan.command(),
                environment=self.plan.environment(),
                ask_to_stop=request.make,
                watch=self._patience(),
                grace_seconds=None,
            )
        except _Overdue:
            warn(f"mpiexec has not ended {_AFTER_FAILURE_SECONDS:.0f} s after a failure: killed")
            result = ProcessResult(LOST_EXIT_CODE, request.signals, 0.0)
        finally:
            request.take_back()
        return replace(result, exit_code=self._verdict(result.exit_code))

    def _verdict(self, exit_code: int) -> int:
        first = first_failure(self._folder.path)
        return verdict(
            exit_code,
            stopped=self._folder.stop_marker.exists(),
            failure_code=None if first is None else first.exit_code,
            finished=newest_checkpoint(self._folder.path) >= self.config.train.max_steps,
        )

    def _patience(self) -> Callable[[], None]:
        """Watches for ranks that have failed while mpiexec goes on."""
        failed_at: float | None = None
        looked_at = 0.0

        def watch() -> None:
            nonlocal failed_at, looked_at
            now = time.monotonic()
            if now < looked_at + _LOOK_SECONDS:
                return
            looked_at = now
            if failed_at is None:
                if any(failures_folder(self._folder.logs).glob("rank-*.json")):
                    failed_at = now
            elif now > failed_at + _AFTER_FAILURE_SECONDS:
                raise _Overdue

        return watch

    def _wait_until_ready(self, requests: StopRequests) -> bool:
        """Wait until mpiexec reaches all machines again."""
        deadline = time.monotonic() + self.plan.description.wait_for_hosts_seconds
        told = ""
        while not requests.received:
            problem = self._probe()
            if not problem:
                return True
            if problem != told:
                warn(f"waiting for the machines: {problem}")
                told = problem
            if time.monotonic() > deadline:
                warn("the machines do not come back: wait_for_hosts_seconds is over")
                return False
            requests.wait(_BETWEEN_PROBES_SECONDS)
        return False


class _StopFile:
    """The file that asks the ranks to save and stop.

    mpiexec is no messenger: Open MPI's kills its ranks two seconds after it was signalled.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.stop_request
        self._made = False

    def make(self, mpiexec: subprocess.Popen[Any]) -> None:
        """Make it, once: the ranks remove it when they honour it."""
        if self._made:
            return
        self._made = True
        try:
            self._path.touch()
        except OSError:
            mpiexec.terminate()

    @property
    def signals(self) -> tuple[signal.Signals, ...]:
        """What made it necessary, where anything did."""
        return (signal.SIGTERM,) if self._made else ()

    def take_back(self) -> None:
        """Remove it where nobody has honoured it: the next start is not to stop."""
        if self._made:
            self._path.unlink(missing_ok=True)


def verdict(exit_code: int, *, stopped: bool, failure_code: int | None, finished: bool) -> int:
    """How the ranks ended together.

    In this order: 75 where rank 0 has written that the run stopped with its state saved; the code
    of the first failure that a rank has left word of; 0 where mpiexec says so and the last step is
    saved; otherwise a failure whose code tells nothing.

    Args:
        exit_code: mpiexec's; negative for a signal.
        stopped: The marker of a stop is there.
        failure_code: Of the first failure, negative for a signal; none without one.
        finished: The last step's checkpoint is there.
    """
    if stopped:
        return EXIT_RESUMABLE
    if exit_code == 0 and finished:
        return 0
    if failure_code is not None:
        return failure_code if failure_code > 0 else 128 - failure_code
    code = exit_code if exit_code >= 0 else 128 - exit_code
    return EXIT_FAILED if code in _HAVE_ANOTHER_MEANING else code
