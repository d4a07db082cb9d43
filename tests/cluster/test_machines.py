"""What tests of launchers stand on: hosts that reach one another until they are cut off or die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from machines.hosts import LOGIN, Hosts, wait_for, why_no_hosts
from machines.slurm import Slurm

pytestmark = pytest.mark.cluster

SSH = ("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=2")

# Raises hosts, starts something on one of them, tells who runs, and waits to be killed.
RAISE = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from machines.hosts import Hosts
hosts = Hosts(1, Path(sys.argv[2]))
hosts.start("node1", "sleep", "1000")
while not hosts.processes("node1"):
    time.sleep(0.01)
holders = [host.holder.pid for host in hosts._hosts.values()]
print(json.dumps([*hosts.processes("node1"), *holders, hosts._switch.pid]), flush=True)
time.sleep(1000)
"""


def reaches(hosts: Hosts, left: str, right: str) -> bool:
    return hosts.run(left, *SSH, right, "true", check=False).returncode == 0


def test_a_host_is_a_machine_of_its_own_with_shared_files(hosts: Hosts, tmp_path: Path) -> None:
    script = f"""
        hostname; echo of $(hostname) > {tmp_path}/$(hostname); touch /dev/shm/$(hostname)
        ls /dev/shm; cat {tmp_path}/node1; ls /sys/class/net; (sleep 0.01 &) ; ps --no-headers -e
    """
    lines = {node: hosts.run(node, "bash", "-c", script).stdout for node in ("node1", "node2")}
    for node, text in lines.items():
        assert text.splitlines()[:5] == [node, node, "of node1", "eth0", "lo"]
        assert sys.executable not in text
        assert hosts.run(node, "pwd", folder=tmp_path).stdout.strip() == str(tmp_path)
        wait_for(lambda node=node: not hosts.processes(node), 5, f"{node} to bury its orphan")


def test_ssh_knows_every_host_and_only_those(hosts: Hosts) -> None:
    for host in hosts.nodes:
        other = hosts.run(LOGIN, *SSH, host, "hostname; echo $SSH_CLIENT")
        assert other.stdout.split()[:2] == [host, hosts.address(LOGIN)]
    known = hosts.known_hosts.read_text()
    hosts.known_hosts.write_text(known.replace("node1", "node9").replace(".11 ", ".19 "))
    try:
        refused = hosts.run(LOGIN, *SSH, "node1", "true", check=False)
    finally:
        hosts.known_hosts.write_text(known)
    assert "Host key verification failed" in refused.stdout


def test_a_cable_is_pulled_and_a_host_loses_its_power(hosts: Hosts) -> None:
    hosts.cut("node1")
    assert not reaches(hosts, "node2", "node1")
    assert reaches(hosts, "node2", LOGIN)
    hosts.mend("node1")
    wait_for(lambda: reaches(hosts, "node2", "node1"), 30, "the network")
    asleep = hosts.start("node1", "sleep", "1000")
    over_ssh = hosts.start("node2", *SSH, "-o", "ServerAliveInterval=1", "node1", "sleep 1000")
    wait_for(lambda: len(hosts.processes("node1")) > 1, 10, "a session")
    hosts.crash("node1")
    assert asleep.wait(5) == -signal.SIGKILL
    assert not reaches(hosts, "node2", "node1")
    assert over_ssh.wait(30) == 255
    hosts.boot("node1")
    assert not hosts.processes("node1")
    wait_for(lambda: reaches(hosts, "node2", "node1"), 30, "the host")


def test_a_signal_reaches_the_command_and_restoring_leaves_nothing(hosts: Hosts) -> None:
    script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = hosts.start("node1", "bash", "-c", script)
    wait_for(lambda: "ready" in process.output, 10, "the command")
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)
    process.terminate()
    assert process.wait(10) == 7
    assert process.output == "ready\ncaught\n"
    hosts.start("node2", "bash", "-c", "setsid sleep 1000 & disown; exec sleep 1000")
    hosts.cut("node3")
    hosts.crash("node1")
    wait_for(lambda: len(hosts.processes("node2")) == 2, 10, "both of them")
    hosts.restore()
    assert not hosts.processes("node2")
    wait_for(lambda: reaches(hosts, "node1", "node3"), 30, "the network")


def test_hosts_end_with_the_process_that_raised_them(hosts: Hosts, tmp_path: Path) -> None:
    """Beside other hosts with the same names and addresses, and by SIGKILL."""
    cluster = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", RAISE, cluster, str(tmp_path)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        told = other.stdout.readline()
        assert told
        assert reaches(hosts, LOGIN, "node1")
        other.kill()
    running = json.loads(told)
    assert len(running) == 4
    wait_for(lambda: not any(map(is_running, running)), 10, "all of them to end")
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert reaches(hosts, LOGIN, "node1")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_slurm_runs_on_two_nodes_with_pretended_gpus(slurm: Slurm) -> None:
    script = 'echo "$(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"'
    options = ("--nodes=2", "--gpus-per-node=2", "--exclude=node2")
    ran = slurm.run("srun", *options, "bash", "-c", script)
    assert sorted(ran.stdout.splitlines()) == ["node1 0 0,1", "node3 1 0,1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="asks what root lacks")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    why_no_hosts.cache_clear()
    try:
        reason = why_no_hosts()
    finally:
        why_no_hosts.cache_clear()
    assert reason.startswith("not installed: ")
    assert {"nsenter", "unshare", "ssh"} <= set(reason.partition(": ")[2].split(", "))
