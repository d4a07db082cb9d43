"""What docs/finetuning.md tells people to type is typed here, on rows that take seconds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_models import sentences, write_sst2

PAGE = Path(__file__).resolve().parents[2] / "docs" / "finetuning.md"


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def write_rows(path: Path, rows: int, seed: int) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in sentences(rows, seed)]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_every_command_works_as_printed(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    (tmp_path / "base-hf").symlink_to(exported)
    (tmp_path / "SST-2").mkdir()
    for number, name in enumerate(("train", "dev", "test")):
        path = tmp_path / "SST-2" / f"{name}.tsv"
        write_sst2(path, 32, seed=number, labelled=name != "test")
    write_rows(tmp_path / "rows.jsonl", 32, seed=4)
    write_rows(tmp_path / "dev.jsonl", 16, seed=5)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    assert len(commands()) == 3
    for command in commands():
        done = subprocess.run(
            [*shlex.split(command), "--epochs", "1"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert len(list((tmp_path / "sst2").glob("seed-*/model/config.json"))) == 2
    for out in ("sst2", "own", "sst2-text"):
        assert json.loads((tmp_path / out / "results.json").read_text())
        assert (tmp_path / out / "report.html").is_file()
    assert len(list((tmp_path / "sst2").glob("seed-*/predictions-test.tsv"))) == 2


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).exists(), path
