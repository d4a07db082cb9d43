"""What a job is, what a description of machines may say, and what launchers write down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch.clusters.job import Job, freeze_config
from launch.clusters.record import append_event, read_events
from launch.clusters.settings import ClusterSettings, load_cluster
from launch.failures import CommandError
from pretrain.config import RunConfig
from pretrain.errors import ConfigError


@given(
    st.integers(1, 20),
    st.none() | st.integers(1, 20),
    st.none() | st.integers(1, 8),
    st.integers(0, 8),
)
def test_a_job_is_consistent_or_refused(
    nodes: int, min_nodes: int | None, processes: int | None, gpus: int
) -> None:
    possible = (min_nodes is None or min_nodes <= nodes) and (
        processes is None or gpus in (0, processes)
    )
    numbers = {"min_nodes": min_nodes, "processes": processes, "gpus_per_node": gpus}
    if not possible:
        with pytest.raises(CommandError):
            Job.of(Path("c"), None, nodes=nodes, **numbers)
        return
    job = Job.of(Path("c"), None, nodes=nodes, **numbers)
    assert job.processes_per_node == (processes or max(1, gpus))
    assert job.world_sizes[-1] == nodes * job.processes_per_node
    assert job.world_sizes[0] == (min_nodes or nodes) * job.processes_per_node
    assert len(job.world_sizes) == nodes - (min_nodes or nodes) + 1


@pytest.mark.parametrize("word", ["max_steps", "=3", "--fresh"])
def test_a_word_that_sets_nothing_is_refused(word: str) -> None:
    with pytest.raises(CommandError, match=r"section\.key=value"):
        Job.of(Path("c"), ["a.b=c", word])


def test_the_frozen_configuration_is_the_checked_one(run_settings, write_config, monkeypatch):
    job = Job.of(write_config(run_settings), ["train.max_steps=9"])
    config = job.load()
    path = freeze_config(config)
    assert path.is_absolute()
    assert path.parent.parent == config.run_path
    write_config(run_settings | {"name": "changed-since"})
    assert RunConfig.load(path) == config
    assert not list(path.parent.glob(".*")), "no partial file is left"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nodes": {"modlues": ["cuda"]}}, "nodes.modlues is not a setting; did you mean modules"),
        ({"nodes": {"environment": {"A B": "x"}}}, "A B"),
        ({"nodes": {"environment": {"A": 3}}}, "nodes.environment.A is 3"),
        ({"nodes": {"network_interface": "a\nb"}}, "control character"),
        ({"nodes": {"modules": [""]}}, "nodes.modules.0"),
        ({"nodes": {"modules": ["--force"]}}, "nodes.modules.0"),
        ({"nodes": {"modules": ["cuda 12"]}}, "nodes.modules.0"),
        ({"nodes": 3}, "nodes is 3"),
        ({"hosts": []}, "hosts is not a setting"),
    ],
)
def test_a_mistake_in_a_description_is_one_line(tmp_path, values, said):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load_cluster(path, ClusterSettings)
    assert len(str(caught.value).splitlines()) == 1
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_description_can_be_left_out_but_not_missing(tmp_path):
    assert load_cluster(None, ClusterSettings) == ClusterSettings()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_cluster(tmp_path / "absent.yaml", ClusterSettings)


def test_events_are_appended_and_a_cut_line_is_left_out(tmp_path):
    assert read_events(tmp_path / "absent") == []
    append_event(tmp_path, "slurm", "submitted", job="12", name="a\nb")
    append_event(tmp_path, "slurm", "started", nodes=["x"])
    path = tmp_path / "launch" / "events.jsonl"
    with path.open("a") as stream:
        stream.write('{"event": "st')
    events = read_events(tmp_path)
    assert [event["event"] for event in events] == ["submitted", "started"]
    assert events[0]["name"] == "a\nb"
    assert events[0]["unix_seconds"] <= events[1]["unix_seconds"]
    assert all(json.loads(line) for line in path.read_text().splitlines()[:2])
