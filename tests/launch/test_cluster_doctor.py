"""What the doctor makes of facts, and the parts of it that need one machine only."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.build_tools import has_asynchronous_io, missing_build_tools
from launch.cli import run as run_command
from launch.clusters.doctor import gpus, kinds
from launch.clusters.doctor.comparing import (
    compare_clocks,
    compare_folders,
    compare_ports,
    compare_versions,
    judge_all_reduce,
)
from launch.clusters.doctor.facts import FolderFacts, NodeFacts
from launch.clusters.doctor.gpus import Gpu, gpus_of, survey_gpus
from launch.clusters.doctor.judging import judge_node
from launch.clusters.doctor.meeting import Contact
from launch.doctor import Finding
from launch.failures import CommandError

GIB = 2**30


def healthy(**changes: Any) -> NodeFacts:
    node = NodeFacts(
        host="node1",
        unix_seconds=0.0,
        python="3.11.7",
        executable="/env/bin/python",
        code="0.1.0+abc",
        packages={"torch": "2.13.0", "deepspeed": "0.19.8", "numpy": "2.4.0"},
        cores=8,
        memory_bytes=64 * GIB,
        folder=FolderFacts("/shared/runs", free_bytes=100 * GIB),
        temporary=FolderFacts("/tmp", free_bytes=100 * GIB),
        shared_memory_free_bytes=8 * GIB,
        gpus=tuple(Gpu(index, f"GPU-{index}", "H100", 81559, 4, 0) for index in range(2)),
    )
    return dataclasses.replace(node, **changes)


def finding_of(node: NodeFacts, name: str, gpus_per_node: int | None = None) -> Finding:
    return {item.name: item for item in judge_node(node, gpus_per_node)}[name]


def gpu(**changes: Any) -> dict[str, Any]:
    return {"gpus": (dataclasses.replace(healthy().gpus[0], **changes),)}


def test_a_healthy_machine_has_no_finding_to_mend() -> None:
    assert {item.state for item in judge_node(healthy(), 2)} == {"ok"}
    assert not any(item.remedy for item in judge_node(healthy(), 2))


@pytest.mark.parametrize(
    ("changes", "name", "state", "value"),
    [
        ({"python": "3.9.1"}, "Python", "fail", "3.9.1 at /env/bin/python"),
        ({"python": "3.13.0rc1"}, "Python", "fail", "3.13.0rc1"),
        ({"packages": {"torch": "2.13.0", "deepspeed": ""}}, "packages", "fail", "deepspeed"),
        ({"folder": FolderFacts("/runs", "Permission denied")}, "folder", "fail", "Permission"),
        ({"folder": FolderFacts("/runs", free_bytes=10)}, "folder", "fail", "10 B"),
        ({"folder": FolderFacts("/runs", free_bytes=GIB)}, "folder", "warn", "1.0 GiB"),
        ({"temporary": FolderFacts("/tmp", free_bytes=10)}, "temporary files", "warn", "10 B"),
        ({"temporary": FolderFacts("/tmp", "full")}, "temporary files", "fail", "full"),
        ({"shared_memory_free_bytes": 2**25}, "shared memory", "fail", "32.0 MiB"),
        ({"shared_memory_free_bytes": 2**26}, "shared memory", "warn", "64.0 MiB"),
        ({"shared_memory_free_bytes": None}, "shared memory", "ok", "no /dev/shm"),
        ({"gpus": ()}, "GPUs", "fail", "none"),
        ({"gpu_problem": "no answer in 20 s"}, "GPUs", "fail", "no answer"),
        ({"gpus": healthy().gpus[:1]}, "GPUs", "fail", "1 x H100"),
    ],
)
def test_what_is_wrong_is_named_with_a_remedy(
    changes: dict[str, Any], name: str, state: str, value: str
) -> None:
    found = finding_of(healthy(**changes), name, gpus_per_node=2)
    assert found.state == state
    assert value in found.value
    assert found.remedy or state == "ok"


@pytest.mark.parametrize(
    ("changes", "state", "value"),
    [
        ({"uncorrected_errors": 3}, "fail", "3 uncorrected memory errors"),
        ({"uncorrected_errors": None}, "ok", "1 x H100"),
        ({"throttled": True}, "warn", "heat"),
        ({"used_mib": 10_000}, "warn", "12% of its memory"),
        ({"used_mib": 60_000}, "fail", "74% of its memory"),
        ({"used_mib": 10_000, "uncorrected_errors": 1}, "fail", "1 uncorrected"),
    ],
)
def test_sick_gpus_are_found(changes: dict[str, Any], state: str, value: str) -> None:
    found = finding_of(healthy(**gpu(**changes)), "GPUs")
    assert found.state == state
    assert value in found.value


def test_facts_survive_the_journey_and_those_of_other_code_are_refused() -> None:
    told = json.loads(json.dumps(healthy().to_dict()))
    assert NodeFacts.of_dict(told) == healthy()
    for broken in ({**told, "more": 1}, {key: told[key] for key in ("host", "gpus")}):
        with pytest.raises(ValueError, match="other code"):
            NodeFacts.of_dict(broken)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A program of that name, which a machine without GPUs lacks: what the real one prints."""

    def write(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return write


def test_gpus_are_read_from_nvidia_smi(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(
        'case "$1" in\n'
        "  *memory.used*) echo '0, GPU-a1, NVIDIA H100 80GB HBM3, 81559, 4'\n"
        "                 echo '1, GPU-b2, NVIDIA H100 80GB HBM3, 81559, 70000' ;;\n"
        "  *ecc*) echo '0, Not Active, Not Active'; echo '2, Active, Not Active' ;;\n"
        "esac"
    )
    first, second = survey_gpus().gpus
    assert first == Gpu(0, "GPU-a1", "NVIDIA H100 80GB HBM3", 81559, 4, 0, False)
    assert (second.used_mib, second.uncorrected_errors, second.throttled) == (70000, 2, True)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'No devices were found'; exit 6", ""),
        ("echo 'Unable to determine the device handle: GPU is lost' >&2; exit 15", "GPU is lost"),
        ("echo 'a, b, c'", "cannot be read"),
        ("echo '0, GPU-a1, H100, [N/A], 4'", "cannot be read"),
        ("exec sleep 60", "no answer"),
    ],
)
def test_gpus_that_do_not_answer_are_a_problem(
    script: str, problem: str, nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(script)
    monkeypatch.setattr(gpus, "_QUERY_SECONDS", 1)
    found = survey_gpus()
    assert not found.gpus
    assert problem in found.problem
    assert bool(problem) == bool(found.problem)


def test_a_gpu_without_error_counters_is_a_gpu() -> None:
    basic = [["0", "GPU-a1", "RTX", "24000", "1"]]
    (one,) = gpus_of(basic, [["[N/A]", "Not Active", "Active"]])
    assert one == Gpu(0, "GPU-a1", "RTX", 24000, 1, None, True)
    assert gpus_of(basic, []) == (Gpu(0, "GPU-a1", "RTX", 24000, 1, None, False),)


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [
        *((None, [0, 1]), ("", []), ("1", [1]), ("0, 1", [0, 1]), ("-1", [])),
        *(("GPU-1", [1]), ("MIG-GPU-1/0/0", [0, 1])),
    ],
)
def test_gpus_of_others_are_left_out(chosen: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in gpus.visible(healthy().gpus, chosen)] == indices


