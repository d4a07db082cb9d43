"""``spade import`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from published_names import published_names
from safetensors.torch import save_file

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
