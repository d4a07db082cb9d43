"""The benchmark of launchers runs from end to end, and says what it could not measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_launcher_is_measured(tmp_path: Path) -> None:
    """On hosts where they can be raised, else on this machine; the others take too long here."""
    command = [sys.executable, "-m", "benchmarks.launch", "local", "--smoke"]
    command += ["--out", str(tmp_path / "out"), "--folder", str(tmp_path / "work")]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    (table,) = content["tables"]
    (row,) = table["rows"]
    assert row["launcher"] == "local"
    assert row["rounds"] == 1
    # An interpreter and torch alone take more than a second, and nothing that works five minutes.
    assert 1 < row["first step, median s"] < 300
    assert 1 < row["back, median s"] < 300
    assert (tmp_path / "work" / "runs" / "local-0" / "stopped.json").exists()


def test_what_cannot_be_raised_is_said_and_a_wrong_launcher_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from benchmarks.launch import __main__ as benchmark
    from benchmarks.launch import machines

    with pytest.raises(SystemExit):
        benchmark.main(["speling"])
    assert "unknown question 'speling'; choose from local, slurm" in capsys.readouterr().err
    monkeypatch.setattr(machines, "why_no_hosts", lambda: "making namespaces needs root")
    folders = ["--folder", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    benchmark.main(["slurm", "mpi", *folders])
    output = capsys.readouterr().out
    for launcher in ("slurm", "mpi"):
        assert f"{launcher} was not measured: making namespaces needs root." in output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tables"][0]["rows"] == []