def test_the_odd_one_out_is_marked() -> None:
    other = {**healthy().packages, "torch": "2.12.0"}
    found = compare_versions({0: healthy(packages=other), 1: healthy(), 2: healthy()})
    assert [found[node].state for node in range(3)] == ["fail", "ok", "ok"]
    assert found[0].value == "torch 2.12.0, elsewhere 2.13.0"
    minor = {**healthy().packages, "numpy": "2.3.0"}
    assert compare_versions({0: healthy(), 1: healthy(packages=minor)})[1].state == "warn"
    assert compare_versions({0: healthy(), 1: healthy(python="3.11.9")})[1].state == "ok"
    for changes in ({"code": "0.1.0+def"}, {"python": "3.12.1"}):
        assert compare_versions({0: healthy(), 1: healthy(**changes)})[1].state == "fail"


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=9))
def test_versions_are_equal_exactly_where_nothing_is_marked(codes: list[str]) -> None:
    found = compare_versions({node: healthy(code=code) for node, code in enumerate(codes)})
    assert list(found) == list(range(len(codes)))
    good = {code for node, code in enumerate(codes) if found[node].state == "ok"}
    assert len(good) == 1
    (usual,) = good
    assert all((found[node].state == "ok") == (code == usual) for node, code in enumerate(codes))
    assert codes.count(usual) == max(map(codes.count, codes))


