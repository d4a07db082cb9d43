"""The places that a run tells its numbers to: read back by TensorBoard; none can hold it up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.errors import ConfigError
from pretrain.run_folder import RunFolder
from pretrain.telemetry.background import BackgroundSink
from pretrain.telemetry.histograms import Histogram, histogram_of, model_histograms
from pretrain.telemetry.metrics import read_metrics
from pretrain.telemetry.settings import TelemetrySettings
from pretrain.telemetry.writer import MetricsWriter, check_trackers, open_metrics

YAML = "name: tiny\nmodel: {d_model: 32}\n```\n<script>alert(1)</script>\n"


def open_writer(folder: Path, start_step: int, **settings: Any) -> MetricsWriter:
    return open_metrics(
        RunFolder(folder),
        TelemetrySettings.model_validate_json(TelemetrySettings(**settings).model_dump_json()),
        name="tiny",
        configuration={"model": {"d_model": 32}},
        configuration_yaml=YAML,
        start_step=start_step,
        logger=logging.getLogger("test"),
    )


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    return events.Reload()


def test_tensorboard_shows_the_run_as_it_went_in_the_end(tmp_path: Path) -> None:
    """Ten steps, killed and resumed after the sixth, rolled back from the ninth to the seventh."""
    writer = open_writer(tmp_path, 0)
    for step in range(1, 11):
        writer.write({"step": step, "loss": float(step), "tokens_per_second": 5.0})
    writer.close(finished=False)
    writer = open_writer(tmp_path, 6)
    for step in range(7, 10):
        writer.write({"step": step, "loss": step + 0.25, "grad_norm": float("nan")})
    writer.go_back(7)
    for step in range(8, 11):
        writer.write({"step": step, "loss": step + 0.5})
    writer.text("fills", "    a text", 10)
    weights = torch.nn.Linear(3, 2)
    for name, histogram in model_histograms(weights):
        writer.histogram(name, histogram, 10)
    writer.close(finished=True)

    expected = [*map(float, range(1, 7)), 7.25, 8.5, 9.5, 10.5]
    events = board(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == list(enumerate(expected, 1))
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == expected
    assert [e.step for e in events.Scalars("speed/tokens_per_second")] == list(range(1, 7))
    assert np.isnan(events.Scalars("gradients/norm")[0].value)
    assert {"weights/weight", "weights/bias"} == set(events.Tags()["distributions"])
    (drawn,) = events.Histograms("weights/weight")
    assert (drawn.histogram_value.num, drawn.step) == (6, 10)
    assert drawn.histogram_value.sum == pytest.approx(weights.weight.double().sum().item())
    texts = events.Tensors("configuration/text_summary")
    shown = texts[-1].tensor_proto.string_val[0].decode()
    assert shown.splitlines() == [f"    {line}" for line in YAML.splitlines()]
    assert "custom_scalars__config__" in events.Tags()["tensors"]


class Slow:
    """A place that takes nothing before it is let go, and then fails at every second record."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.steps: list[int] = []
        self.closed: bool | None = None

    def write(self, record: Mapping[str, Any]) -> None:
        self.gate.wait()
        if record["step"] % 2:
            raise RuntimeError(f"no answer to {record['step']}\nand a long story")
        self.steps.append(record["step"])

    def text(self, name: str, text: str, step: int) -> None: ...

    def histogram(self, name: str, values: Histogram, step: int) -> None: ...

    def go_back(self, step: int) -> None: ...

    def close(self, *, finished: bool) -> None:
        self.closed = finished


def test_a_slow_and_failing_place_holds_nothing_up_and_is_named_once() -> None:
    gate, said = threading.Event(), list[str]()
    slow = Slow(gate)
    sink = BackgroundSink("place", lambda: slow, said.append, closing_seconds=30)
    start = time.perf_counter()
    record = {"step": 0}
    for step in range(12_000):
        record["step"] = step  # the same object, as a caller might keep
        sink.write(record)
    assert time.perf_counter() - start < 5
    assert said == []
    gate.set()
    deadline = time.monotonic() + 20
    while len(slow.steps) < 4_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    sink.close(finished=True)
    assert slow.steps == list(range(0, 2 * len(slow.steps), 2)), "in order, from the first on"
    assert slow.closed is True
    failure, left_out = said
    assert failure.startswith("place: no answer to 1; the run goes on")
    count = int(left_out.split()[-2])
    assert count > 0
    assert abs(12_000 - count - 2 * len(slow.steps)) <= 1, "each was taken or counted"


def test_a_place_that_cannot_be_opened_is_left_out() -> None:
    def fail() -> Any:
        raise OSError("no route to host")

    said: list[str] = []
    sink = BackgroundSink("place", fail, said.append, closing_seconds=30)
    sink.write({"step": 1})
    start = time.perf_counter()
    sink.close(finished=True)
    assert time.perf_counter() - start < 5
    assert said == ["place: no route to host; the run goes on without it"]


def test_a_place_that_never_answers_does_not_keep_a_finished_run_waiting() -> None:
    said: list[str] = []
    slow = Slow(threading.Event())
    sink = BackgroundSink("place", lambda: slow, said.append, closing_seconds=0.2)
    sink.write({"step": 1})
    start = time.perf_counter()
    sink.close(finished=True)
    assert time.perf_counter() - start < 5
    assert said == ["place did not take the last records in 0 s"]
    slow.gate.set()


def test_what_is_missing_or_makes_no_sense_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trackers(TelemetrySettings())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb, which is not installed; pip install [^\n]*$"):
        check_trackers(TelemetrySettings(trackers=("wandb",)))
    with pytest.raises(ValidationError, match="names one of them twice"):
        TelemetrySettings(trackers=("mlflow", "mlflow"))
    with pytest.raises(ValidationError, match=r"offline is true but .* is empty"):
        TelemetrySettings(offline=True)


@given(
    hypothesis_numpy.arrays(
        np.float32, st.integers(0, 200), elements=st.floats(width=32, allow_subnormal=False)
    )
)
def test_a_histogram_counts_every_finite_value_once(values: np.ndarray) -> None:
    found = histogram_of(torch.from_numpy(values))
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found.count == sum(found.counts) == len(finite)
    assert found.non_finite == len(values) - len(finite)
    assert len(found.edges) == len(found.counts) + 1
    if len(finite):
        assert (found.smallest, found.largest) == (finite.min(), finite.max())
        assert found.total == pytest.approx(finite.sum(), rel=1e-12, abs=1e-12 * abs(finite).max())
        assert found.sum_of_squares == pytest.approx(np.square(finite).sum(), rel=1e-12)
    if len(set(finite)) > 1:
        expected, _ = np.histogram(finite, bins=len(found.counts))
        # A value next to a border may be counted on either side of it.
        assert np.abs(np.cumsum(expected) - np.cumsum(found.counts)).max() <= len(finite) // 8 + 1
