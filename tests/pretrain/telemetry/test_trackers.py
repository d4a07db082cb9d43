"""Weights & Biases and MLflow, the real packages without a network: ``pip install '.[tracking]'``.

A run that is stopped and resumed is one run there too.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pretrain.run_folder import RunFolder
from pretrain.telemetry.histograms import histogram_of
from pretrain.telemetry.settings import TelemetrySettings, TrackerName
from pretrain.telemetry.writer import check_trackers, open_metrics

CONFIGURATION = {"name": "tiny", "model": {"d_model": 32, "text": "x" * 9000}, "list": [1, 2]}


def train(folder: Path, tracker: TrackerName, steps: range) -> list[str]:
    """Write some steps as a run does; returns what went wrong."""
    settings = TelemetrySettings(trackers=(tracker,), offline=True, project="a project")
    check_trackers(settings)
    said: list[str] = []
    logger = logging.Logger("test")
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    writer = open_metrics(
        RunFolder(folder),
        settings,
        name="tiny",
        configuration=CONFIGURATION,
        configuration_yaml="name: tiny",
        start_step=steps.start - 1,
        logger=logger,
    )
    for step in steps:
        writer.write({"step": step, "loss": step / 2, "eval/a<b/loss": float("nan")})
    writer.histogram("weights/w", histogram_of(torch.arange(5.0)), steps.stop - 1)
    writer.text("fills", "    <b>text</b>", steps.stop - 1)
    writer.close(finished=steps.stop == 7)
    return said


def test_mlflow_keeps_one_run_over_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install '.[tracking]'")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")  # offline asks nobody
    assert train(tmp_path, "mlflow", range(1, 5)) == []
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("a project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "KILLED")
    assert train(tmp_path, "mlflow", range(3, 7)) == []
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss/train")
    assert [(point.step, point.value) for point in history] == [
        (step, step / 2) for step in (1, 2, 3, 4, 3, 4, 5, 6)
    ]
    assert "eval/a_b/loss" in run.data.metrics
    assert run.data.params["model.d_model"] == "32"
    assert len(run.data.params["model.text"]) == 500
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["fills"]


def test_wandb_keeps_one_run_over_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[tracking]'")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert train(tmp_path, "wandb", range(1, 5)) == []
    assert train(tmp_path, "wandb", range(3, 7)) == []
    wandb.teardown()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.stem for file in files}) == 1, "one identity"
    assert len(files) == 2
    steps = [
        (float(values["step"]), float(values["loss/train"]))
        for file in files
        for values in history(file)
        if "loss/train" in values
    ]
    assert steps == [(step, step / 2) for step in (1, 2, 3, 4, 3, 4, 5, 6)]


def history(file: Path) -> list[dict[str, str]]:
    """The logged rows of a run's file, their values as JSON text."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
    return rows


def records(content: bytes) -> Iterator[bytes]:
    """Takes a file in LevelDB's log format apart, which Weights & Biases writes."""
    block_bytes, header_bytes = 32_768, 7
    place, parts = header_bytes, b""
    while place < len(content):
        left = block_bytes - place % block_bytes
        if left < header_bytes:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        place += header_bytes
        parts += content[place : place + length]
        place += length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
