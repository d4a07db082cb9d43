"""What docs/training.md tells people to type is typed here, on a corpus that takes seconds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from worker_processes import read_lines

from pretrain.config import RunConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
# A smaller run; the commands stay as they stand.
STEPS = (
    "train.max_steps=4 schedule.warmup_steps=1 schedule.decay_steps=1 evaluation.every_steps=2 "
    "evaluation.samples=4 checkpoint.every_steps=2 data.input_length_tokens=128 "
)


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_every_command_works_as_printed(prose_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(prose_data)
    (tmp_path / "configs").symlink_to(PAGE.parent.parent / "configs")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)
        if "configs/quickstart.yaml" in words:
            # In front of the options: whatever begins with a dash ends the overrides.
            place = words.index("configs/quickstart.yaml") + 1
            words[place:place] = STEPS.split()
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
    run = tmp_path / "runs" / "first"
    assert (run / "report.html").is_file()
    assert [path.name for path in run.glob("checkpoints/step-*")] == ["step-00000004"]
    told = {key for line in read_lines(run / "metrics.jsonl") for key in line}
    for name in ("grad_norm/decay", "time/forward_seconds", "eval/heldout/bits_per_byte"):
        assert name in told
    assert (run / "fills.jsonl").is_file()


@pytest.mark.parametrize("number", range(3))
def test_the_settings_are_valid(run_settings: dict[str, Any], number: int) -> None:
    found = yaml.safe_load(blocks("yaml")[number])
    run_settings["train"] |= {"max_steps": 50_000, "global_batch_size": 256}
    run_settings["data"]["input_length_tokens"] = 4096
    run_settings["model"] |= {"vocab_size": 512, "max_target_length_tokens": 1024}
    for section, values in found.items():
        if section in ("schedule", "optimizer"):
            run_settings[section] = values
        else:
            run_settings.setdefault(section, {}).update(values)
    assert RunConfig.from_dict(run_settings).to_dict()


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).exists(), path
