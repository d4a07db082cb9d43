"""What a run does with its data settings: mixtures, windows, objectives, workers, damage."""

from __future__ import annotations

import json
import shutil
import signal
import tarfile

import pytest
from worker_processes import Workers, losses, read_lines, train

from data_pipeline.shards.manifest import Manifest
from pretrain.checkpoints.checkpoint_format import latest_complete, read_manifest
from pretrain.config import RunConfig
from pretrain.errors import ConfigError


def sources(settings, **weights):
    return {
        name: {"path": settings["data"]["train"], "weight": weight}
        for name, weight in weights.items()
    }


@pytest.mark.slow
def test_a_run_over_everything_stops_and_goes_on_bit_for_bit(run_settings, write_config, tmp_path):
    """Two sources, a stage that brings a third, UL2, documents in windows, boundaries, workers."""
    settings = run_settings
    data = settings["data"]
    data |= {
        "train": sources(settings, prose=2.0, more=1.0, later=0.0),
        "stages": [{"from_sample": 40, "weights": {"later": 1.0, "prose": 1.0}}],
        "objective": {"kind": "ul2"},
        "windows": "document",
        "bucket_samples": 4,
        "document_boundaries": True,
        "workers": 1,
    }
    settings["train"] |= {"max_steps": 8}
    settings["checkpoint"]["every_steps"] = 100
    config = write_config(settings)
    train(config, "name=whole", processes=2)
    run = tmp_path / "runs" / "parts"
    workers = Workers(config, "name=parts", "data.workers=0", processes=2)
    workers.wait_for_step(run / "metrics.jsonl", 3)
    workers.signal(signal.SIGTERM)  # workers of the loader hear it too, and must not mind
    assert workers.wait() == [75, 75], workers.output
    train(config, "name=parts", processes=2)
    assert losses(run) == losses(tmp_path / "runs" / "whole")
    tokens = [line["tokens_seen"] for line in read_lines(run / "metrics.jsonl") if "loss" in line]
    assert tokens == sorted(set(tokens))
    last = [line for line in read_lines(run / "metrics.jsonl") if "loss" in line][-1]
    # Of 64 samples the first 40 are 2 : 1, the others 1 : 1 with the source that came later.
    epochs = [last[f"epochs/{name}"] for name in ("prose", "more", "later")]
    assert epochs[0] > epochs[1] > 0
    assert epochs[2] == pytest.approx(epochs[0] * 12 / (27 + 12), rel=0.05)

    # What decided about the past must stay; what comes later may change.
    for change, message in (
        ("data.stages=[]", "the mixture of the first 64 samples was"),
        ("data.windows=concat", "data.windows was document, now concat"),
        ("data.objective={kind: prefix_lm}", "data.objective.kind was ul2"),
    ):
        refused = Workers(config, "name=parts", "train.max_steps=9", change, processes=1)
        assert refused.wait() == [1]
        assert message in refused.output[0]
    later = (
        "data.stages=[{from_sample: 40, weights: {later: 1.0, prose: 1.0}}, "
        "{from_sample: 64, weights: {more: 1.0}}]"
    )
    train(config, "name=parts", "train.max_steps=9", later, processes=1)


@pytest.mark.slow
def test_a_run_goes_around_damage_and_remembers_it(
    run_settings, write_config, tmp_path, prose_data
):
    folder = tmp_path / "train"
    shutil.copytree(prose_data / "train", folder)
    for info in Manifest.load(folder).shards:
        path = folder / info.file
        with tarfile.open(path) as tar:
            member = max(
                (m for m in tar if m.name.endswith(".tokens.npy")), key=lambda member: member.size
            )
        content = bytearray(path.read_bytes())
        content[member.offset_data + 300] ^= 1
        path.write_bytes(content)
    run_settings["data"] |= {"train": str(folder)}
    run_settings["train"] |= {"max_steps": 16, "log_every_steps": 1}
    run_settings["checkpoint"] = {"every_steps": 8, "keep_last": 9}
    run_settings["evaluation"]["every_steps"] = 16
    config = write_config(run_settings)

    refused = Workers(config, "name=strict", processes=1)
    assert refused.wait() == [1]
    assert "is damaged (its checksum differs)" in refused.output[0]

    lenient = ("data.on_damage=quarantine", "data.max_damaged_fraction=0.5")
    train(config, "name=whole", *lenient, processes=2)
    workers = Workers(config, "name=parts", *lenient, processes=2)
    run = tmp_path / "runs" / "parts"
    workers.wait_for_step(run / "metrics.jsonl", 10)
    workers.signal(signal.SIGKILL)
    workers.wait()
    # Repaired in the meantime: the run still goes around what it knew, as the other one does.
    known = read_manifest(latest_complete(run))["quarantined"]
    assert known
    assert {entry["source"] for entry in known} == {"train"}
    shutil.rmtree(folder)
    shutil.copytree(prose_data / "train", folder)
    train(config, "name=parts", *lenient, processes=1)
    lines = [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]
    assert [entry for entry in lines if entry in known] == known
    assert losses(run)[:8] == losses(tmp_path / "runs" / "whole")[:8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {}}, "data.train names no data set"),
        (
            {"train": {"a": {"path": "x", "weight": 1.0}, "b": {"path": "y"}}},
            "data.train.b has no weight though a has one",
        ),
        ({"stages": [{"from_sample": 5, "weights": {"books": 1.0}}]}, "weighs 'books'"),
        (
            {
                "stages": [
                    {"from_sample": 5, "weights": {"train": 1.0}},
                    {"from_sample": 5, "weights": {"train": 1.0}},
                ]
            },
            "data.stages.1.from_sample 5 is not beyond the stage before",
        ),
        ({"objective": {"kind": "ul3"}}, "ul2"),
        ({"objective": {"kind": "ul2", "noise_density": 0.2}}, "noise_density"),
        ({"objective": {"kind": "span_corruption", "noise_density": 2.0}}, "noise_density"),
        ({"windows": "packed"}, "data.windows"),
        ({"on_damage": "ignore"}, "data.on_damage"),
    ],
)
def test_impossible_data_settings_are_errors(run_settings, write_config, change, message):
    run_settings["data"] |= change
    with pytest.raises(ConfigError, match=message):
        RunConfig.load(write_config(run_settings))


@pytest.mark.parametrize("kind", ["span_corruption", "ul2", "prefix_lm", "gap_sentences"])
def test_every_objective_makes_a_run(run_settings, write_config, kind):
    run_settings["data"]["objective"] = {"kind": kind}
    config = RunConfig.load(write_config(run_settings))
    target_tokens = config.data.make_objective().target_length_tokens
    assert config.model.max_target_length_tokens == target_tokens
    assert RunConfig.from_dict(config.to_dict()) == config
