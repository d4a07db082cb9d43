"""What docs/finetuning.md tells people to type is typed here, on data that take seconds."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from finetune_models import WORDS, sentences, write_sst2, write_summaries

PAGE = Path(__file__).resolve().parents[2] / "docs" / "finetuning.md"
WEIGHTS = ("The folder", "Other weights, and back into pretraining")
RECIPES = ("Classification", "Summaries", "Language modelling", "Long Range Arena")
# Smaller data and networks; the commands stay as they stand.
SMALLER = {
    "finetune": "--epochs 1",
    "make-listops": "--training-rows 32 --validation-rows 8 --test-rows 8 --longer-than 20 "
    "--shorter-than 60",
    "lra": "--epochs 1 --set d_model=16 --set num_heads=1 --set d_ff=16",
    "t5": "state_dim=8",
}


def commands_of(section: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def type_commands(section: str, folder: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    for command in commands_of(section):
        words = shlex.split(command)
        kind = words[2] if words[2] in SMALLER else words[1]
        done = subprocess.run(
            words + shlex.split(SMALLER.get(kind, "")),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command


def write_rows(path: Path, rows: int, seed: int) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in sentences(rows, seed)]
    path.write_text("\n".join(lines) + "\n")


def write_t5(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -3.0) for letter in "abcdefgh"] + [("▁a", -1.5)]
    T5Tokenizer(vocab=vocabulary, extra_ids=10).save_pretrained(folder)
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 2}
    config = T5Config(vocab_size=32, decoder_start_token_id=0, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(folder)


@pytest.mark.slow
def test_weights_go_out_come_in_and_go_on(
    prose_corpus: Path, prose_data: Path, run_settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(prose_data)
    (tmp_path / "heldout.jsonl").symlink_to(prose_corpus)
    run_settings |= {"name": "first"}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(run_settings))
    command = [sys.executable, "-m", "launch.cli", "pretrain", "first.yaml", "train.max_steps=2"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=250, stdout=subprocess.DEVNULL)
    write_t5(tmp_path / "t5-small")
    for section in WEIGHTS:
        type_commands(section, tmp_path)
    assert (tmp_path / "first-weights" / "pytorch_model.bin").is_file()
    manifests = (tmp_path / "runs" / "continued").glob("checkpoints/step-*/manifest.json")
    assert all("initial_weights" in path.read_text() for path in manifests)
    for name in ("base-hf", "warm-hf", "warm-tied-hf"):
        assert json.loads((tmp_path / name / "provenance.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("section", RECIPES)
def test_every_recipe_works_as_printed(exported: Path, tmp_path: Path, section: str) -> None:
    pytest.importorskip("accelerate")
    (tmp_path / "base-hf").symlink_to(exported)
    (tmp_path / "SST-2").mkdir()
    for number, name in enumerate(("train", "dev", "test")):
        write_sst2(tmp_path / "SST-2" / f"{name}.tsv", 32, seed=number, labelled=name != "test")
    write_rows(tmp_path / "rows.jsonl", 32, seed=4)
    write_rows(tmp_path / "dev.jsonl", 16, seed=5)
    for number, name in enumerate(("train", "val", "test")):
        path = write_summaries(tmp_path / "pairs.jsonl", 16, seed=number)
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(" ".join(WORDS * 4) + "\n")
    write_digits(tmp_path)
    type_commands(section, tmp_path)
    found = sorted(path.parent.name for path in tmp_path.glob("*/results.json"))
    assert found == sorted(
        words[words.index("--out") + 1]
        for words in map(shlex.split, commands_of(section))
        if words[1] == "finetune" and words[2] != "make-listops"
    )
    for out in found:
        assert json.loads((tmp_path / out / "results.json").read_text())["seeds"]
        assert (tmp_path / out / "report.html").is_file()
        assert list((tmp_path / out).glob("seed-0/tensorboard/events*"))


def write_digits(folder: Path) -> None:
    """Twenty small images and their classes, in the format of MNIST."""
    chance = np.random.default_rng(0)
    for name, array in (
        ("t10k-images-idx3-ubyte", chance.integers(0, 256, (20, 4, 5), dtype=np.uint8)),
        ("t10k-labels-idx1-ubyte", (np.arange(20) % 3).astype(np.uint8)),
    ):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))


def test_every_command_is_in_a_section_that_is_typed() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    printed = [line for block in blocks for line in block.splitlines()]
    assert printed == [line for section in WEIGHTS + RECIPES for line in commands_of(section)]


def test_every_file_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).exists(), path