def contacts_of(clocks: list[float], round_trip: float = 0.0) -> dict[int, list[Contact]]:
    """What machines with such clocks measure of one another."""
    nodes = range(len(clocks))
    return {
        one: [
            Contact(two, 40000, "", round_trip, clocks[two] - clocks[one])
            for two in nodes
            if two != one
        ]
        for one in nodes
    }


@given(
    st.lists(st.floats(-0.04, 0.04), min_size=3, max_size=8),
    st.integers(0, 7),
    st.floats(1.2, 1e6) | st.floats(-1e6, -1.2),
    st.booleans(),
)
def test_only_the_wrong_clock_is_red(
    clocks: list[float], wrong: int, error: float, one_way: bool
) -> None:
    wrong %= len(clocks)
    nodes = list(range(len(clocks)))
    assert {item.state for item in compare_clocks(nodes, contacts_of(clocks)).values()} == {"ok"}
    clocks[wrong] += error
    contacts = contacts_of(clocks)
    if one_way:
        contacts[0] = []  # the first reaches nobody, but is reached
    found = compare_clocks(nodes, contacts)
    assert [node for node in nodes if found[node].state == "fail"] == [wrong]
    assert math.isclose(float(found[wrong].value.split()[0]), error, abs_tol=0.1)


def test_a_clock_is_not_blamed_for_a_slow_line_nor_judged_unseen() -> None:
    slow = compare_clocks([0, 1], contacts_of([0.0, 2.0], round_trip=4.0))
    assert {item.state for item in slow.values()} == {"ok"}
    assert compare_clocks([0, 1], contacts_of([0.0, 0.5]))[1].state == "warn"
    cut = compare_clocks([0, 1], {0: [Contact(1, 1, "no answer")], 1: []})
    assert {item.value for item in cut.values()} == {"not measured"}
    assert compare_clocks([4], {4: []})[4].state == "ok"


def test_ports_that_nobody_reaches_are_red_at_the_machine_that_listens() -> None:
    names = {0: "node1", 1: "node2", 2: "node3"}
    contacts = contacts_of([0.0] * 3)
    assert {item.state for item in compare_ports(names, contacts, "1-2").values()} == {"ok"}
    contacts[0] = [Contact(1, 40000, "no answer in 5 s"), contacts[0][1]]
    contacts[2] = [contacts[2][0], Contact(1, 40001, "no answer in 5 s")]
    found = compare_ports(names, contacts, "32768-60999")
    assert [found[node].state for node in names] == ["ok", "fail", "ok"]
    assert found[1].value == "not reached by node1, node3: no answer in 5 s"
    assert "32768-60999" in found[1].remedy
    assert compare_ports({0: "a"}, {0: []}, "1-2")[0].state == "ok"


