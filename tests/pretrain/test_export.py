"""An export is the checkpoint, or it is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checkpoint_parts import recut
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_disk import mounted
from worker_processes import train

pytest.importorskip("transformers")

import pretrain.exporting.export as export_module
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.checkpoints.checkpoint_format import latest_complete, load_run_config
from pretrain.checkpoints.reader import CheckpointReader, load_weights
from pretrain.exporting.export import ExportError, ExportReport, export
from spade_model import SpadeForSeq2Seq

pytestmark = pytest.mark.slow

FILES = {
    "README.md",
    "config.json",
    "configuration_spade.py",
    "generation_config.json",
    "model.safetensors",
    "modeling_spade.py",
    "provenance.json",
    "spade_attention.py",
    "spade_network.py",
    "spade_state_space.py",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "training-curve.png",
}


@pytest.fixture(scope="module")
def run(prose_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on one process, with two checkpoints."""
    folder = tmp_path_factory.mktemp("export-runs")
    settings = {
        "name": "tiny",
        "run_dir": str(folder),
        "model": {
            "d_model": 32,
            "num_heads": 2,
            "head_dim": 16,
            "d_ff": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 1,
            "state_dim": 8,
            "local_radius_tokens": 15,
        },
        "data": {
            "train": str(prose_data / "train"),
            "heldout": str(prose_data / "heldout"),
            "tokenizer": str(prose_data / "tokenizer"),
            "input_length_tokens": 64,
        },
        "train": {"max_steps": 4, "global_batch_size": 4, "micro_batch_size": 4},
        "optimizer": {"learning_rate": 3e-3, "state_space_learning_rate": 1e-3},
        "evaluation": {"every_steps": 4, "samples": 8},
        "schedule": {"warmup_steps": 1},
        "checkpoint": {"every_steps": 2},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    train(config, processes=1)
    return folder / "tiny"


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """An export over what a killed one left behind."""
    folder = tmp_path_factory.mktemp("exported") / "new"
    partial = folder / "model.partial"
    partial.mkdir(parents=True)
    (partial / "provenance.json").write_text('{"format": "spade-export"}')
    (partial / "model.safetensors").write_bytes(b"half")
    return export(run, folder / "model")


@pytest.fixture(scope="module")
def exported(report: ExportReport) -> Path:
    return report.path


def plain_model(checkpoint: Path) -> SpadeForSeq2Seq:
    plain = SpadeForSeq2Seq(load_run_config(checkpoint).model)
    plain.load_state_dict(load_weights(checkpoint))
    return plain.eval()


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path.name.startswith(out.name)]


def test_report_says_what_was_written_and_compared(run: Path, report: ExportReport) -> None:
    checkpoint = latest_complete(run)
    assert report.checkpoint == checkpoint
    assert (report.step, report.dtype) == (4, "float32")
    assert set(report.files) == FILES == {path.name for path in report.path.iterdir()}
    assert report.size_bytes == sum(path.stat().st_size for path in report.path.iterdir())
    assert report.parameters == sum(p.numel() for p in plain_model(checkpoint).parameters())
    found = report.comparison
    assert found.problems == ()
    assert found.logit_difference <= 1e-5
    assert found.cache_difference <= 1e-4
    assert min(found.greedy_tokens, found.beam_tokens) >= 6
    assert found.texts > 60
    assert leftovers(report.path) == ["model"]
    assert len({path.stat().st_mode for path in report.path.iterdir()}) == 1


