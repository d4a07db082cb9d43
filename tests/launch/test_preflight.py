"""What a launch refuses before anything is started: one line a problem, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_processes import train

from launch.clusters.job import Job
from launch.clusters.preflight import check_before_launch
from launch.clusters.settings import NodeSettings
from launch.failures import CommandError


@pytest.fixture
def own_data(run_settings, prose_data, tmp_path):
    """A copy of the data, to be damaged."""
    folder = tmp_path / "data"
    shutil.copytree(prose_data, folder)
    for part in ("train", "heldout", "tokenizer"):
        run_settings["data"][part] = str(folder / part)
    return folder


def problems_of(job: Job, nodes: NodeSettings | None = None, **options: bool) -> list[str]:
    with pytest.raises(CommandError) as caught:
        check_before_launch(job, nodes or NodeSettings(), **options)
    return str(caught.value).splitlines()


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_sound_run_is_let_through_and_nothing_is_written(
    run_settings, write_config, tmp_path, capsys
):
    path = write_config(run_settings)
    before = everything_below(tmp_path)
    config = check_before_launch(Job.of(path, ["name=other"], processes=2), NodeSettings())
    assert config.name == "other"
    assert everything_below(tmp_path) == before
    assert capsys.readouterr() == ("", "")


def test_it_is_quick_and_loads_neither_torch_nor_deepspeed(run_settings, write_config):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from launch.clusters.job import Job\n"
        "from launch.clusters.preflight import check_before_launch\n"
        "from launch.clusters.settings import NodeSettings\n"
        "check_before_launch(Job.of(Path(sys.argv[1]), []), NodeSettings(device='h100'))\n"
        "assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    command = [sys.executable, "-c", code, str(write_config(run_settings))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(output) < 3.0, "of work; a busy machine takes longer"


def test_all_problems_are_told_at_once(run_settings, own_data, write_config, tmp_path):
    shard = next((own_data / "train").glob("*.tar"))
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size - 512)
    next((own_data / "heldout").glob("*.idx")).unlink()
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    found = problems_of(Job.of(write_config(run_settings), [], processes=3))
    assert len(found) >= 4
    assert found[0].startswith("train.global_batch_size 8 is no multiple of")
    assert "use 1, 2 or 4 processes, or batches that are multiples of 6" in found[0]
    text = "\n".join(found)
    assert f"{run}/checkpoints/step-00000003: no manifest.json" in text
    assert "data.train" in text
    assert shard.name in text
    assert "data.heldout" in text


def test_damage_within_a_small_data_set_is_found(run_settings, own_data, write_config):
    shard = next((own_data / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1
    shard.write_bytes(data)
    path = write_config(run_settings)
    (found,) = problems_of(Job.of(path, []))
    assert shard.name in found
    assert "spade data repair" in found
    check_before_launch(Job.of(path, ["data.on_damage=quarantine"]), NodeSettings())


def test_what_a_large_data_set_lacks_is_found(run_settings, own_data, write_config, monkeypatch):
    monkeypatch.setattr("launch.clusters.data_check._WHOLLY_READ_BYTES", 0)
    path = write_config(run_settings)
    check_before_launch(Job.of(path, []), NodeSettings())
    shards = sorted((own_data / "train").glob("*.tar"))
    shards[0].unlink()
    index = next((own_data / "heldout").glob("*.idx"))
    index.write_bytes(b"x" + index.read_bytes()[1:])
    found = problems_of(Job.of(path, []))
    assert len(found) == 2
    assert f"{shards[0]} is missing" in found[0]
    assert f"{index} is damaged" in found[1]
    monkeypatch.setattr("launch.clusters.data_check._INDEX_BYTES", 0)
    assert len(problems_of(Job.of(path, []))) == 1, "beyond the bound indexes are only looked for"
    index.unlink()
    assert f"{index} is missing" in problems_of(Job.of(path, []))[1]


def test_memory_is_compared_with_the_device(run_settings, write_config):
    run_settings["model"] |= {"d_model": 2048, "d_ff": 8192, "num_encoder_layers": 24}
    run_settings["train"] |= {"global_batch_size": 64, "micro_batch_size": 64}
    run_settings["data"]["input_length_tokens"] = 512
    run_settings["model"]["local_radius_tokens"] = 63
    job = Job.of(write_config(run_settings), [], gpus_per_node=1)
    check_before_launch(job, NodeSettings())
    (found,) = problems_of(job, NodeSettings(device="a10"))
    assert found.startswith("train.micro_batch_size 64: one of 1 ranks needs about")
    assert "a10" in found
    assert "; use " in found
    (found,) = problems_of(job, NodeSettings(device="a11"))
    assert "--device a11 is unknown" in found


def test_the_proposed_micro_batch_fits(run_settings, write_config):
    run_settings["data"]["input_length_tokens"] = 512
    run_settings["model"] |= {"local_radius_tokens": 63, "d_model": 512, "num_encoder_layers": 12}
    run_settings["train"] |= {"global_batch_size": 512, "micro_batch_size": 512}
    path, nodes = write_config(run_settings), NodeSettings(device="a10")
    (found,) = problems_of(Job.of(path, []), nodes)
    proposed = found.partition("; use ")[2].partition(",")[0]
    assert proposed.startswith("train.micro_batch_size=")
    check_before_launch(Job.of(path, [proposed]), nodes)


def test_elastic_runs_need_a_batch_for_every_number_of_ranks(run_settings, write_config):
    path = write_config(run_settings)
    (found,) = problems_of(Job.of(path, [], nodes=4, min_nodes=2))
    assert "x 3 processes = 6" in found
    assert "multiples of 24" in found
    check_before_launch(
        Job.of(path, ["train.global_batch_size=24"], nodes=4, min_nodes=2), NodeSettings()
    )


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(1, 3))
def test_the_numbers_that_are_proposed_would_do(factor, micro, ranks, context):
    from types import SimpleNamespace

    from launch.clusters.preflight import _batch_problems
    from pretrain.config import RunConfig

    train = SimpleNamespace(global_batch_size=factor * micro, micro_batch_size=micro, curriculum=())
    config = SimpleNamespace(train=train, parallel=SimpleNamespace(context=context))
    config.accumulation_steps = lambda *given: RunConfig.accumulation_steps(config, *given)
    config.most_accumulation_steps = lambda size: RunConfig.most_accumulation_steps(config, size)
    found = list(_batch_problems(config, [ranks]))
    would_do = ranks % context == 0 and factor % (ranks // context) == 0
    assert bool(found) == (not would_do)
    if found:
        processes = found[0].partition("; use ")[2].partition(" processes")[0].removeprefix("… ")
        for number in processes.replace(" or ", ", ").split(", "):
            assert RunConfig.most_accumulation_steps(config, int(number)) >= 1
        if ranks % context == 0:
            samples = int(found[0].rpartition(" ")[2])
            assert samples % (micro * (ranks // context)) == 0


@pytest.mark.slow
def test_checkpoints_are_looked_at(run_settings, write_config, tmp_path, capsys):
    run_settings["train"]["max_steps"] = 4
    run_settings["checkpoint"]["every_steps"] = 2
    path = write_config(run_settings)
    train(path, processes=1)
    run = tmp_path / "runs" / "tiny"
    for age in run.rglob("*"):
        os.utime(age, (time.time() - 1e5,) * 2)
    check_before_launch(Job.of(path, []), NodeSettings())
    assert "all 4 steps are done already" in capsys.readouterr().err
    check_before_launch(Job.of(path, ["train.max_steps=9"]), NodeSettings())
    assert capsys.readouterr().err == ""
    (found,) = problems_of(Job.of(path, ["train.seed=1", "train.max_steps=9"]))
    assert "belongs to another run: train.seed was 0, now 1" in found

    newest = run / "checkpoints" / "step-00000004" / "rank-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    check_before_launch(Job.of(path, ["train.max_steps=9"]), NodeSettings())
    assert f"passed over: {newest}" in capsys.readouterr().err
    manifest = run / "checkpoints" / "step-00000002" / "manifest.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(value | {"format_version": 1}))
    (found,) = problems_of(Job.of(path, ["train.max_steps=9"]))
    assert "no checkpoint of the run is whole" in found


def test_a_run_folder_that_cannot_be_made_is_told(run_settings, write_config, tmp_path):
    (tmp_path / "file").write_text("")
    (found,) = problems_of(Job.of(write_config(run_settings), [f"run_dir={tmp_path}/file/runs"]))
    assert found == f"run_dir: {tmp_path}/file is no folder; choose another run_dir"


def test_relative_paths_must_begin_in_the_current_folder(
    run_settings, write_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    path = write_config(run_settings)
    elsewhere = NodeSettings(working_folder=tmp_path / "elsewhere")
    check_before_launch(Job.of(path, []), elsewhere)  # nothing is relative
    (found,) = problems_of(Job.of(path, ["run_dir=runs"]), elsewhere)
    assert "run_dir" in found
    here = NodeSettings(working_folder=tmp_path)
    check_before_launch(Job.of(path, ["run_dir=runs"]), here)


def test_without_data_only_the_numbers_are_checked(run_settings, write_config, tmp_path):
    run_settings["data"] |= {"train": "/data/train", "heldout": "/data/heldout"}
    run_settings["run_dir"] = "/proc/none"
    path = write_config(run_settings)
    assert "data.train" in problems_of(Job.of(path, []))[0]
    (found,) = problems_of(Job.of(path, []), data_here=False)
    assert "model.vocab_size is missing" in found
    job = Job.of(path, ["model.vocab_size=512"], nodes=3)
    (found,) = problems_of(job, data_here=False)
    assert found.startswith("train.global_batch_size 8 is no multiple")
    job = Job.of(path, ["model.vocab_size=512"], nodes=2)
    config = check_before_launch(job, NodeSettings(), data_here=False)
    assert config.model.trained_length_tokens == 64
