"""A new run that starts from the weights of a Hugging Face folder, and never reads them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner
from worker_processes import Workers, losses, train

pytest.importorskip("transformers", reason="the folders need the extra hf")

from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from launch.commands import importing
from pretrain.checkpoints.checkpoint_format import latest_complete, read_manifest
from pretrain.config import RunConfig
from pretrain.continuation import write_continuation
from pretrain.errors import ConfigError
from pretrain.exporting.export import export
from pretrain.exporting.model_card import model_card
from pretrain.initial_weights import load_initial_weights
from pretrain.model_inputs import model_inputs
from spade_model import SpadeForSeq2Seq
from spade_model.huggingface import SpadeForConditionalGeneration, SpadePretrainedConfig


@pytest.fixture
def folder(run_settings: dict[str, Any], prose_data: Path, tmp_path: Path) -> Path:
    """Weights of the model of `run_settings`, but not those that its seed draws."""
    vocabulary = json.loads((prose_data / "train" / "manifest.json").read_text())["vocab_size"]
    config = SpadePretrainedConfig(
        **run_settings["model"], vocab_size=vocabulary, max_target_length_tokens=40
    )
    torch.manual_seed(77)
    model = SpadeForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "hf")
    shutil.copyfile(prose_data / "tokenizer" / "spiece.model", tmp_path / "hf" / "spiece.model")
    return tmp_path / "hf"


@pytest.fixture
def settings(run_settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    run_settings["model"]["max_target_length_tokens"] = 40
    run_settings["initial_weights"] = str(folder)
    run_settings["train"] |= {"precision": "fp32", "max_steps": 2}
    run_settings["schedule"] = {"kind": "constant", "warmup_steps": 0}
    run_settings["checkpoint"]["every_steps"] = 2
    return run_settings


def expected_first_loss(folder: Path, config: RunConfig) -> float:
    """Of the run's first samples, by the classes of `transformers`."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch_size = config.train.global_batch_size
    stripes = Stripes(
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        rank=0,
        world_size=1,
        start_sample=0,
    )
    with (
        BatchLoader(config.data.stream_settings(config.train.seed), stripes, workers=0) as loader,
        torch.no_grad(),
    ):
        inputs = model_inputs(next(loader), torch.device("cpu"))
        return float(model(**inputs, use_cache=False).loss)