def test_a_clean_process_gets_the_trained_models_numbers(run: Path, exported: Path) -> None:
    script = (
        "import json, sys, torch\n"
        "import spade_model.huggingface\n"
        "from transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n"
        "model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "assert not {'deepspeed', 'pretrain', 'data_pipeline'} & set(sys.modules)\n"
        "batch = tokenizer(['a line\\nand <extra_id_0> more', 'short'],\n"
        "                  return_tensors='pt', padding=True)\n"
        "labels = torch.arange(5, 25).reshape(2, 10)\n"
        "logits = model(**batch, labels=labels).logits\n"
        "greedy = model.generate(**batch)\n"
        "print(json.dumps([batch['input_ids'].tolist(), batch['attention_mask'].tolist(),\n"
        "                  labels.tolist(), logits.tolist(), greedy.tolist()]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(exported)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=exported.parent,
    )
    ids, mask, labels, logits, greedy = map(
        torch.tensor, json.loads(result.stdout.splitlines()[-1])
    )
    plain = plain_model(latest_complete(run))
    expected = plain(ids, labels, attention_mask=mask.bool()).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    limit = plain.config.max_target_length_tokens
    ours = plain.generate(ids, attention_mask=mask.bool(), max_new_tokens=limit)
    assert torch.equal(greedy[:, 1:], ours)

    tokenizer = DocumentTokenizer.load(load_run_config(latest_complete(run)).data.tokenizer)
    first, second = tokenizer.encode("a line\nand "), tokenizer.encode(" more")
    sentinel = tokenizer.sentinel_id(0)
    assert ids[0].tolist() == [*first.tolist(), sentinel, *second.tolist(), 1]


