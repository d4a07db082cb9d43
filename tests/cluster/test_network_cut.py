"""Two hosts with a network between them, as network namespaces of this machine, and its loss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.resilience.ending import LOST_EXIT_CODE

SCRIPT = Path(__file__).parents[1] / "support" / "rank_in_trouble.py"
ADDRESSES = ("10.87.0.1", "10.87.0.2")

PROGRAMS = ("ip", "bridge", "nsenter", "unshare")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


class Hosts:
    """A switch and two hosts on it; each is a process that holds a network namespace open."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.switch = self._namespace()
        self._on(self.switch, "ip", "link", "add", "br0", "type", "bridge")
        self._on(self.switch, "ip", "link", "set", "br0", "up")
        self.hosts = [self._namespace() for _ in ADDRESSES]
        for number, (host, address) in enumerate(zip(self.hosts, ADDRESSES, strict=True)):
            port = ("peer", "name", "eth0", "netns", str(host))
            self._on(self.switch, "ip", "link", "add", f"port{number}", "type", "veth", *port)
            self._on(self.switch, "ip", "link", "set", f"port{number}", "master", "br0", "up")
            self._on(host, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            self._on(host, "ip", "link", "set", "eth0", "up")
            self._on(host, "ip", "link", "set", "lo", "up")

    def start(self, host: int, *command: str, environment: dict[str, str]) -> subprocess.Popen[str]:
        """A program on a host."""
        return subprocess.Popen(
            [*self._into(self.hosts[host]), *command],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut(self, host: int) -> None:
        """Let every packet of a host vanish, its link staying up: a switch port has died."""
        self._on(self.switch, "bridge", "link", "set", "dev", f"port{host}", "state", "0")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _namespace(self) -> int:
        process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE
        )
        self.processes.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            pytest.skip("this machine does not let root make network namespaces")
        return process.pid

    def _into(self, holder: int) -> list[str]:
        return ["nsenter", "--target", str(holder), "--net"]

    def _on(self, holder: int, *command: str) -> None:
        subprocess.run([*self._into(holder), *command], check=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts()
    yield made
    made.close()


def test_ranks_on_both_sides_of_a_cut_end_within_half_a_minute(
    hosts: Hosts, tmp_path: Path
) -> None:
    options = {
        "behaviour": ["train", "train"],
        "steps": 1_000_000,
        "timeout": 1800.0,
        "watchdog": {},
        "liveness": {},
    }
    ranks = [
        hosts.start(
            rank,
            *(sys.executable, str(SCRIPT), str(tmp_path), json.dumps(options)),
            environment={
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": ADDRESSES[0],
                "MASTER_PORT": "29500",
                "GLOO_SOCKET_IFNAME": "eth0",
            },
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + 90
        while not all((tmp_path / f"rank-{rank}-step-5").exists() for rank in range(2)):
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in ranks)
            time.sleep(0.1)
        hosts.cut(1)
        began = time.monotonic()
        codes = [rank.wait(30) for rank in ranks]
        seconds = time.monotonic() - began
    finally:
        for rank in ranks:
            rank.kill()
        outputs = [rank.communicate()[0] for rank in ranks]
    assert codes == [LOST_EXIT_CODE] * 2, outputs
    assert 15 < seconds < 30
    for rank, output in enumerate(outputs):
        assert f"error: rank {rank}: rank {1 - rank} gave no sign of life for 20 s" in output
        stacks = (tmp_path / f"rank-{rank:05d}-stacks.txt").read_text()
        assert "all_reduce" in stacks
        assert "not returned" in stacks
