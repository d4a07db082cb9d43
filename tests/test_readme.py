"""What the README tells people to type is typed here, on a corpus that takes seconds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
# Smaller numbers for a smaller corpus; the commands stay as they stand.
SMALLER = {"--vocab-size 8192": "--vocab-size 512"}
STEPS = (
    "train.max_steps=4 schedule.warmup_steps=1 schedule.decay_steps=1 evaluation.every_steps=2 "
    "evaluation.samples=4 checkpoint.every_steps=2 data.input_length_tokens=128"
)


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_block_names_scripts_that_exist():
    commands = re.findall(r"^bash (\S+)", blocks("bash")[0], re.MULTILINE)
    assert commands == ["launch/quickstart.sh", "tests/run.sh"]
    for command in commands:
        assert (README.parent / command).is_file()


def test_every_file_and_folder_it_names_exists():
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(((?!http)[^)#]+)\)", text))
    named |= set(
        re.findall(r"`((?:configs|docs|benchmarks|launch|pretrain|spade_model)/[\w./-]*)`", text)
    )
    assert named
    for name in named:
        assert (README.parent / name).exists(), name


@pytest.mark.slow
def test_step_by_step_works_as_printed(prose_corpus, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "prose.jsonl").write_bytes(prose_corpus.read_bytes())
    (tmp_path / "configs").symlink_to(README.parent / "configs")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    commands = [line for line in blocks("bash")[1].splitlines() if not line.startswith("source ")]
    assert len(commands) == 8
    for command in commands:
        for printed, smaller in SMALLER.items():
            command = command.replace(printed, smaller)
        if " pretrain " in command:
            command = f"{command} {STEPS}"
        done = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command

    program = blocks("python")[0]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_example_of_the_model_page_runs():
    page = (README.parent / "docs" / "model.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tensor(" in done.stdout
    for path in re.findall(r"`(spade_model/[\w/]+\.py)`", page):
        assert (README.parent / path).is_file(), path
