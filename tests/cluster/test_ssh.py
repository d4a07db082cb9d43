"""`spade launch ssh` over real hosts with real sshd: faults, stops, and what is checked before.

Every name that reaches a host is hostile: folders and values hold blanks, quotes, `;`, `$()`, a
line's end.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from machines.hosts import Hosts, wait_for
from machines.processes import HostProcess
from worker_processes import losses, read_lines, train

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

HOSTILE = "a b'c\"; touch PWNED; $(touch PWNED) `touch PWNED`\n&"
SPADE = (sys.executable, "-m", "launch.cli")
RANKS = "-m launch.cli pretrain"
AGENT = "-m launch.clusters.node"
STARTS = re.compile(r"^(\d) ranks? on (\S.*), meeting at (\S+)$", re.MULTILINE)


class Launch:
    """One run, launched from `login`; the same command may be started again."""

    def __init__(self, hosts: Hosts, folder: Path, config: Path, run: Path) -> None:
        self.hosts, self.folder, self.config, self.run = hosts, folder, config, run
        self.hostfile = folder / "hosts.txt"
        self.hostfile.write_text("node1 slots=1\nnode2 slots=1  # the other one\n")
        self.description = folder / "cluster.yaml"
        self.describe()
        self.launcher: HostProcess

    def describe(self, **settings: Any) -> None:
        # The launcher's own folder is in no way that of the ranks.
        nodes = {"environment": {"SPADE_TEST": HOSTILE}, **settings}
        self.description.write_text(yaml.safe_dump({"nodes": nodes, "connect_seconds": 3}))

    def command(self, *options: str) -> list[str]:
        words = ["launch", "ssh", str(self.config), "--hostfile", str(self.hostfile)]
        return [*SPADE, *words, "--cluster", str(self.description), *options]

    def start(self, *options: str) -> None:
        self.launcher = self.hosts.start("login", *self.command(*options), folder=self.folder)

    @property
    def said(self) -> str:
        return self.launcher.output

    def steps(self) -> int:
        return max((line["step"] for line in read_lines(self.run / "metrics.jsonl")), default=0)

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> float:
        """Seconds until something holds; the launcher must live meanwhile."""
        began = time.monotonic()
        wait_for(lambda: condition() or self.launcher.poll() is not None, seconds, what)
        assert condition(), f"{what}: {self.said}"
        return time.monotonic() - began

    def wait_for_steps(self, further: int) -> float:
        wanted = self.steps() + further
        return self.wait(lambda: self.steps() >= wanted, 150, f"step {wanted}")

    def processes(self, host: str, words: str) -> list[int]:
        return [pid for pid, line in self.hosts.processes(host).items() if words in line]

    def ranks(self, *hosts: str) -> list[int]:
        """Ranks and the torchrun above them."""
        return [pid for host in hosts for pid in self.processes(host, RANKS)]

    def rank(self, host: str) -> int:
        """The one rank of a host; what it starts has the same name and a higher number."""
        return min(
            pid
            for pid in self.ranks(host)
            if b"\0LOCAL_RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
        )

    def wait_for_start(self, number: int) -> float:
        """Seconds until the launcher has started the ranks so many times, and they train."""
        began = time.monotonic()
        self.wait(lambda: len(STARTS.findall(self.said)) == number, 120, f"start {number}")
        self.wait_for_steps(1)
        return time.monotonic() - began

    def wait_until_nothing_runs(self, *hosts: str, seconds: float = 60) -> float:
        return self._wait_until(lambda: not self.ranks(*hosts), seconds, f"ranks on {hosts}")

    def _wait_until(self, condition: Callable[[], object], seconds: float, what: str) -> float:
        began = time.monotonic()
        wait_for(condition, seconds, what)
        return time.monotonic() - began

    def end(self, code: int, seconds: float = 120) -> None:
        assert self.launcher.wait(seconds) == code, self.said
        for host in self.hosts.names:
            self._wait_until(lambda host=host: not self.processes(host, AGENT), 10, f"idle {host}")
            assert not self.ranks(host), self.said


@pytest.fixture
def launch(
    hosts: Hosts, run_settings: dict[str, Any], tmp_path: Path, write_config: Callable[..., Path]
) -> Launch:
    folder = tmp_path / HOSTILE
    folder.mkdir()
    # Relative: it begins in the working folder of the hosts.
    run_settings["run_dir"] = f"runs {HOSTILE}"
    run_settings["train"]["max_steps"] = 150
    run_settings["checkpoint"] = {"every_steps": 10, "keep_last": 2}
    run_settings["evaluation"]["every_steps"] = 1000
    config = write_config(run_settings)
    return Launch(hosts, folder, config, folder / f"runs {HOSTILE}" / "tiny")


def test_a_run_survives_ranks_agents_a_cable_and_its_launcher(
    launch: Launch, hosts: Hosts, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Five faults in one run, whose curve is that of two quiet ranks of one machine."""
    began = time.monotonic()
    launch.start()
    launch.wait_for_steps(1)
    seconds = {"command to first step": time.monotonic() - began}
    launch.wait_for_steps(3)

    os.kill(launch.rank("node2"), signal.SIGKILL)
    seconds["rank killed to step"] = launch.wait_for_start(2)
    assert re.search(r"first failure: rank 1 on node2 at \S+: was ended by SIGKILL", launch.said)
    launch.wait_for_steps(3)

    os.kill(launch.rank("node1"), signal.SIGKILL)  # the first rank, on the first host
    launch.wait_for_start(3)
    launch.wait_for_steps(3)

    (agent,) = launch.processes("node2", AGENT)
    os.kill(agent, signal.SIGKILL)
    launch.wait_for_start(4)
    assert "node2: the connection is lost" in launch.said
    launch.wait_for_steps(3)

    hosts.cut("node2")
    seconds["cable pulled to all ranks ended"] = launch.wait_until_nothing_runs("node1", "node2")
    launch.wait(lambda: "waiting for them" in launch.said, 30, "the launcher to wait")
    assert "node2: does not answer (ssh: connect to host node2" in launch.said
    assert re.search(r"rank \d gave no sign of life for 20 s", launch.said)
    hosts.mend("node2")
    seconds["mended to step"] = launch.wait_for_start(5)
    assert launch.said.count("waiting for them") == 1
    launch.wait_for_steps(3)

    launch.launcher.kill()
    launch.launcher.wait()
    seconds["launcher killed to all ranks ended"] = launch.wait_until_nothing_runs("node1", "node2")
    marker = launch.run / "stopped.json"
    assert marker.exists(), "its ranks saved"

    launch.start()
    launch.end(0)
    assert len(STARTS.findall(launch.said)) == 1
    assert "done: 150 steps" in launch.said
    train(launch.config, "name=whole", f"run_dir={tmp_path}/quiet", processes=2)
    assert losses(launch.run) == losses(tmp_path / "quiet" / "whole")
    assert not list(tmp_path.rglob("PWNED"))
    variables = (launch.run / "launch" / "config.yaml").read_text()
    assert yaml.safe_load(variables)["run_dir"] == f"runs {HOSTILE}"
    print({name: f"{value:.1f} s" for name, value in seconds.items()})
    for name, value in seconds.items():
        record_property(name, round(value, 1))


