"""A wrong configuration is refused before anything starts, in lines that name the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data_pipeline.corpora.corpus import iterate_documents
from data_pipeline.errors import DataError
from data_pipeline.tokenization.tokenizer import train_tokenizer
from pretrain.config import RunConfig, json_schema
from pretrain.errors import ConfigError
from pretrain.planning.planner import describe


def place(settings, key, value):
    *sections, last = key.split(".")
    inner = settings
    for name in sections:
        inner = inner.setdefault(name, {})
    inner[last] = value


def test_a_configuration_round_trips_through_its_own_yaml(run_settings, write_config, tmp_path):
    config = RunConfig.load(write_config(run_settings))
    again = tmp_path / "resolved.yaml"
    again.write_text(config.to_yaml())
    assert RunConfig.load(again) == config


def test_what_the_data_decide_is_filled_in(run_settings, write_config):
    config = RunConfig.load(write_config(run_settings))
    assert config.model.vocab_size == 512 + 64
    assert (
        config.model.max_target_length_tokens == config.data.make_objective().target_length_tokens
    )


def test_overrides_are_read_as_yaml(run_settings, write_config):
    overrides = ["train.max_steps=9", "optimizer.learning_rate=2e-4", "name=other"]
    config = RunConfig.load(write_config(run_settings), overrides)
    assert (config.train.max_steps, config.optimizer.learning_rate) == (9, 2e-4)
    assert config.run_path.name == "other"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimizer.learning_rte", 1.0, "did you mean learning_rate?"),
        ("model.d_modle", 64, "did you mean d_model?"),
        ("trian", {}, "did you mean train?"),
        ("train.max_steps", "9", "train.max_steps"),
        ("train.max_steps", 0, "greater than 0"),
        ("train.precision", "fp8", "train.precision"),
        ("train.micro_batch_size", 3, "no multiple of"),
        ("model.local_radius_tokens", 64, "use a smaller radius"),
        ("model.vocab_size", 9999, "leave model.vocab_size out"),
        ("model.max_target_length_tokens", 4, "raise it or leave it out"),
        ("schedule.warmup_steps", 7, "shorten one of them"),
        ("schedule.kind", "wsd", "wsd needs a decay"),
        ("schedule.decay_steps", 2, "only kind: wsd"),
        ("deepspeed.zero_stage", 5, "deepspeed.zero_stage"),
        ("name", "../up", "name"),
        ("data.train", "/nowhere/at/all", "spade data build"),
        ("data.input_length_tokens", 100_000, "sentinels"),
    ],
)
def test_each_mistake_is_one_line_that_says_what_to_do(
    run_settings, write_config, key, value, said
):
    place(run_settings, key, value)
    with pytest.raises((ConfigError, DataError)) as caught:
        RunConfig.load(write_config(run_settings))
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_too_few_sentinels_names_both_numbers(run_settings, write_config):
    run_settings["data"]["input_length_tokens"] = 2000
    with pytest.raises((ConfigError, DataError), match=r"64.*\b111\b|\b111\b.*64"):
        RunConfig.load(write_config(run_settings))


def test_a_tokenizer_of_other_shards_is_refused(run_settings, write_config, prose_corpus, tmp_path):
    train_tokenizer(
        iterate_documents([prose_corpus]), vocab_size=480, sentinels=96, out=tmp_path / "other"
    )
    run_settings["data"]["tokenizer"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"data\.tokenizer .*not the one the shards were made"):
        RunConfig.load(write_config(run_settings))
    run_settings["data"]["tokenizer"] = str(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"data\.tokenizer"):
        RunConfig.load(write_config(run_settings))


def test_all_problems_are_told_at_once(run_settings, write_config):
    run_settings["train"]["max_step"] = 3
    run_settings["optimizer"]["learning_rate"] = -1
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(write_config(run_settings))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("override", ["train.max_steps", "=3", "train..x=1", "name.inner=2"])
def test_malformed_overrides_are_refused(run_settings, write_config, override):
    with pytest.raises(ConfigError, match="override"):
        RunConfig.load(write_config(run_settings), [override])


def test_a_batch_that_cannot_be_cut_over_the_ranks_is_refused(run_settings, write_config):
    config = RunConfig.load(write_config(run_settings))
    assert [config.accumulation_steps(size) for size in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ConfigError, match="no multiple of"):
        config.accumulation_steps(3)


def test_dry_run_states_what_follows(run_settings, write_config):
    plan = describe(RunConfig.load(write_config(run_settings)), world_size=2)
    json.dumps(plan)
    assert plan["deepspeed"]["gradient_accumulation_steps"] == 2
    assert plan["tokens_per_step"] == 8 * plan["window_tokens"]
    assert plan["estimated_memory_bytes"]["weights"] == 4 * plan["parameters"]


def test_the_schema_knows_every_section_and_its_documentation():
    schema = json_schema()
    assert set(schema["properties"]) == set(RunConfig.model_fields)
    assert schema["$defs"]["TrainSettings"]["properties"]["seed"]["description"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_shipped_configurations_are_valid_on_data_of_the_right_kind(path, prose_data):
    """Their data do not exist here, so the folders and what follows from them are replaced."""
    values = yaml.safe_load(path.read_text())
    for field in ("train", "heldout", "tokenizer"):
        values["data"][field] = str(prose_data / field)
    objective = RunConfig.from_dict(
        values | {"model": values["model"] | {"vocab_size": 576}}
    ).data.make_objective()
    assert objective.window_tokens > objective.input_length_tokens
