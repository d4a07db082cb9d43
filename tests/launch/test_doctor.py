"""The doctor sees what is missing, and says what to do about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import doctor, mpi


@pytest.mark.slow
def test_this_machine_is_examined_as_json() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    findings = {row["name"]: row for row in json.loads(result.stdout)}
    assert result.returncode == int(any(row["state"] == "fail" for row in findings.values()))
    assert {"Python", "torch", "DeepSpeed", "MPI", "devices", "cores", "memory", "disk"} <= set(
        findings
    )
    assert findings["Python"]["state"] == "ok"
    for row in findings.values():
        assert row["state"] == "ok" or row["remedy"], f"{row['name']} says what to do"


def test_a_library_that_does_not_import_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_TORCH_PROBE", "import no_such_module")
    (row,) = doctor._torch()
    assert row.state == "fail"
    assert "no_such_module" in row.value
    assert "pip install" in row.remedy


def test_a_library_that_crashes_does_not_take_the_doctor_along() -> None:
    found, reason = doctor._probe("import os; os.kill(os.getpid(), 11)")
    assert found is None
    assert "-11" in reason


def test_a_folder_without_permission_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("no /proc on this system to be refused by")
    monkeypatch.chdir("/proc")  # not even root may write there
    (row,) = doctor._working_folder()
    assert row.state == "fail"
    assert "--out" in row.remedy


def test_little_memory_and_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: 2**30)
    rows = {row.name: row for row in doctor._cores_and_memory()}
    assert rows["memory"].state == "warn"
    usage = type("Usage", (), {"free": 10, "total": 100})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert doctor._disk()[0].state == "warn"
    assert doctor._shared_memory()[0].state in ("ok", "warn")


def fake_mpiexec(folder: Path, script: str) -> None:
    program = folder / "mpiexec"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo 'library: MPICH 5'; echo 'world of 2'", ""),
        ("echo 'library: MPICH 5'; echo 'world of 1'; echo 'world of 1'", "another MPI"),
        ("echo 'no such host' >&2; exit 3", "no such host"),
        ("true", "fails"),
    ],
)
def test_an_mpiexec_is_judged_by_what_its_ranks_say(
    script: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mpiexec(tmp_path, script)
    monkeypatch.setattr(mpi, "find_mpiexec", lambda: tmp_path / "mpiexec")
    found = mpi.examine_mpi(2)
    assert (found.problem == "") == (problem == "")
    assert problem in found.problem


def test_no_mpiexec_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    assert mpi.find_mpiexec() is None
    assert "pip install" in mpi.examine_mpi().problem


@pytest.mark.parametrize(
    ("found", "driver", "state", "value"),
    [
        ({"cuda": "12.8", "gpus": ["H100", "H100"]}, True, "ok", "2 x H100"),
        ({"cuda": None, "gpus": []}, True, "warn", "torch cannot use"),
        ({"cuda": "12.8", "gpus": []}, False, "warn", "CUDA build"),
        ({"cuda": None, "gpus": []}, False, "ok", "CPU"),
        ({"cuda": "11.8", "gpus": ["V100"], "bf16": False}, True, "warn", "V100"),
    ],
)
def test_devices_are_matched_with_the_build_of_torch(
    found: dict[str, object],
    driver: bool,
    state: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probed = {"version": "2.13.0", "hip": None, "gloo": True, "bf16": True, **found}
    monkeypatch.setattr(doctor, "_probe", lambda code: (probed, ""))
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: driver)
    row = {row.name: row for row in doctor._torch()}["devices"]
    assert row.state == state
    assert value in row.value
    assert row.state == "ok" or row.remedy
