"""The doctor on real hosts: healthy ones, and each real ailment in the cell where it belongs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from machines.hosts import LOGIN, Hosts, wait_for
from machines.slurm import Slurm

pytestmark = pytest.mark.cluster

DOCTOR = (sys.executable, "-m", "launch.cli", "doctor")
# Every host has a /run of its own: what a login reads there differs from host to host.
SETUP = "/run/setup.sh"
# A clock that is 90 s fast, for the programs of one host: loaded before the C library.
FAST_CLOCK = """
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec += 90;
    return result;
}
"""
CHECKS = {
    *("reached", "Python", "packages", "folder", "temporary files", "shared memory", "GPUs"),
    *("cores, memory", "same versions", "clock", "ports", "shared folder", "all-reduce"),
}


@dataclass
class Ward:
    """A shared folder with a hostfile, and what was done to hosts and must be undone."""

    hosts: Hosts
    folder: Path
    undo: list[tuple[str, ...]] = field(default_factory=list)

    def on(self, host: str, *command: str) -> None:
        self.hosts.run(host, *command)

    def hostfile(self, *hosts: str) -> str:
        path = self.folder / f"hosts-{len(hosts)}"
        path.write_text("".join(f"{host} slots=1\n" for host in hosts))
        return str(path)

    def examine(self, *options: str) -> tuple[int, dict[str, dict[str, dict[str, str]]], Any]:
        """Exit code, findings by machine and check, and the rest."""
        ran = self.hosts.run(
            LOGIN, *DOCTOR, "--json", "--cluster", *options, folder=self.folder, check=False
        )
        report = json.loads(ran.stdout)
        cells = {
            node["name"]: {item["name"]: item for item in node["findings"]}
            for node in report["nodes"]
        }
        assert not list(self.folder.glob(".spade-doctor*"))
        return ran.returncode, cells, report

    def red(self, cells: dict[str, dict[str, dict[str, str]]]) -> set[tuple[str, str]]:
        """Machine and check of every red cell; each says what to do."""
        found = {
            (node, name): item
            for node, items in cells.items()
            for name, item in items.items()
            if item["state"] == "fail"
        }
        assert all(item["remedy"] for item in found.values())
        return set(found)


@pytest.fixture
def ward(hosts: Hosts, tmp_path: Path) -> Iterator[Ward]:
    made = Ward(hosts, tmp_path)
    yield made
    for command in reversed(made.undo):
        hosts.run(*command, check=False)


def test_two_healthy_hosts_are_all_green(ward: Ward) -> None:
    code, cells, report = ward.examine("ssh", "--hostfile", ward.hostfile("node1", "node2"))
    assert code == 0
    assert list(cells) == ["node1", "node2"]
    for items in cells.values():
        assert set(items) == CHECKS
        assert {item["state"] for name, item in items.items() if name != "all-reduce"} == {"ok"}
    measured = report["all_reduce"]
    assert (measured["backend"], measured["ranks"]) == ("gloo", 2)
    assert all(size["seconds"] > 0 for size in measured["sizes"])
    facts = [node["facts"] for node in report["nodes"]]
    assert [item["host"] for item in facts] == ["node1", "node2"]
    for host in ward.hosts.nodes:
        wait_for(lambda host=host: not ward.hosts.processes(host), 10, "the agents to end")


@pytest.mark.skipif(shutil.which("cc") is None, reason="not installed: cc, for a wrong clock")
def test_every_ailment_is_a_red_cell_of_its_own(ward: Ward) -> None:
    """One run, three hosts: other versions and full memory; a wrong clock and a private folder."""
    other = ward.folder / "other"
    (other / "torch-1.0.dist-info").mkdir(parents=True)
    (other / "torch-1.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 1.0\n")
    clock = ward.folder / "clock.so"
    compile_clock = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(clock)]
    subprocess.run(compile_clock, input=FAST_CLOCK.encode(), check=True)
    runs = ward.folder / "runs"
    runs.mkdir()
    setups = {
        "node1": "true",
        "node2": f"export PYTHONPATH={other}",
        "node3": f"export LD_PRELOAD={clock}",
    }
    for host, line in setups.items():
        ward.on(host, "bash", "-c", f"echo {line!r} > {SETUP}")
        ward.undo.append((host, "rm", SETUP))
    ward.on("node2", "fallocate", "--length", "1000M", "/dev/shm/left")
    ward.undo.append(("node2", "rm", "/dev/shm/left"))
    ward.on("node3", "mount", "-t", "tmpfs", "tmpfs", str(runs))
    ward.undo.append(("node3", "umount", str(runs)))
    description = ward.folder / "cluster.yaml"
    description.write_text(f"nodes: {{source: [{SETUP}]}}\n")
    code, cells, _ = ward.examine(
        "ssh",
        *("--hostfile", ward.hostfile("node1", "node2", "node3")),
        *("--description", str(description), "--folder", str(runs)),
    )
    assert code == 1
    ailing = {"node2": ("same versions", "shared memory"), "node3": ("clock",)}
    expected = {(node, check) for node, checks in ailing.items() for check in checks}
    assert ward.red(cells) == expected | {(node, "shared folder") for node in cells}
    assert cells["node2"]["same versions"]["value"].startswith("torch 1.0, elsewhere 2.")
    assert float(cells["node3"]["clock"]["value"].split()[0]) == pytest.approx(90, abs=0.5)
    assert cells["node1"]["shared folder"]["value"] == "does not see the files of node3"
    assert "node1, node2" in cells["node3"]["shared folder"]["value"]
    assert cells["node1"]["all-reduce"]["state"] != "fail"


def test_a_cut_host_and_dropped_packets_end_as_red_cells_in_time(ward: Ward) -> None:
    ward.hosts.cut("node3")
    route = (ward.hosts.address("node1"), "dev", "lo")  # packets for it go nowhere
    ward.undo.append(("node2", "ip", "route", "delete", *route))
    ward.on("node2", "ip", "route", "add", *route)
    description = ward.folder / "cluster.yaml"
    description.write_text("connect_seconds: 2\n")
    code, cells, report = ward.examine(
        "ssh",
        *("--hostfile", ward.hostfile("node1", "node2", "node3")),
        *("--description", str(description)),
    )
    assert code == 1
    red = ward.red(cells)
    assert ("node3", "reached") in red
    assert set(cells["node3"]) == {"reached"}
    assert {("node1", "ports"), ("node2", "ports")} <= red
    assert "no answer in 5 s" in cells["node2"]["ports"]["value"]
    assert report["all_reduce"] is None
    assert cells["node1"]["all-reduce"]["value"] == "not measured"


def test_a_slurm_without_room_on_a_node(slurm: Slurm, tmp_path: Path) -> None:
    command = (*DOCTOR, "--cluster", "slurm", "--nodes", "2", "--folder", str(tmp_path))
    try:
        slurm.hosts.run("node2", "fallocate", "--length", "1000M", "/dev/shm/left")
        ran = slurm.run(*command, check=False)
    finally:
        slurm.hosts.run("node2", "rm", "/dev/shm/left")
    lines = ran.stdout.splitlines()
    assert ran.returncode == 1, ran.stdout
    rows = {line.partition("  ")[0]: line for line in lines if "  " in line}
    assert rows["check"].split() == ["check", "node1", "node2"]
    assert "ok 1.0 GiB free" in rows["shared memory"]
    assert "FAIL 24.0 MiB free" in rows["shared memory"]
    for check in CHECKS - {"shared memory", "all-reduce"}:
        assert rows[check].count("ok ") == 2
    below = lines[lines.index("fail node2, shared memory: 24.0 MiB free") + 1]
    assert "/dev/shm" in below
    assert lines[-1].startswith("2 machines: 1 to fix, ")
    description = tmp_path / "cluster.yaml"
    description.write_text("partition: nowhere\n")
    options = ("--cluster", "slurm", "--nodes", "2", "--description", str(description))
    refused = slurm.run(*DOCTOR, *options, check=False)
    assert refused.returncode == 1
    (line,) = refused.stdout.splitlines()
    assert "no nodes: Invalid partition" in line


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="not installed: mpiexec")
def test_mpi_reaches_hosts_and_a_killed_doctor_leaves_nothing(ward: Ward) -> None:
    options = ("--hostfile", ward.hostfile("node1", "node2"))
    code, cells, _ = ward.examine("mpi", *options)
    assert code == 0
    assert not ward.red(cells)
    doctor = ward.hosts.start(LOGIN, *DOCTOR, "--cluster", "ssh", *options, folder=ward.folder)
    wait_for(lambda: len(list(ward.folder.glob(".spade-doctor-*-[01]"))) == 2, 30, "the agents")
    doctor.kill()
    for host in ("node1", "node2"):
        wait_for(lambda host=host: not ward.hosts.processes(host), 60, "the agents to end")
    assert not list(ward.folder.glob(".spade-doctor-*-[01]"))