def stored_in(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of all files of weights."""
    return {
        name: value
        for file in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def test_weights_are_the_checkpoints(run: Path, exported: Path) -> None:
    expected = load_weights(latest_complete(run))
    stored = stored_in(exported)
    assert stored.keys() == expected.keys() - {"lm_head.weight"}
    for name, tensor in stored.items():
        assert torch.equal(tensor, expected[name]), name
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_in_shards(run: Path, tmp_path: Path, dtype: str) -> None:
    """The state space stays float32; the index names every tensor once."""
    from transformers import AutoConfig

    limit = 20_000
    out = tmp_path / "half"
    report = export(latest_complete(run), out, dtype=dtype, max_shard_size="20KB")
    assert report.comparison.logit_difference <= 1e-5
    expected, stored = load_weights(latest_complete(run)), stored_in(out)
    assert stored.keys() == expected.keys() - {"lm_head.weight"}
    for name, tensor in stored.items():
        kind = torch.float32 if ".state_space." in name else getattr(torch, dtype)
        assert tensor.dtype == kind, name
        assert torch.equal(tensor, expected[name].to(kind)), name
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == stored.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored.values())
    files = sorted(out.glob("*.safetensors"))
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert len(files) > 3
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    for file in files:
        inside = load_file(file)
        assert len(inside) == 1 or sum(value.nbytes for value in inside.values()) <= limit
        assert all(index["weight_map"][name] == file.name for name in inside)
    assert AutoConfig.from_pretrained(out, trust_remote_code=False).dtype == getattr(torch, dtype)
    assert "state-space layers float32" in (out / "README.md").read_text()


def test_any_ranks_can_have_written_the_weights_and_nothing_else_is_read(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    """Three ranks' files hold no states of an optimizer at all."""
    checkpoint = recut(latest_complete(run), tmp_path / "run", 3)
    again = export(checkpoint, tmp_path / "again")
    assert again.step == 4
    assert "No metrics were found" in (again.path / "README.md").read_text()
    weights = "model.safetensors"
    assert (again.path / weights).read_bytes() == (exported / weights).read_bytes()


def test_the_card_states_facts_and_no_paths(run: Path, exported: Path) -> None:
    provenance = json.loads((exported / "provenance.json").read_text())
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (evaluation,) = [line for line in metrics if line["step"] == 4 and "eval/heldout/loss" in line]
    assert provenance["heldout"]["eval/heldout/loss"] == evaluation["eval/heldout/loss"]
    assert provenance["step"] == 4
    for fact in (
        f"{evaluation['eval/heldout/loss']:.4f}",
        f"{evaluation['eval/heldout/unigram_text_loss']:.4f}",
        f"{provenance['tokens_seen']:,}",
        *provenance["fingerprints"].values(),
        "64 input tokens",
        "<extra_id_0>",
        "![Training and held-out loss over the steps](training-curve.png)",
        *(f"| {row['step']} |" for row in provenance["curve"]),
    ):
        assert fact in card, fact
    trained = [line["loss"] for line in metrics if "loss" in line]
    assert [row["step"] for row in provenance["curve"]] == [1, 2, 3, 4]
    assert [row["loss"] for row in provenance["curve"]] == trained
    assert provenance["curve"][-1]["heldout_loss"] == evaluation["eval/heldout/loss"]
    assert (exported / "training-curve.png").read_bytes().startswith(b"\x89PNG")
    assert {"custom_code", "span-corruption"} <= set(front["tags"])
    assert not {"license", "language"} & front.keys(), "nobody told us"
    for file in exported.glob("*.*"):
        if file.suffix in (".md", ".json"):
            assert str(run.parent) not in file.read_text(encoding="utf-8"), file
            assert "/tmp" not in file.read_text(encoding="utf-8"), file


def test_generation_stops_at_the_decoders_last_position(run: Path, exported: Path) -> None:
    settings = json.loads((exported / "generation_config.json").read_text())
    limit = load_run_config(latest_complete(run)).model.max_target_length_tokens
    assert settings["max_new_tokens"] == limit
    assert (settings["decoder_start_token_id"], settings["eos_token_id"]) == (0, 1)
    assert settings["pad_token_id"] == 0


class TestRefusals:
    def test_only_an_earlier_export_is_replaced(self, run: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert export(run / "checkpoints" / "step-00000002", out).step == 2
        assert "No evaluation was recorded" in (out / "README.md").read_text()
        (out / "note").write_text("left by somebody in an export")
        assert export(run, out).step == 4
        assert {path.name for path in out.iterdir()} == FILES

        other = tmp_path / "other"
        other.mkdir()
        (other / "thesis.tex").write_text("years of work")
        with pytest.raises(ExportError, match="--out"):
            export(run, other)
        assert [path.name for path in other.iterdir()] == ["thesis.tex"]
        with pytest.raises(ExportError, match="--out"):
            export(run, other / "thesis.tex")
        # The name under which an export is prepared is not ours to take either.
        (tmp_path / "fresh.partial").mkdir()
        (tmp_path / "fresh.partial" / "thesis.tex").write_text("years of work")
        with pytest.raises(ExportError, match=r"fresh\.partial"):
            export(run, tmp_path / "fresh")
        assert (tmp_path / "fresh.partial" / "thesis.tex").exists()

    def test_sources_that_are_none(self, run: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        with pytest.raises(ExportError, match="no such folder"):
            export(tmp_path / "nothing", out)
        with pytest.raises(ExportError, match="neither a run"):
            export(tmp_path, out)
        (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
        with pytest.raises(ValueError, match="no complete checkpoint"):
            export(tmp_path / "empty", out)
        with pytest.raises(ExportError, match="float16"):
            export(run, out, dtype="float8")
        with pytest.raises(ExportError, match="max_shard_size"):
            export(run, out, max_shard_size="5")
        with pytest.raises(ExportError, match="not written"):
            export(run, Path(__file__) / "out")
        assert not leftovers(out)

    @pytest.mark.parametrize("size", ["8k", "200k", "430k", "570k"])
    def test_a_full_disk_leaves_nothing(self, run: Path, tmp_path: Path, size: str) -> None:
        """The disk is full at the card, at the code, between two shards, at the tokenizer."""
        with mounted(tmp_path / "disk", size) as disk:
            with pytest.raises(ExportError, match="No space left") as caught:
                export(run, disk / "out", max_shard_size="50KB")
            assert "\n" not in str(caught.value)
            assert list(disk.iterdir()) == []

    def test_numbers_beyond_float16(
        self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        large = torch.full((576, 32), 70_000.0)
        read = CheckpointReader.read_full
        monkeypatch.setattr(
            CheckpointReader,
            "read_full",
            lambda self, name: large if name == "model.shared.weight" else read(self, name),
        )
        with pytest.raises(ExportError, match="beyond float16's 65504; use bfloat16"):
            export(run, tmp_path / "out", dtype="float16")
        assert not leftovers(tmp_path / "out")

    def test_damaged_checkpoints(self, run: Path, tmp_path: Path) -> None:
        copy = tmp_path / "step-00000004"
        shutil.copytree(latest_complete(run), copy)
        (victim,) = copy.glob("rank-*.safetensors")
        content = bytearray(victim.read_bytes())
        content[-100] ^= 1
        victim.write_bytes(content)
        with pytest.raises(ExportError, match="damaged"):
            export(copy, tmp_path / "out")
        victim.write_bytes(content[:-1000])
        with pytest.raises(ExportError, match="export an earlier checkpoint"):
            export(copy, tmp_path / "out")
        victim.unlink()
        with pytest.raises(ExportError, match="missing"):
            export(copy, tmp_path / "out")
        assert not leftovers(tmp_path / "out")

    def test_another_tokenizer(self, run: Path, prose_data: Path, tmp_path: Path) -> None:
        """The folder the configuration names holds something else now."""
        from data_pipeline.corpora.corpus import Document
        from data_pipeline.tokenization.tokenizer import train_tokenizer

        lines = [f"other words {number} altogether {number * 7}" for number in range(400)]
        train_tokenizer(
            [Document("one", "\n".join(lines))], vocab_size=300, sentinels=64, out=tmp_path / "tok"
        )
        moved = prose_data / "tokenizer.moved"
        (prose_data / "tokenizer").rename(moved)
        try:
            with pytest.raises(ValueError, match="tokenizer"):
                export(run, tmp_path / "out")
            (tmp_path / "tok").rename(prose_data / "tokenizer")
            with pytest.raises(ExportError, match="was trained with"):
                export(run, tmp_path / "out")
            (prose_data / "tokenizer").rename(tmp_path / "tok")
        finally:
            moved.rename(prose_data / "tokenizer")
        assert not leftovers(tmp_path / "out")


def nudge_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "encoder" in name and name.endswith("output.weight"))
    tensors[name][0, 0] += 0.05
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if "state_space" in name)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def swap_pieces(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    pieces = content["model"]["vocab"]
    pieces[300][0], pieces[301][0] = pieces[301][0], pieces[300][0]
    path.write_text(json.dumps(content), encoding="utf-8")


def need_our_package(folder: Path) -> None:
    """Only whoever cannot import our package notices."""
    code = folder / "spade_network.py"
    code.write_text(code.read_text(encoding="utf-8") + "import spade_model\n", encoding="utf-8")


def compute_otherwise(folder: Path) -> None:
    """The folder's own code is not what our package computes."""
    code = folder / "modeling_spade.py"
    text = code.read_text(encoding="utf-8")
    changed = text.replace("logits = self.lm_head(output", "logits = 1.01 * self.lm_head(output")
    assert changed != text
    code.write_text(changed, encoding="utf-8")


@pytest.mark.parametrize(
    ("step", "damage", "words"),
    [
        ("_write_model", need_our_package, "spade_model"),
        ("_write_model", compute_otherwise, "own code: logits differ"),
        ("_write_model", nudge_a_weight, "logits differ"),
        ("_write_model", drop_a_weight, "missing keys"),
        ("_write_model", truncate_weights, "cannot load"),
        ("_write_tokenizer", swap_pieces, "other ids"),
    ],
)
def test_a_folder_that_is_not_the_checkpoint_never_appears(
    run: Path,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write = getattr(export_module, step)

    def write_and_damage(folder: Path, *arguments: Any) -> None:
        write(folder, *arguments)
        damage(folder)

    monkeypatch.setattr(export_module, step, write_and_damage)
    with pytest.raises(ExportError, match=words) as caught:
        export(run, out)
    assert "\n" not in str(caught.value)
    assert leftovers(out) == ["out"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
