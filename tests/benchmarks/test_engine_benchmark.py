"""The benchmark of the engine runs from end to end, and its parts do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Each start of a run costs seconds: `start` and `resume` are left to people.
QUESTIONS = ("overhead", "stall", "export", "kills")


@pytest.mark.slow
def test_every_question_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.engine", *QUESTIONS, "--smoke"]
    command += ["--out", str(tmp_path / "out"), "--folder", str(tmp_path / "work")]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    tables = {table["name"]: table["rows"] for table in content["tables"]}
    assert set(tables) == set(QUESTIONS)
    for row in tables["overhead"]:
        assert row["engine s"] > 0
        assert row["bare s"] > 0
    assert [row["saves"] for row in tables["stall"]] == [2, 2]
    assert [row["stored as"] for row in tables["export"]] == ["float32", "bfloat16", "float16"]
    assert all(row["peak MB"] > row["imports MB"] > 0 for row in tables["export"])
    (killed,) = tables["kills"]
    assert killed["kills"] == killed["restarts"] == 1
    equal, compared = map(int, killed["losses equal"].split("/"))
    assert equal == compared >= 6
    assert killed["weights and optimizer equal"] is True


def test_the_command_line_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.engine.__main__ import make_options, parse

    with pytest.raises(SystemExit):
        parse(["speling"])
    assert "unknown question 'speling'" in capsys.readouterr().err
    options = make_options(parse(["kills", "--stages", "2", "3", "--kills", "5"]))
    assert (options.stages, options.kills) == ((2, 3), 5)
