"""Hosts and a Slurm on this machine: those that the tests of launchers raise."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.launch.measure import Start, Started, start_here

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "cluster"))

from machines.hosts import LOGIN, Hosts, why_no_hosts
from machines.slurm import Slurm, why_no_slurm

_NODES = 2


@dataclass
class Machines:
    """Where launchers are tried."""

    hosts: Hosts | None
    slurm: Slurm | None
    why_not: dict[str, str] = field(default_factory=dict)
    """Why a launcher cannot be tried here."""

    @property
    def start(self) -> Start:
        """Starts a command where a user would."""
        return start_here if self.hosts is None else self._start_on_login

    def _start_on_login(self, command: list[str], log: Path) -> Started:
        assert self.hosts is not None
        words = ("bash", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "bash", str(log))
        return self.hosts.start(LOGIN, *words, *command)

    def restore(self) -> None:
        """End whatever still runs, jobs that are to be done as well."""
        if self.slurm is not None:
            self.slurm.restore()
        elif self.hosts is not None:
            self.hosts.restore()


@contextlib.contextmanager
def raised_machines() -> Iterator[Machines]:
    """Raise what this machine lets one raise."""
    no_hosts = why_no_hosts()
    if no_hosts:
        reasons = dict.fromkeys(("slurm", "ssh", "mpi"), no_hosts)
        yield Machines(None, None, reasons)
        return
    with TemporaryDirectory(prefix="spade-hosts-") as folder:
        hosts = Hosts(_NODES, Path(folder))
        try:
            no_slurm = why_no_slurm()
            slurm = None if no_slurm else Slurm(hosts)
            yield Machines(hosts, slurm, {"slurm": no_slurm} if no_slurm else {})
        finally:
            hosts.close()
