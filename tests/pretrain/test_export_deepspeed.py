"""DeepSpeed's own converter and our exporter find the same weights, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_parts import recut
from checkpoint_saves import save, saver_of, snapshot_of
from commands import spade
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
from small_disk import mounted
from worker_processes import Ranks

from pretrain.checkpoints.checkpoint_format import latest_complete
from pretrain.checkpoints.deepspeed_layout import write_deepspeed_folder
from pretrain.checkpoints.reader import load_weights
from pretrain.errors import CheckpointError

SAVES = str(Path(__file__).parents[1] / "support" / "deepspeed_saves.py")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_three_ways_out_of_a_run_of_two_ranks(
    run_settings: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
    stage: int,
    precision: str,
) -> None:
    """DeepSpeed's own checkpoint, our checkpoint in DeepSpeed's layout, and our export."""
    pytest.importorskip("transformers", reason="the export needs the extra hf")
    from pretrain.exporting.export import export

    # No dimension is a multiple of the number of ranks times two.
    run_settings["model"] |= {"d_ff": 63, "num_heads": 1, "head_dim": 17}
    run_settings["train"] |= {"max_steps": 2, "precision": precision}
    run_settings["evaluation"]["every_steps"] = 100
    run_settings["deepspeed"] = {"zero_stage": stage}
    theirs = tmp_path / "theirs"
    ranks = Ranks([SAVES, str(write_config(run_settings)), str(theirs)], processes=2)
    assert ranks.wait() == [0, 0], "\n".join(ranks.output)
    run = Path(run_settings["run_dir"]) / "tiny"

    ours = tmp_path / "ours"
    said = json.loads(spade("checkpoint", "deepspeed", run, "--out", ours, "--json"))
    assert (said["ranks"], said["tag"]) == (2, "global_step2")
    exported = export(run, tmp_path / "exported")
    weights = load_file(exported.path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.shared.weight"]
    for folder in (theirs, ours):
        found = get_fp32_state_dict_from_zero_checkpoint(str(folder))
        assert found.keys() == weights.keys()
        for name, value in found.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, weights[name]), (folder.name, name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented numbers, a buffer and a tied name, by one rank."""
    run = tmp_path_factory.mktemp("run")
    saver = saver_of(run)
    save(saver, 3, snapshot_of(0.5))
    saver.wait()
    return latest_complete(run)


@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_any_number_of_ranks_can_have_written_it(
    checkpoint: Path, tmp_path: Path, world_size: int
) -> None:
    """47 numbers are a multiple of none of them."""
    again = recut(checkpoint, tmp_path / "run", world_size)
    written = write_deepspeed_folder(again, tmp_path / "out")
    assert written.ranks == world_size
    found = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "out"))
    wanted = load_weights(checkpoint)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.equal(value.float(), wanted[name].float()), name
    assert found["mask"].dtype == torch.bool


def test_refusals_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match="--out"):
        write_deepspeed_folder(checkpoint, out)
    out.rmdir()
    damaged = recut(checkpoint, tmp_path / "damaged", 2)
    (victim,) = damaged.glob("rank-00001.*")
    victim.write_bytes(victim.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="take an earlier checkpoint"):
        write_deepspeed_folder(damaged, out)
    assert "no such folder" in spade(
        "checkpoint", "deepspeed", tmp_path / "none", "--out", out, code=1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


@pytest.mark.parametrize("size", ["4k", "8k"])
def test_a_full_disk_leaves_nothing(checkpoint: Path, tmp_path: Path, size: str) -> None:
    with mounted(tmp_path / "disk", size) as disk:
        with pytest.raises(CheckpointError, match="not written") as caught:
            write_deepspeed_folder(checkpoint, disk / "out")
        assert "\n" not in str(caught.value)
        assert list(disk.iterdir()) == []