def test_a_stop_reaches_all_hosts_and_a_dead_one_is_left_behind(
    launch: Launch, hosts: Hosts
) -> None:
    launch.start("--min-nodes", "1")
    launch.wait_for_steps(3)
    # The ranks see what the description says, to the letter.
    rank = launch.rank("node2")
    environment = Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    assert f"SPADE_TEST={HOSTILE}".encode() in environment
    assert Path(f"/proc/{rank}/cwd").readlink() == launch.folder
    launch.launcher.send_signal(signal.SIGINT)
    launch.end(75)
    assert launch.said.count("stopped on request (SIGTERM)") == 1
    assert (launch.run / "stopped.json").exists()

    launch.start("--min-nodes", "1")
    launch.wait_for_steps(3)
    hosts.crash("node1")  # where the ranks met
    launch.wait_for_start(2)
    assert STARTS.findall(launch.said)[1][:2] == ("1", "node2")
    hosts.boot("node1")
    os.kill(launch.rank("node2"), signal.SIGSTOP)  # it will not save
    launch.launcher.send_signal(signal.SIGINT)
    time.sleep(1)
    assert launch.launcher.poll() is None
    launch.launcher.send_signal(signal.SIGINT)
    launch.end(137, seconds=30)


def refusal(launch: Launch) -> str:
    result = launch.hosts.run("login", *launch.command(), folder=launch.folder, check=False)
    assert result.returncode == 1, result.stdout
    assert "ranks on" not in result.stdout
    assert "password:" not in result.stdout
    return result.stdout


def test_each_problem_of_a_host_is_one_line_with_its_remedy(launch: Launch, hosts: Hosts) -> None:
    known = hosts.known_hosts.read_text()
    keys = known.splitlines(keepends=True)
    try:
        hosts.known_hosts.write_text("".join(key for key in keys if not key.startswith("node2,")))
        said = refusal(launch)
        assert "error: node2: its key is not known here" in said
        assert "ssh -o StrictHostKeyChecking=ask node2 true" in said
        assert hosts.known_hosts.read_text().count("node2,") == 0, "nothing is added by itself"
        other = next(key for key in keys if key.startswith("login,")).partition(" ")[2]
        changed = [f"node2 {other}" if key.startswith("node2,") else key for key in keys]
        hosts.known_hosts.write_text("".join(changed))
        assert "error: node2: its key is not the one known here" in refusal(launch)
    finally:
        hosts.known_hosts.write_text(known)

    launch.hostfile.write_text("stranger@node1 slots=1\nnode9 slots=1\n")
    said = refusal(launch)
    assert "error: stranger@node1: no login without a password" in said
    assert "error: node9: does not answer" in said
    launch.hostfile.write_text("node1 slots=1\nnode2 slots=1\n")

    launch.describe(python="/no/such/python")
    assert "error: node1: no interpreter (" in refusal(launch)
    launch.describe(python="/usr/bin/python3")
    assert re.search(r"error: node2: .*install", refusal(launch))
    launch.describe(modules=["no;touch${IFS}PWNED"])
    assert "cannot be made ready" in refusal(launch)
    launch.describe()
    # A folder of the same name that is not the same folder.
    hosts.run("node2", "mount", "-t", "tmpfs", "tmpfs", str(launch.folder))
    try:
        said = refusal(launch)
        assert "error: node2: does not see what is written to" in said
        assert "node1:" not in said
    finally:
        hosts.run("node2", "umount", str(launch.folder))
    assert not list(launch.folder.rglob("PWNED"))


def test_ranks_meet_though_a_host_knows_itself_as_loopback(hosts: Hosts, tmp_path: Path) -> None:
    names = tmp_path / "hosts"
    names.write_text("127.0.0.1 localhost\n127.0.1.1 node1\n")
    code = "from launch.clusters.network import *; print(interface_towards('node1'))"
    script = f'mount --bind "$1" /etc/hosts && exec "$2" -c "{code}"'
    shell = ("unshare", "--mount", "bash", "-c", script, "bash", str(names), sys.executable)
    assert hosts.run("node1", *shell).stdout == "eth0\n"
    towards = hosts.run("node2", sys.executable, "-c", code)
    assert towards.stdout == "eth0\n"
