"""The commands on real data and a real run: what they print, and what they say about damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import spade

from data_pipeline.progress import Progress
from launch.mpi import examine_mpi
from launch.progress import ProgressDisplay

WriteConfig = Callable[[dict[str, Any]], Path]


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(bytes(data))


def test_a_data_set_is_described_and_verified(prose_data: Path) -> None:
    described = json.loads(spade("data", "inspect", prose_data, "--json"))
    assert len(described) == 2
    assert described[0]["documents"] > 50
    one = json.loads(spade("data", "inspect", prose_data / "train", "--json"))
    assert one == described[0]
    assert "document-" in spade("data", "inspect", prose_data / "heldout")
    assert spade("data", "verify", prose_data).count("ok: ") == 2
    assert json.loads(spade("data", "verify", prose_data / "train", "--json")) == {
        str(prose_data / "train"): []
    }


def test_damage_is_named_and_exit_code_1(prose_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    shutil.copytree(prose_data / "train", folder)
    shard = sorted(folder.glob("*.tar"))[0]
    flip_byte(shard, shard.stat().st_size // 2)
    output = spade("data", "verify", folder, code=1)
    assert "damaged: " in output
    assert shard.name in output
    assert json.loads(spade("data", "verify", folder, "--json", code=1))[str(folder)]


def test_a_tokenizer_takes_fewer_pieces_only_when_allowed(
    prose_corpus: Path, tmp_path: Path
) -> None:
    options = ("--input", prose_corpus, "--out", tmp_path / "out", "--vocab-size", "65536")
    assert "too few" in spade("tokenizer", "train", *options, code=1)
    output = spade("tokenizer", "train", *options, "--allow-smaller")
    assert "pieces + 128 sentinels" in output
    assert "took " in output


@pytest.mark.slow
def test_ranks_build_what_one_process_builds(
    prose_corpus: Path, prose_data: Path, tmp_path: Path
) -> None:
    mpi = examine_mpi()
    if mpi.mpiexec is None or mpi.problem:
        pytest.skip(f"no two MPI ranks here: {mpi.problem}")
    options = ["data", "build", "--input", str(prose_corpus), "--tokenizer"]
    options += [str(prose_data / "tokenizer"), "--heldout-fraction", "0.1", "--out"]
    alone = json.loads(spade(*options, tmp_path / "alone", "--json"))
    ranks = subprocess.run(
        [
            *(str(mpi.mpiexec), "-n", "2", sys.executable, "-m", "launch.cli"),
            *(*options, str(tmp_path / "ranks"), "--json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    together = json.loads(ranks.stdout)  # one rank speaks
    assert together["train"] == alone["train"]
    assert together["heldout"] == alone["heldout"]
    again = json.loads(spade(*options, tmp_path / "alone", "--json"))
    assert (again["written"], again["kept"]) == (0, alone["written"])


def test_a_plan_is_shown_and_nothing_started(
    run_settings: dict[str, Any], write_config: WriteConfig
) -> None:
    path = write_config(run_settings)
    plan = json.loads(spade("pretrain", path, "train.max_steps=9", "--dry-run", "--json"))
    assert plan["configuration"]["train"]["max_steps"] == 9
    assert plan["deepspeed"]["zero_optimization"]["stage"] == 2
    assert plan["parameters"] > 1000
    output = spade("pretrain", path, "--dry-run")
    assert "memory of one rank: total" in output
    assert f"{plan['parameters']:,}" in output
    assert not Path(run_settings["run_dir"]).exists()


@pytest.mark.slow
def test_from_training_to_a_filled_gap(
    run_settings: dict[str, Any], write_config: WriteConfig, prose_corpus: Path, tmp_path: Path
) -> None:
    path = write_config(run_settings)
    run = Path(run_settings["run_dir"]) / "tiny"
    assert "done: 6 steps" in spade("pretrain", path)
    found = json.loads(spade("checkpoint", "list", run, "--json"))
    assert [item["step"] for item in found] == [3, 6]
    assert all(item["complete"] for item in found)
    assert spade("checkpoint", "list", run).count("complete") == 2

    export = tmp_path / "export"
    pytest.importorskip("transformers", reason="the export needs the extra hf")
    report = json.loads(spade("export", run, "--out", export, "--json"))
    assert report["step"] == 6
    text = ("--text", "one <extra_id_0> two", "--max-new-tokens", "8")
    answer = json.loads(spade("generate", export, *text, "--json"))
    assert set(answer) == {"text", "generated"}
    assert "within 1 and 14" in spade("generate", export, *text[:-1], "999", code=1)
    options = ("--mask", prose_corpus, "--spans", "2", "--context-tokens", "48")
    fills = json.loads(spade("generate", export, *options, "--json"))["fills"]
    assert all(len(fill["spans"]) == 2 for fill in fills)

    damaged = next(Path(found[0]["path"]).glob("*.safetensors"))
    flip_byte(damaged, damaged.stat().st_size - 1)
    assert damaged.name in spade("checkpoint", "verify", run, code=1)
    sound = spade("checkpoint", "verify", found[1]["path"])
    assert sound.startswith("ok: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_worker_ends_with_75_and_goes_on(
    run_settings: dict[str, Any], write_config: WriteConfig, number: signal.Signals
) -> None:
    run_settings["train"]["max_steps"] = 4000
    path = write_config(run_settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "pretrain", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    metrics = Path(run_settings["run_dir"]) / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"step": 2,' in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Traceback" not in errors
    assert "stopped on request" in output
    stopped = json.loads((metrics.parent / "stopped.json").read_text())
    more = f"train.max_steps={stopped['step'] + 2}"
    assert f"resuming after step {stopped['step']}" in spade("pretrain", path, more)


def test_progress_is_said_in_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressDisplay() as show:
        for done in range(3):
            show(Progress("write shards", done * 2**20, 2**21, "bytes"))
        show._said_at -= 60
        show(Progress("read documents", 1234, None, "documents"))
    assert capsys.readouterr().out.splitlines() == [
        "write shards: 0 B of 2.0 MiB",
        "read documents: 1,234 documents",
    ]
    with ProgressDisplay(silent=True) as show:
        show(Progress("write shards", 0, 2**21, "bytes"))
    assert capsys.readouterr().out == ""
