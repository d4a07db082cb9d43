"""Hosts and a Slurm for the tests of launchers; raised once a process of the tests, in a second."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines.hosts import Hosts, why_no_hosts
from machines.slurm import Slurm, why_no_slurm

NODES = 3


@pytest.fixture(scope="session")
def raised_hosts() -> Iterator[Hosts]:
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    # Not among pytest's folders: those are closed to other users, and their names are long.
    folder = Path(tempfile.mkdtemp(prefix="spade-hosts-"))
    try:
        raised = Hosts(NODES, folder)
        try:
            yield raised
        finally:
            raised.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def raised_slurm(raised_hosts: Hosts) -> Slurm:
    reason = why_no_slurm()
    if reason:
        pytest.skip(reason)
    return Slurm(raised_hosts)


@pytest.fixture
def hosts(raised_hosts: Hosts) -> Iterator[Hosts]:
    """`login` and three nodes, whole again after the test: see `machines/hosts.py`."""
    yield raised_hosts
    raised_hosts.restore()


@pytest.fixture
def slurm(raised_slurm: Slurm) -> Iterator[Slurm]:
    """A Slurm over the same hosts, without jobs after the test: see `machines/slurm.py`."""
    raised_slurm.wait_until_idle()  # a test without it may have booted a node a moment ago
    yield raised_slurm
    raised_slurm.restore()
