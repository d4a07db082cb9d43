"""What docs/data.md tells people to type is typed here, on a corpus that takes seconds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from pretrain.data_settings import DataSettings

PAGE = Path(__file__).resolve().parent.parent / "docs" / "data.md"
# Smaller numbers for a smaller corpus; the commands stay as they stand.
SMALLER = {"--vocab-size 8192": "--vocab-size 512"}


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, words
    return done


@pytest.mark.slow
def test_every_command_works_as_printed(prose_corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "prose.jsonl").write_bytes(prose_corpus.read_bytes())
    (tmp_path / "other-tars").mkdir()
    with tarfile.open(tmp_path / "other-tars" / "part-0.tar", "w") as archive:
        for number, line in enumerate(prose_corpus.read_text().splitlines()[:50]):
            content = json.loads(line)["text"].encode()
            member = tarfile.TarInfo(f"{number:04d}.txt")
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        for printed, smaller in SMALLER.items():
            command = command.replace(printed, smaller)
        run(shlex.split(command), tmp_path)
    assert list((tmp_path / "inspection").glob("*.html"))
    assert list((tmp_path / "inspection").glob("*.png"))
    assert (tmp_path / "other-tars" / "manifest.json").is_file()
    printed = run([sys.executable, "-c", blocks("python")[0]], tmp_path).stdout
    assert printed.strip() == "(4, 512) (4, 114)"


def test_the_configuration_is_valid() -> None:
    values = yaml.safe_load(blocks("yaml")[0])
    settings = DataSettings.model_validate_json(json.dumps(values["data"]), strict=True)
    assert list(settings.sources()) == ["books", "papers", "late"]
    assert settings.make_objective().input_length_tokens == 4096
    # Every objective that a run may have stands in the table.
    for kind in ("span_corruption", "ul2", "prefix_lm", "gap_sentences", "causal_lm"):
        assert f"| `{kind}` |" in PAGE.read_text()


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).exists(), path
