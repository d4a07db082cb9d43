"""Shell text for other machines: whatever a user wrote arrives as it was, and runs nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.clusters.settings import NodeSettings
from launch.clusters.shell import bash_command, export_lines, setup_lines

# Anything but NUL, which no argument can hold, and lone surrogates, which no terminal can type.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
HOSTILE = [
    "a b",
    "it's",
    'say "no"',
    "$(touch executed)",
    "`touch executed`",
    "; touch executed",
    "&& touch executed #",
    "line\ntouch executed\n",
    "-n",
    "--",
    "$HOME",
    "*",
    "\\",
    "ä ☃",
    "!!",
    "~",
]
SHOW = "import os, sys; sys.stdout.buffer.write(os.environb[b'VALUE'] + b'\\0' + os.getcwdb())"


def run(command: list[str], folder: Path) -> bytes:
    return subprocess.run(
        command, cwd=folder, capture_output=True, check=True, timeout=60, env={"PATH": os.defpath}
    ).stdout


@settings(max_examples=40)
@given(TEXTS)
@example("$(touch executed)")
@example("line\ntouch executed\n")
def test_a_variable_is_set_to_exactly_the_text(
    tmp_path_factory: pytest.TempPathFactory, value: str
) -> None:
    folder = tmp_path_factory.mktemp("x")
    script = "\n".join([*export_lines({"VALUE": value}), 'printf "%s" "$VALUE"'])
    assert run(["bash", "-eu", "-c", script], folder) == value.encode()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_all_the_way(tmp_path: Path, text: str) -> None:
    folder = tmp_path / text.replace("/", "_")
    folder.mkdir()
    (folder / "a file $(touch executed)").write_text("export READ=yes\n")
    nodes = NodeSettings(environment={"VALUE": text}, source=(folder / "a file $(touch executed)",))
    command = bash_command(nodes, folder, [sys.executable, "-c", SHOW, text])
    value, place = run(command, tmp_path).split(b"\0")
    assert value == text.encode()
    assert place == os.fsencode(folder)
    assert not list(tmp_path.rglob("executed"))


def test_modules_are_words(tmp_path: Path) -> None:
    """A stand-in for the site's `module` shows what it was given."""
    profile = tmp_path / "profile"
    profile.write_text('module() { printf "<%s>" "$@"; }\n')
    names = ("cuda/12.4", "a;touch${IFS}executed", "$(touch${IFS}executed)")
    nodes = NodeSettings(modules=names, source=(profile,))
    output = run(["bash", "-eu", "-c", "\n".join(setup_lines(nodes, tmp_path))], tmp_path)
    assert output.decode() == "".join(f"<load><{name}>" for name in names)
    assert not (tmp_path / "executed").exists()


def test_the_program_takes_the_place_of_the_shell(tmp_path: Path) -> None:
    """So a signal to what was started reaches the program."""
    show = "import os, sys; print(os.getpid(), os.getppid())"
    command = bash_command(NodeSettings(), tmp_path, [sys.executable, "-c", show])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate(timeout=60)
    assert output.split() == [str(process.pid), str(os.getpid())]


def test_a_missing_file_ends_it(tmp_path: Path) -> None:
    nodes = NodeSettings(source=(tmp_path / "absent",))
    command = bash_command(nodes, tmp_path, ["touch", "executed"])
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert result.returncode
    assert not (tmp_path / "executed").exists()
