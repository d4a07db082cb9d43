"""``spade import`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from published_names import published_names
from safetensors.torch import save_file
from typer.testing import CliRunner

from launch.commands import importing

pytest.importorskip("transformers", reason="the import needs the extra hf")

FACTS = {
    **{"vocab_size": 11, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 6, "num_layers": 2},
    **{"s4_state_dim": 4, "s4_n_ssm": 2, "max_position_embeddings": 16, "local_radius": 3},
    **{"feed_forward_proj": "relu", "have_bias": False},
}


def spade_import(folder: Path, weights: str, *more: str) -> subprocess.CompletedProcess[str]:
    options = ["--weights", weights, "--config", "config.json", "--out", "out", *more]
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "import", "msrlongt5", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_published_checkpoint_is_imported_and_a_pickle_is_not(tmp_path: Path) -> None:
    save_file(published_names(FACTS), tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(FACTS))
    (tmp_path / "weights.bin").write_bytes(b"anything")
    refused = spade_import(tmp_path, "weights.bin")
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert "is a pickle" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = spade_import(tmp_path, "weights.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kernel_lengths"] == [64]
    assert sorted(report["files"]) == sorted(file.name for file in (tmp_path / "out").iterdir())
    again = spade_import(tmp_path, "weights.safetensors")
    assert again.returncode == 1
    assert "already holds something" in again.stderr


def imported(*words: str | Path, code: int = 0) -> str:
    """Runs the group in this process, which has loaded the libraries already."""
    application = typer.Typer()
    importing.register(application)
    application.callback()(lambda: None)
    result = CliRunner().invoke(application, ["import", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output if result.exception is None else str(result.exception)


def test_t5_becomes_a_warm_start(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, LongT5Config, LongT5ForConditionalGeneration

    config = LongT5Config(
        **{"vocab_size": 30, "d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 20, "num_layers": 2},
        encoder_attention_type="transient-global",
        local_radius=7,
    )
    source, out = tmp_path / "longt5", tmp_path / "spade"
    LongT5ForConditionalGeneration(config).save_pretrained(source)
    fields = ("state_space_layers=every 2", "state_dim=4", "trainable_state_space=[C, D]")
    said = imported("t5", source, *fields, "--out", out)
    assert "they differ by" in said
    assert "\n  model.encoder.layers.0.mixing.state_space.C 128\n" in said
    assert "left out: 96 numbers in 3 tensors" in said
    assert "tokens attended to means of blocks" in said
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert model.config.state_space_layers == "every 2"
    assert model.config.trainable_state_space == ("C", "D")
    assert "num_heads cannot be chosen" in imported(
        "t5", source, "num_heads=4", "--out", tmp_path / "other", code=1
    )
    imported("t5", source, "num_heads", "--out", tmp_path / "other", code=2)
    assert "no such folder" in imported("t5", tmp_path / "no", "--out", out, code=1)


def test_the_language_model_is_told_how_to_be_converted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_best.pt").write_bytes(b"anything")
    (tmp_path / "args.json").write_text("{}")
    words = ("--weights", tmp_path / "checkpoint_best.pt", "--config", tmp_path / "args.json")
    said = imported("fairseq-lm", *words, "--out", tmp_path / "out", code=1)
    assert "convert it: python -c" in said
    assert not (tmp_path / "out").exists()
