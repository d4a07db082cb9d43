"""`spade launch ssh`: checks the hosts, starts the ranks, and keeps the run running."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.attempts import Attempts
from launch.clusters.job import Job, freeze_config, frozen_config_path
from launch.clusters.preflight import check_before_launch
from launch.clusters.ssh.attempt import run_attempt
from launch.clusters.ssh.hostfile import Host
from launch.clusters.ssh.plan import SshPlan
from launch.clusters.ssh.probe import Questions
from launch.clusters.ssh.readiness import Report, examine_hosts
from launch.clusters.ssh.settings import SshCluster
from launch.console import human_seconds, say, warn
from launch.failures import CommandError
from launch.keep_running import RunResult, keep_running, newest_checkpoint
from launch.processes import ProcessResult, StopRequests
from pretrain.config import RunConfig
from pretrain.run_folder import RunFolder

_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 30.0
# Ranks of a launcher that was killed save and end by themselves; a large checkpoint takes a while.
_OLD_RANKS_SECONDS = 120.0
_SAMPLE_PORT = 29500


class SshLauncher:
    """One run on the hosts of a hostfile."""

    def __init__(self, job: Job, hosts: Sequence[Host], cluster: SshCluster) -> None:
        """Prepare a launch; nothing is started yet.

        Args:
            job: What is to run.
            hosts: All machines that are wanted.
            cluster: How they are reached.
        """
        self._job = job
        self._hosts = tuple(hosts)
        self._cluster = cluster
        self._ready: list[Report] = []
        """The hosts of the next start."""
        self._facts: dict[str, Any] = {"processes": job.processes_per_node}

    def show(self) -> None:
        """Print what :meth:`run` would run, and do nothing.

        Raises:
            CommandError: The run could not start.
        """
        config = check_before_launch(self._job, self._cluster.nodes)
        plan = self._plan(frozen_config_path(config))
        questions = Questions(str(plan.config), "TOKEN", folders_of(config), plan.hosts[0].machine)
        say("# asked first, of all hosts at once; TOKEN stands for a file written at that moment")
        for host in plan.hosts:
            say(shlex.join(plan.probe_command(host, questions)))
        say(f"# then; {_SAMPLE_PORT} stands for a port that is free on {plan.hosts[0].machine}")
        for command in plan.agent_commands(plan.hosts, _SAMPLE_PORT):
            say(shlex.join(command))

    def run(self) -> RunResult:
        """Run the training to its end, restarts included.

        Raises:
            CommandError: Something is wrong with the run or the hosts, one line a problem.
            OSError: A file cannot be written.
        """
        config = check_before_launch(self._job, self._cluster.nodes)
        run = config.run_path
        plan = self._plan(freeze_config(config))
        folders = folders_of(config)
        self._check(plan, folders)
        return keep_running(
            lambda: self._start(plan),
            stop_marker=RunFolder(run).stop_marker,
            max_restarts=self._job.max_restarts,
            step_of_checkpoint=lambda: newest_checkpoint(run),
            wait_until_ready=lambda requests: self._wait(plan, folders, requests),
            attempts=Attempts(run, "ssh", self._facts),
        )

    def _plan(self, config: Path) -> SshPlan:
        return SshPlan(
            cluster=self._cluster,
            hosts=self._hosts,
            processes=self._job.processes_per_node,
            config=config,
            working_folder=Path.cwd(),
        )

    def _start(self, plan: SshPlan) -> ProcessResult:
        hosts = [report.host for report in self._ready]
        port = self._ready[0].port
        ranks = len(hosts) * plan.processes
        names = ", ".join(host.name for host in hosts)
        count = f"{ranks} rank{'s' if ranks > 1 else ''}"
        say(f"{count} on {names}, meeting at {hosts[0].machine}:{port}")
        return run_attempt(
            hosts, plan.agent_commands(hosts, port), end_seconds=self._cluster.end_seconds
        )

    def _examine(self, plan: SshPlan, folders: Sequence[str]) -> list[Report]:
        """Ask all hosts; those without a problem take part in the next start.

        Returns:
            The reports of those with one.
        """
        reports = examine_hosts(plan, folders)
        self._ready = [report for report in reports if not report.problem]
        self._facts["hosts"] = [report.host.name for report in self._ready]
        return [report for report in reports if report.problem]

    def _check(self, plan: SshPlan, folders: Sequence[str]) -> None:
        """Look whether the hosts can start, once; only old ranks are waited for.

        Raises:
            CommandError: They cannot.
        """
        deadline = time.monotonic() + _OLD_RANKS_SECONDS
        problems = self._examine(plan, folders)
        told = False
        while any(report.busy for report in problems) and time.monotonic() < deadline:
            if not told:
                told = True
                _tell(problems)
                warn(f"waiting, at most {human_seconds(_OLD_RANKS_SECONDS)}")
            time.sleep(_FIRST_PAUSE_SECONDS)
            problems = self._examine(plan, folders)
        fatal = [report for report in problems if not report.passing or report.busy]
        if fatal or len(self._ready) < self._job.min_nodes:
            raise CommandError("\n".join(report.problem for report in problems))
        _tell(problems)

    def _wait(self, plan: SshPlan, folders: Sequence[str], requests: StopRequests) -> bool:
        """Wait until the hosts can start again, or enough of them.

        They could before, so whatever is wrong may pass: a host that boots lets nobody in yet, or
        lacks the shared folders.

        Returns:
            Whether they do; not where the user has had enough, or it takes too long.
        """
        began = time.monotonic()
        pause_seconds = _FIRST_PAUSE_SECONDS
        told: set[str] = set()
        while not requests.received:
            problems = self._examine(plan, folders)
            busy = any(report.busy for report in problems)
            if len(self._ready) >= self._job.min_nodes and not busy:
                _tell(problems)
                return True
            waited_seconds = time.monotonic() - began
            limit_seconds = self._cluster.wait_for_hosts_seconds
            if waited_seconds > limit_seconds:
                _tell(problems)
                warn(f"gave up after {human_seconds(waited_seconds)}: wait_for_hosts_seconds")
                return False
            new = [report for report in problems if report.host.name not in told]
            _tell(new)
            told |= {report.host.name for report in new}
            if new:
                warn(f"waiting for them, at most {human_seconds(limit_seconds)}; Ctrl-C ends it")
            requests.wait(pause_seconds)
            pause_seconds = min(_LONGEST_PAUSE_SECONDS, 2 * pause_seconds)
        return False


def folders_of(config: RunConfig) -> list[str]:
    """Local places that the ranks of a run read."""
    data = config.data
    places = [*data.locations().values(), *data.heldout_locations().values(), data.tokenizer]
    return list(dict.fromkeys(str(place) for place in places if isinstance(place, Path)))


def _tell(reports: Sequence[Report]) -> None:
    for report in reports:
        warn(report.problem)
