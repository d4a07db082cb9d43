"""The trace of the profiler is there, can be opened, and names the parts of a step."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pretrain.ranks import Ranks
from pretrain.telemetry.profiler import ProfilerWindow
from pretrain.telemetry.settings import ProfileSettings
from pretrain.telemetry.step_timer import StepTimer

CPU = torch.device("cpu")


def train(
    folder: Path, settings: ProfileSettings | None, steps: range, rank: int = 0
) -> list[dict[str, Any]]:
    """Make steps; returns the traces in the run's folder."""
    window = ProfilerWindow(
        settings, folder, Ranks(rank, 2, rank, "test"), CPU, logging.getLogger("test")
    )
    timer = StepTimer(CPU)
    weights = torch.ones(32, 32, requires_grad=True)
    for step in steps:
        window.before_step(step)
        with timer.part("forward"):
            loss = (weights @ weights).sum()
        with timer.part("backward"):
            loss.backward()
        window.after_step(step)
    window.close()
    files = sorted((folder / "profile").glob("*")) if (folder / "profile").exists() else []
    traces = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            traces.append({**json.load(stream), "file": file.name})
    return traces


def test_a_trace_holds_the_steps_of_the_window(tmp_path: Path) -> None:
    (trace,) = train(tmp_path, ProfileSettings(first_step=3, steps=2), range(1, 8))
    assert trace["file"] == "rank-00000-steps-00000003-00000004.json.gz"
    named = [event for event in trace["traceEvents"] if event.get("name") == "step/forward"]
    ranges = [event for event in named if event["cat"] == "user_annotation"]
    assert len(ranges) == 2
    products = [event for event in trace["traceEvents"] if event.get("name") == "aten::mm"]
    first = ranges[0]
    assert any(
        first["ts"] <= event["ts"] and event["ts"] + event["dur"] <= first["ts"] + first["dur"]
        for event in products
    ), "operators lie within the part they belong to"


def test_a_window_cut_short_is_written_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    settings = ProfileSettings(first_step=3, steps=4)
    (trace,) = train(tmp_path, settings, range(1, 5))
    assert trace["file"].endswith("00000003-00000004.json.gz")
    traces = train(tmp_path, settings, range(5, 9))
    assert [trace["file"][-25:-8] for trace in traces] == ["00000003-00000004", "00000005-00000006"]


def test_no_profile_where_none_is_asked_for(tmp_path: Path) -> None:
    assert train(tmp_path, None, range(1, 4)) == []
    assert train(tmp_path, ProfileSettings(first_step=1), range(1, 4), rank=1) == []
    assert train(tmp_path, ProfileSettings(first_step=1), range(9, 12)) == []
    with pytest.raises(ValidationError, match="ranks"):
        ProfileSettings(first_step=1, ranks=())


def test_a_trace_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    window = ProfilerWindow(
        ProfileSettings(first_step=1, steps=1),
        tmp_path,
        Ranks(0, 1, 0, "test"),
        CPU,
        logging.getLogger("test"),
    )
    window.before_step(1)
    window.after_step(1)
    assert "no trace of the profiler" in caplog.text