def test_a_folder_that_is_not_shared_is_red_on_both_sides() -> None:
    names = {0: "node1", 1: "node2"}
    found = compare_folders("/runs", names, {0: [], 1: []}, [])
    assert {item.state for item in found.values()} == {"ok"}
    found = compare_folders("/runs", names, {0: [], 1: ["node1"]}, ["node2"])
    assert [found[node].state for node in names] == ["ok", "fail"]
    assert "node1" in found[1].value
    assert "doctor" in found[1].value
    assert "/runs" in found[1].remedy


def test_bandwidth_is_that_of_the_bus() -> None:
    sizes = [{"bytes": 4, "seconds": 0.0002}, {"bytes": 2**26, "seconds": 0.1}]
    found = judge_all_reduce({"ranks": 4, "sizes": sizes}, 2)
    assert (found.state, found.value) == ("ok", "1.01 GB/s, 0.20 ms")
    slow = [{"bytes": 4, "seconds": 0.01}, {"bytes": 2**20, "seconds": 1.0}]
    assert judge_all_reduce({"ranks": 4, "sizes": slow}, 2).state == "warn"
    assert judge_all_reduce({"ranks": 4, "sizes": slow}, 1).state == "ok"


def hostfile(folder: Path) -> Path:
    path = folder / "hosts"
    path.write_text("node1 slots=1\nuser@node2 slots=1\n")
    return path


def test_every_kind_starts_an_argument_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    common: dict[str, Any] = {"description": None, "gpus_per_node": None, "folder": Path("runs")}
    ssh = kinds.machines_of("ssh", hostfile=hostfile(tmp_path), nodes=None, **common)
    assert ssh.names == ("node1", "node2")
    assert ssh.folder.is_absolute()
    for number, start in enumerate(ssh.starts):
        assert start.nodes == (number,)
        assert {"BatchMode=yes", "StrictHostKeyChecking=yes"} <= set(start.command)
    assert ssh.starts[1].command[-2] == "user@node2"
    assert len(kinds.machines_of("ssh", hostfile=hostfile(tmp_path), nodes=1, **common).names) == 1
    description = tmp_path / "slurm.yaml"
    description.write_text("partition: 'a b; $(touch x)'\ngres: gpu:a100:4\n")
    common["description"] = description
    slurm = kinds.machines_of("slurm", hostfile=None, nodes=3, **common)
    (start,) = slurm.starts
    assert start.nodes == (0, 1, 2)
    assert {"--partition=a b; $(touch x)", "--gres=gpu:a100:4", "--nodes=3"} <= set(start.command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "cloud"], "'cloud' is none of local, slurm, ssh, mpi"),
        (["--cluster", "ssh"], "needs --hostfile FILE"),
        (["--cluster", "slurm"], "needs --nodes N"),
        (["--nodes", "2"], "need --cluster KIND"),
        (["--cluster", "ssh", "--hostfile", "{hosts}", "--nodes", "9"], "exceeds the 2 hosts"),
        (["--cluster", "ssh", "--hostfile", "{hosts}.none"], "No such file"),
        (["--cluster", "local", "--description", "{bad}"], "partition"),
    ],
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    bad = tmp_path / "bad.yaml"
    bad.write_text("partition: main\n")
    words = [word.format(hosts=hostfile(tmp_path), bad=bad) for word in arguments]
    assert run_command(["doctor", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_mpi_without_an_mpiexec_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "find_mpiexec", lambda: None)
    with pytest.raises(CommandError, match="no mpiexec"):
        kinds.machines_of(
            "mpi",
            description=None,
            hostfile=hostfile(tmp_path),
            nodes=None,
            gpus_per_node=None,
            folder=tmp_path,
        )


def test_build_tools_that_are_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken compiler"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    for compiler in (f"'{broken}'", "no-such-compiler", "'"):
        monkeypatch.setenv("CXX", compiler)
        assert f"a C++ compiler ({compiler})" in missing_build_tools()
        assert not has_asynchronous_io()
    monkeypatch.setenv("CXX", "true")
    assert not any("compiler" in name for name in missing_build_tools())