@pytest.mark.slow
def test_the_first_loss_is_the_folders_on_all_stages_and_a_resume_reads_nothing(
    settings: dict[str, Any],
    folder: Path,
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    config = write_config(settings)
    expected = expected_first_loss(folder, RunConfig.load(config))
    drawn = train(config, "name=drawn", "initial_weights=null", "train.max_steps=1", processes=1)
    assert drawn is not None
    assert abs(losses(tmp_path / "runs" / "drawn")[0][1] - expected) > 1e-3
    for stage, processes in ((0, 2), (3, 2), (1, 1)):
        train(config, f"name=z{stage}", f"deepspeed.zero_stage={stage}", processes=processes)
        found = losses(tmp_path / "runs" / f"z{stage}")
        assert found[0][1] == pytest.approx(expected, rel=1e-5), stage
        assert found[1][1] == pytest.approx(losses(tmp_path / "runs" / "z0")[1][1], rel=1e-4)

    run = tmp_path / "runs" / "z3"
    started = read_manifest(latest_complete(run))["fingerprints"]["initial_weights"]
    assert started == load_initial_weights(folder, plain(RunConfig.load(config)))
    other = shutil.copytree(folder, tmp_path / "copy")
    refused = Workers(config, "name=z3", f"initial_weights={other}", processes=1)
    assert refused.wait() == [1]
    assert f"initial_weights was {folder}, now {other}" in refused.output[0]
    shutil.rmtree(folder)
    train(config, "name=z3", "train.max_steps=3", "checkpoint.every_steps=3", processes=1)
    assert [step for step, _ in losses(run)] == [1, 2, 3]
    assert read_manifest(latest_complete(run))["fingerprints"]["initial_weights"] == started
    new = Workers(config, "name=new", processes=1)
    assert new.wait() == [1]
    assert "initial_weights" in new.output[0]
    assert "cannot be read" in new.output[0]
    assert not (tmp_path / "runs" / "new").exists(), "nothing is started"


def plain(config: RunConfig) -> SpadeForSeq2Seq:
    return SpadeForSeq2Seq(config.model)


@pytest.mark.slow
def test_export_continue_without_learning_export_gives_the_same_bits(
    settings: dict[str, Any],
    prose_data: Path,
    write_config: Callable[[dict[str, Any]], Path],
    tmp_path: Path,
) -> None:
    del settings["initial_weights"]
    settings["optimizer"] = {"learning_rate": 3e-3}
    train(write_config(settings), "name=first", processes=1)
    first = export(tmp_path / "runs" / "first", tmp_path / "first-hf").path
    out = tmp_path / "continued.yaml"
    report = write_continuation(
        first,
        out,
        name="second",
        data=prose_data / "train",
        heldout=prose_data / "heldout",
        tokenizer=prose_data / "tokenizer",
    )
    assert report.settings_from == "provenance.json of the folder"
    assert report.parameters == sum(x.numel() for x in plain(RunConfig.load(out)).parameters())
    assert all(f"# {line}" in out.read_text() for line in report.lost)
    # The smallest rate there is: in float32 it is 0.
    still = ("optimizer.learning_rate=1.0e-300", f"run_dir={tmp_path / 'runs'}")
    train(out, *still, "evaluation.samples=8", "deepspeed.zero_stage=3", processes=2)
    second = export(tmp_path / "runs" / "second", tmp_path / "second-hf").path
    before, after = (load_file(path / "model.safetensors") for path in (first, second))
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert x.dtype == after[name].dtype == torch.float32
        assert torch.equal(x.view(torch.uint8), after[name].view(torch.uint8)), name
    provenance = json.loads((second / "provenance.json").read_text())
    weights = provenance["fingerprints"]["initial_weights"]
    assert weights in (second / "README.md").read_text()
    assert weights in model_card(provenance)
    assert str(tmp_path) not in (second / "provenance.json").read_text()


def test_half_precision_shards_become_float32_masters(
    settings: dict[str, Any], folder: Path, write_config: Callable[[dict[str, Any]], Path]
) -> None:
    whole = load_file(folder / "model.safetensors")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    loaded.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    config = RunConfig.load(write_config(settings))
    model = plain(config)
    load_initial_weights(folder, model)
    for name, x in model.state_dict().items():
        assert x.dtype == torch.float32
        if name != "lm_head.weight":
            exact = ".state_space." in name
            assert torch.equal(x, whole[name] if exact else whole[name].bfloat16().float()), name
    assert model.lm_head.weight is model.model.shared.weight


REFUSED = [
    ("model.d_ff=48", "model.d_ff is 48, but .* has 64; write model.d_ff: 64"),
    ("model.local_radius_tokens=7", "model.local_radius_tokens is 7, but .* has 15"),
    ("model.state_space_layers=[1]", "model.state_space_layers is .1,., but .* has 1; write"),
    ("model.max_target_length_tokens=50", "max_target_length_tokens is 50, but .* has 40"),
    ("initial_weights=nowhere", "nowhere/config.json: cannot be read"),
]


@pytest.mark.parametrize(("change", "complaint"), REFUSED)
def test_another_model_is_refused_before_anything_starts(
    change: str,
    complaint: str,
    settings: dict[str, Any],
    write_config: Callable[[dict[str, Any]], Path],
) -> None:
    config = write_config(settings)
    RunConfig.load(config, ["model.dropout=0.1", "model.state_space_copies=32"])  # the same weights
    check_refused(config, complaint, change)


def check_refused(config: Path, complaint: str, *words: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        RunConfig.load(config, words)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_and_foreign_folders_are_refused(
    settings: dict[str, Any], folder: Path, write_config: Callable[[dict[str, Any]], Path]
) -> None:
    config = write_config(settings)
    facts = json.loads((folder / "config.json").read_text())
    for change, complaint in (
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"tie_word_embeddings": False}, "--tie-head"),
        ({"vocab_size": facts["vocab_size"] + 1}, "model.vocab_size"),
        ({"state_dim": "many"}, "config.json: state_dim"),
    ):
        (folder / "config.json").write_text(json.dumps({**facts, **change}))
        check_refused(config, complaint)
    (folder / "config.json").write_text(json.dumps(facts))
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "model.encoder.final_norm.weight"
    for change, complaint in (
        ({name: tensors[name][:5].clone()}, rf"{name} is \[5\], but .* has \[32\]"),
        ({name: None}, f"{name} is missing"),
        ({"classifier.weight": torch.ones(2)}, "classifier.weight is .* no such tensor"),
        ({name: torch.ones(32, dtype=torch.int64)}, f"{name} is I64"),
    ):
        changed: dict[str, Any] = {**tensors, **change}
        save_file({key: x for key, x in changed.items() if x is not None}, weights)
        check_refused(config, complaint)
    save_file({**tensors, name: torch.full((32,), torch.nan)}, weights)
    with pytest.raises(ConfigError, match=f"{name} holds numbers that are not finite"):
        load_initial_weights(folder, plain(RunConfig.load(config)))
    weights.write_bytes(weights.read_bytes()[:1000])
    check_refused(config, "model.safetensors: cannot be read")
    weights.unlink()
    check_refused(config, "model.safetensors: no such file")
    save_file(tensors, weights)
    pieces = (folder / "spiece.model").read_bytes()
    (folder / "spiece.model").write_bytes(pieces[:-1])
    check_refused(config, "data.tokenizer .* is another one")
    (folder / "spiece.model").unlink()
    check_refused(config, "spiece.model cannot be read")
    (folder / "spiece.model").write_bytes(pieces)
    (folder / "provenance.json").write_text('{"fingerprints": {"tokenizer": "0123"}}')
    check_refused(config, "data.tokenizer .* is another one")


