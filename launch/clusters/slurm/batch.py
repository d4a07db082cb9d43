"""What a job of Slurm runs on its first node: ``python -m launch.clusters.slurm.batch … RUN``.

Examines the nodes, starts the ranks by srun, starts them again after failures, and hands the run on
to a successor before the time limit. Slurm's own part: it sends SIGTERM to the ranks when it
preempts or cancels the job, and puts the job back into the queue after a preemption or the death of
a node, but only where this program is still there to be ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, SIGUSR1

from launch.attempts import Attempts
from launch.clusters.record import append_event
from launch.clusters.slurm.chain import Chain
from launch.clusters.slurm.controller import expand_hosts, job_facts
from launch.clusters.slurm.excluded import exclude_hosts, excluded_hosts
from launch.clusters.slurm.health import examine
from launch.clusters.slurm.steps import (
    Rendezvous,
    StepSettings,
    health_step,
    meeting_port,
    rank_step,
)
from launch.clusters.slurm.stop_file import StopFile
from launch.console import say, warn
from launch.failures import EXIT_FAILED, EXIT_RESUMABLE, CommandError, describe
from launch.keep_running import RunResult, keep_running, newest_checkpoint
from launch.processes import ProcessResult, StopRequests
from pretrain.resilience.failures import LOG_FOLDER_VARIABLE
from pretrain.run_folder import RunFolder

_POLL_SECONDS = 0.1
_ASK_SLURM_SECONDS = 2.0
_UNEXPLAINED_SECONDS = 60.0
_MOST_EXCLUDED = 3
_IN_VAIN = (
    "a whole job made no newer checkpoint, and another would not either; raise time_limit, or "
    "lower checkpoint.every_steps"
)


@dataclass(frozen=True)
class Allocation:
    """What this job has."""

    job: str
    restarts: int
    hosts: tuple[str, ...]

    @classmethod
    def of_environment(cls) -> Allocation:
        """Read what Slurm has set.

        Raises:
            CommandError: This is no job of Slurm.
        """
        job, nodes = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_JOB_NODELIST", "")
        if not job.isdecimal() or not nodes:
            raise CommandError("this is no job of Slurm; start it by `spade launch slurm`")
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        return cls(job, int(restarts), expand_hosts(nodes))


class Supervisor:
    """Keeps one job's ranks running."""

    def __init__(
        self,
        run: Path,
        step: StepSettings,
        allocation: Allocation,
        *,
        min_nodes: int,
        max_restarts: int,
        excluded: Sequence[str],
    ) -> None:
        self.run = run
        self.step = step
        self.allocation = allocation
        self.min_nodes = min_nodes
        self.max_restarts = max_restarts
        self.hosts = allocation.hosts
        self.stop_file = StopFile(run, allocation.job)
        self.chain = Chain(run, allocation.job, excluded)
        self._facts = {"job": allocation.job, "nodes": list(self.hosts)}
        self._starts = 0

    def supervise(self) -> int:
        """Run the job.

        Returns:
            Its exit code: 0 where the run is done or goes on in another job, 75 where it stopped
            on request, anything else where it failed.

        Raises:
            CommandError: Slurm refuses what the run needs to go on.
            OSError: A file cannot be written, or srun not started.
        """
        requests = StopRequests()
        with requests.listening():
            self._introduce()
            if self.chain.follows_in_vain():
                return self._fail(_IN_VAIN)
            self.stop_file.remove()
            RunFolder(self.run).stop_marker.unlink(missing_ok=True)  # tells of an earlier job
            result = RunResult(EXIT_FAILED, False, (), 0.0)
            if self._find_healthy() and not requests.received:
                result = self._keep_running()
            return self._conclude(result.exit_code, [*requests.received, *result.signals])

    def _introduce(self) -> None:
        job, restarts = self.allocation.job, self.allocation.restarts
        times = f", requeued {restarts} time{'s' if restarts > 1 else ''}" if restarts else ""
        say(f"job {job} on {' '.join(self.hosts)}{times}")

    def _keep_running(self) -> RunResult:
        return keep_running(
            self._run_ranks,
            stop_marker=RunFolder(self.run).stop_marker,
            max_restarts=self.max_restarts,
            step_of_checkpoint=lambda: newest_checkpoint(self.run),
            wait_until_ready=lambda _: self._find_healthy(),
            attempts=Attempts(self.run, "slurm", self._facts),
        )

    def _run_ranks(self) -> ProcessResult:
        """Start all ranks, pass a request to stop on to them, wait for their end."""
        port = meeting_port(int(self.allocation.job), self._starts)
        self._starts += 1
        config = RunFolder(self.run).launch / "config.yaml"
        command = rank_step(self.step, Rendezvous(self.hosts, port), config)
        requests, began, heard = StopRequests(), time.monotonic(), 0
        environment = os.environ | {LOG_FOLDER_VARIABLE: str(RunFolder(self.run).logs)}
        with requests.listening():
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                if len(requests.received) > heard:
                    heard = len(requests.received)
                    self._ask_ranks(requests)
        return ProcessResult(process.returncode, tuple(requests.received), time.monotonic() - began)

    def _ask_ranks(self, requests: StopRequests) -> None:
        """Ask the ranks to save and leave; before the time limit see to a successor."""
        try:
            self.stop_file.make()
        except OSError as error:
            warn(f"warning: the ranks cannot be asked to stop: {error}")
        if SIGUSR1 in requests.received and not self.stop_file.others:
            self.chain.submit_successor()

    def _find_healthy(self) -> bool:
        """Examine the nodes and leave those out that fail; tells whether enough are left."""
        if self._is_ending():
            return False
        failed = examine(health_step(self.step, self.hosts, self.run), self.hosts)
        if not failed:
            return True
        if self._is_ending():  # Slurm ends its steps first
            return False
        exclude_hosts(self.run, failed)
        for host, reason in failed.items():
            warn(f"{host} is left out: {reason}")
        self.hosts = tuple(host for host in self.hosts if host not in failed)
        self._facts["nodes"] = list(self.hosts)
        return len(self.hosts) >= self.min_nodes

    def _is_ending(self) -> bool:
        """Whether Slurm is taking the nodes away."""
        try:
            facts = job_facts(self.allocation.job)
        except CommandError:
            return False
        return facts.being_preempted or facts.state != "RUNNING"

    def _conclude(self, code: int, signals: Sequence[int]) -> int:
        """What the end of the ranks means for the job."""
        self.stop_file.remove()
        if code == 0:
            self.chain.cancel_successor()
            return 0
        by_slurm = SIGTERM in signals or self._stopped_by_signal()
        if self.stop_file.others and code == EXIT_RESUMABLE and not by_slurm:
            return code
        if SIGUSR1 in signals and not self.stop_file.others:
            self.chain.submit_successor()  # where the signal came between two starts
            if SIGTERM not in signals or not self.chain.ends_early():
                return self._hand_on()
        if signals or by_slurm or code == 128 + SIGTERM or self._is_ending():
            return self._wait_for_slurm()
        if len(self.hosts) < self.min_nodes:
            return self._go_elsewhere()
        self.chain.cancel_successor()
        if code == EXIT_RESUMABLE:
            return code
        warn(f"error: the ranks ended with exit code {code}")
        return code if code > 0 else 128 - code

    def _go_elsewhere(self) -> int:
        """Hand the run on to a job without the nodes that have failed."""
        several = len({*self.allocation.hosts, *excluded_hosts(self.run)}) > _MOST_EXCLUDED
        if not self.hosts and (several or len(self.allocation.hosts) > 1):
            return self._fail(
                "nodes fail the check one and all; mend what it says, remove launch/excluded.json "
                "and submit again"
            )
        say(f"{len(self.hosts)} healthy nodes are left, {self.min_nodes} are needed")
        self.chain.submit_elsewhere()
        return 0

    def _hand_on(self) -> int:
        """Let the successor go on, unless that would last for ever."""
        if not self.chain.has_progressed():
            self.chain.cancel_successor()
            return self._fail(_IN_VAIN)
        if self.chain.successor is not None:
            return 0
        self.chain.requeue()
        return self._wait_for_slurm()

    def _stopped_by_signal(self) -> bool:
        """Whether the ranks saved because of a signal, which only Slurm sends to them."""
        try:
            text = RunFolder(self.run).stop_marker.read_text(encoding="utf-8")
            return str(json.loads(text)["reason"]).startswith("SIG")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _wait_for_slurm(self) -> int:
        """Stay until Slurm has decided about this job.

        In the grace time of a preemption it still counts as running, and one that ends by itself
        then is not requeued.
        """
        if self.chain.ends_early():
            self.chain.cancel_successor()  # it was for the time limit
        patience = time.monotonic() + _UNEXPLAINED_SECONDS
        while time.monotonic() < patience:
            try:
                facts = job_facts(self.allocation.job)
            except CommandError:
                patience = time.monotonic() + _UNEXPLAINED_SECONDS  # its controller restarts
            else:
                if facts.being_preempted:
                    patience = time.monotonic() + _UNEXPLAINED_SECONDS
                elif facts.state != "RUNNING":
                    if facts.restarts > self.allocation.restarts:
                        append_event(self.run, "slurm", "requeued", job=self.allocation.job)
                    break
            time.sleep(_ASK_SLURM_SECONDS)
        return EXIT_RESUMABLE

    def _fail(self, reason: str) -> int:
        """The launcher's own reason to end, where the ranks may have none."""
        append_event(self.run, "slurm", "failed", job=self.allocation.job, reason=reason)
        warn(f"error: {reason}")
        return EXIT_FAILED


def main(arguments: Sequence[str]) -> int:
    """Run a job."""
    parser = argparse.ArgumentParser(prog="launch.clusters.slurm.batch", description=__doc__)
    parser.add_argument("--min-nodes", type=int, required=True)
    parser.add_argument("--max-restarts", type=int, required=True)
    parser.add_argument("--exclude", action="append", default=[], help="nodes never to use")
    StepSettings.add_words(parser)
    parser.add_argument("run", type=Path, help="the run's folder")
    options = parser.parse_args(arguments)
    try:
        supervisor = Supervisor(
            options.run,
            StepSettings.of_words(options),
            Allocation.of_environment(),
            min_nodes=options.min_nodes,
            max_restarts=options.max_restarts,
            excluded=options.exclude,
        )
        return supervisor.supervise()
    except (CommandError, OSError) as error:
        for line in describe(error):
            warn(f"error: {line}")
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
