"""What docs/long_documents.md says to write and type is valid, and what it shows of Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import run as run_command
from pretrain.config import RunConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "long_documents.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("snippet", blocks("yaml"))
def test_the_settings_are_valid(run_settings: dict[str, Any], snippet: str) -> None:
    for section, values in yaml.safe_load(snippet).items():
        run_settings.setdefault(section, {}).update(values)
    run_settings["model"] |= {"vocab_size": 1024, "max_target_length_tokens": 65_536}
    config = RunConfig.from_dict(run_settings)
    assert config.parallel.context > 1
    config.most_accumulation_steps(config.parallel.context)


@pytest.mark.parametrize("command", "".join(blocks("bash")).splitlines())
def test_the_commands_take_these_options(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command)
    assert words[0] == "spade"
    assert "--context" in words
    # That they give the numbers of one process is shown in tests/finetune/test_evaluate.py.
    monkeypatch.setenv("COLUMNS", "200")
    assert run_command([*words[1:3], "--help"]) == 0
    told = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in told, option


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT):
        assert (PAGE.parent / path).exists(), path