def invoke(*words: str | Path) -> str:
    """Run a command of the group in this process."""
    application = typer.Typer()
    importing.register(application)
    application.callback()(lambda: None)
    said = CliRunner().invoke(application, ["import", *map(str, words)])
    assert said.exit_code == 0, (said.output, said.exception)
    return said.output


def test_a_configuration_is_written_from_a_folder_that_tells_nothing(
    settings: dict[str, Any], folder: Path, prose_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "continued.yaml"
    places = {name: prose_data / name for name in ("heldout", "tokenizer")}
    words = ["--data", prose_data / "train", "--out", out]
    for name, place in places.items():
        words += [f"--{name}", place]
    assert "lost: the optimizer's state" in invoke("pretraining", folder, *words)
    config = RunConfig.load(out)
    assert config.initial_weights == folder
    model = SpadePretrainedConfig.from_pretrained(folder).to_spade_config()
    assert config.model == model
    objective = config.data.make_objective()
    assert objective.target_length_tokens <= model.max_target_length_tokens
    assert "our defaults" in out.read_text()
    with pytest.raises(ConfigError, match="is there already"):
        write_continuation(folder, out, name="more", data=prose_data / "train", **places)
    (folder / "spiece.model").write_bytes(b"another")
    with pytest.raises(ConfigError, match="is another one"):
        write_continuation(
            folder, tmp_path / "b.yaml", name="more", data=prose_data / "train", **places
        )
    assert not (tmp_path / "b.yaml").exists()


def test_t5_can_go_on_with_a_tokenizer_of_ours(prose_data: Path, tmp_path: Path) -> None:
    """From transformers' folder to a run's configuration, with rows of shared pieces kept."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -2.0), ("\u2581", -2.0)]
    T5Tokenizer(vocab=pieces, extra_ids=4).save_pretrained(tmp_path / "t5")
    sizes = {"d_model": 16, "d_kv": 4, "num_heads": 2, "d_ff": 20, "num_layers": 1}
    source = T5ForConditionalGeneration(T5Config(vocab_size=12, **sizes))
    source.save_pretrained(tmp_path / "t5")
    out, tokenizer = tmp_path / "spade", prose_data / "tokenizer"
    invoke("t5", tmp_path / "t5", "state_dim=4", "--tokenizer", tokenizer, "--out", out)
    theirs, ours = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "t5", out))
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    for piece in ("</s>", "a", "<extra_id_0>", "<extra_id_3>"):
        row = source.shared.weight[theirs.convert_tokens_to_ids(piece)]
        assert torch.equal(model.model.shared.weight[ours.convert_tokens_to_ids(piece)], row)
    assert model.config.vocab_size == len(ours)
    places = ("--data", prose_data / "train", "--heldout", prose_data / "heldout")
    config = tmp_path / "continued.yaml"
    invoke("pretraining", out, *places, "--tokenizer", tokenizer, "--out", config)
    assert RunConfig.load(config).model.decoder_position == "relative_bias"
