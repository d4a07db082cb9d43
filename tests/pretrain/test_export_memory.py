"""Exporting takes the memory of one copy of the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from worker_processes import train

pytest.importorskip("transformers")

from pretrain.checkpoints.checkpoint_format import (
    CONFIG,
    folder_name,
    latest_complete,
    read_manifest,
)
from pretrain.checkpoints.snapshot import Snapshot
from pretrain.checkpoints.transaction import commit, partial_folder, write_part
from spade_model import SpadeConfig, SpadeForSeq2Seq

pytestmark = pytest.mark.slow

MEASURED = """
import re, sys
from pathlib import Path
from pretrain.exporting.export import export

export(Path(sys.argv[1]), Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
# Not `ru_maxrss`, which a process inherits from the one that has started it.


def peak_bytes(checkpoint: Path, out: Path) -> int:
    """Of a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(checkpoint), str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1]) * 1024


def grown(checkpoint: Path, run: Path) -> tuple[Path, int]:
    """The checkpoint of a far larger model with moments, and the bytes of its weights."""
    settings: dict[str, Any] = yaml.safe_load((checkpoint / CONFIG).read_text(encoding="utf-8"))
    settings["model"] |= {"d_model": 512, "num_heads": 8, "head_dim": 64, "d_ff": 2048}
    settings["model"] |= {"num_encoder_layers": 3, "num_decoder_layers": 3}
    model = SpadeForSeq2Seq(SpadeConfig.from_dict(settings["model"]))
    part = Snapshot(whole=dict(model.named_buffers()))
    shapes = {}
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        part.places[name] = (0, len(flat))
        for kind in ("weight", "exp_avg", "exp_avg_sq"):
            part.tensors[f"{kind}/{name}"] = flat
        shapes[name] = list(parameter.shape)
    manifest = read_manifest(checkpoint) | {"parameters": shapes, "world_size": 1}
    final = run / "checkpoints" / folder_name(manifest["step"])
    final.parent.mkdir(parents=True)
    partial = partial_folder(final, 1)
    written = write_part(partial, 0, part, yaml.safe_dump(settings))
    files = {name: file._asdict() for name, file in sorted(written.items())}
    commit(partial, final, manifest | {"files": files})
    return final, sum(4 * parameter.numel() for parameter in model.parameters())


def test_one_copy_of_the_weights(
    run_settings: dict[str, Any], write_config: Any, tmp_path: Path
) -> None:
    """The same export of a small model is what all else costs."""
    run_settings["train"]["max_steps"] = 1
    run_settings["schedule"]["warmup_steps"] = 1
    run_settings["evaluation"]["every_steps"] = 100
    train(write_config(run_settings), processes=1)
    small = latest_complete(Path(run_settings["run_dir"]) / "tiny")
    torch.manual_seed(0)
    large, weight_bytes = grown(small, tmp_path / "large")
    assert weight_bytes > 80e6
    base = peak_bytes(small, tmp_path / "small-out")
    copies = (peak_bytes(large, tmp_path / "large-out") - base) / weight_bytes
    print(f"{copies:.2f} copies of {weight_bytes / 1e6:.0f} MB, over {base / 1e6:.0f} MB")
    assert 0.4 < copies < 1.2  # with a second copy, 1.7
