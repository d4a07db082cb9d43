"""The shell scripts: valid, clean, and clear about what a machine lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    *sorted((ROOT / "launch").glob("*.sh")),
    *sorted((ROOT / "tests").rglob("*.sh")),
    ROOT / ".ci" / "run",
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_clean(script: Path) -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run(
        [program, "-x", str(script)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stdout


def test_the_entry_scripts_are_strict_and_ci_calls_the_tests() -> None:
    for script in SCRIPTS:
        if script.name != "environment.sh":  # sourced by the others
            assert "set -euo pipefail" in script.read_text()
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "bash tests/run.sh"


def in_shell(code: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code after sourcing environment.sh, with only ``path`` and the system's tools."""
    return subprocess.run(
        [
            *("/bin/bash", "-c", f'set -euo pipefail; source "$1"; {code}', "-"),
            str(ROOT / "launch" / "environment.sh"),
        ],
        env={"PATH": str(path), "HOME": os.environ.get("HOME", "/"), **environment},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH with the few tools that the script needs, and no Python."""
    for name in ("dirname", "uname", "sed"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return tmp_path


def make_python(programs: Path, name: str, version: str, *, venv: bool = True) -> None:
    """Puts a program that answers as a Python of this version into PATH."""
    (programs / name).write_text(
        '#!/bin/bash\ncase "$2" in\n'
        f"*version_info*) echo {version} ;;\n*ensurepip*) exit {int(not venv)} ;;\nesac\n"
    )
    (programs / name).chmod(0o755)


def test_no_python_is_said(programs: Path) -> None:
    result = in_shell("find_python", programs)
    assert result.returncode == 1
    assert "error: no Python 3.10, 3.11 or 3.12 found" in result.stderr


def test_an_old_or_too_new_python_is_passed_over(programs: Path) -> None:
    make_python(programs, "python3", "3.9")
    make_python(programs, "python", "3.13")
    assert in_shell("find_python", programs).returncode == 1
    make_python(programs, "python3.11", "3.11")
    assert in_shell("find_python", programs).stdout.strip() == str(programs / "python3.11")


def test_the_newest_python_is_taken_unless_one_is_named(programs: Path) -> None:
    for minor in (10, 11, 12):
        make_python(programs, f"python3.{minor}", f"3.{minor}")
    assert in_shell("find_python", programs).stdout.strip() == str(programs / "python3.12")
    named = in_shell("find_python", programs, PYTHON="python3.10")
    assert named.stdout.strip() == str(programs / "python3.10")


def test_a_python_without_venv_names_the_package(programs: Path) -> None:
    make_python(programs, "python3", "3.11", venv=False)
    result = in_shell("find_python", programs)
    assert result.returncode == 1
    assert "apt-get install python3.11-venv" in result.stderr


def test_a_folder_with_a_space_is_found(programs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my clone" / "launch"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "environment.sh", folder)
    result = subprocess.run(
        ["/bin/bash", "-c", 'source "$1"; printf %s "$ROOT"', "-", str(folder / "environment.sh")],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    assert result.stdout == str(tmp_path / "my clone")
