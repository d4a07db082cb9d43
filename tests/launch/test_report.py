"""The report is one page without anything foreign in it, whatever the run folder holds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pretrain.errors import RunError
from pretrain.report.report import write_report
from pretrain.report.report_figures import Curves, series, smoothed

NASTY = '<script>alert("x")</script>&$x^2$<b>'


def train_line(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 9.0 / step + 4.0,
        "learning_rate": 1e-3 * step,
        "learning_rate/decayed": 1e-3 * step,
        "learning_rate/state_space": 5e-4 * step,
        "grad_norm": 1.0 / step,
        "tokens_seen": step * 9088,
        "sample_index": step * 16,
        "tokens_per_second": 20_000.0,
        "data_wait_seconds": 0.001,
        "memory_bytes": 2**30,
        **more,
    }


def evaluation_line(step: int, loss: float = 5.0) -> dict[str, Any]:
    return {
        "step": step,
        "eval/heldout/loss": loss,
        "eval/heldout/text_loss": loss + 1,
        "eval/heldout/unigram_loss": 6.0,
        "eval/heldout/unigram_text_loss": 7.0,
    }


def run_folder(folder: Path, lines: list[dict[str, Any]], **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements close in order"

    def handle_data(self, data: str) -> None:
        self.text += data


def check_self_contained(page: Page) -> None:
    assert page.open == [], "every element is closed"
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form"}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert str(attributes.get("src", "data:image/")).startswith("data:image/")
        assert "href" not in attributes


@dataclass
class Span:
    truth: str
    generated: str


@dataclass
class Fill:
    name: str
    masked_text: str
    spans: list[Span]


def test_a_finished_and_resumed_run(tmp_path: Path) -> None:
    lines = [evaluation_line(0, 9.0), *(train_line(step) for step in range(1, 11))]
    lines += [{"event": "resume", "step": 10, "processes": 2}]
    lines += [*(train_line(step) for step in range(11, 21)), evaluation_line(20, 5.25)]
    run = run_folder(
        tmp_path / "trial",
        lines,
        config__yaml=f"name: trial\ntrain:\n  max_steps: 20\nmodel: {{d_model: 3}}\n# {NASTY}\n",
        environment__json=json.dumps({"host": NASTY, "memory_bytes": 2**34}),
    )
    fills = [Fill(f"a/{NASTY}.py", f"def {NASTY}(", [Span(NASTY, "x"), Span("\n\n", "")])]
    report, picture = write_report(run, fills)
    page = Page(report.read_text())
    check_self_contained(page)
    assert "finished after 20 steps; resumed after step 10" in page.text
    assert "9.000 → 5.250" in page.text
    assert "0.750 below" in page.text
    assert "↵\n↵\n" in page.text, "line ends of a gap can be seen"
    assert page.text.count(NASTY) == 5, "text from outside arrives as text"
    assert "16.0 GiB" in page.text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
    assert not list(run.glob(".*")), "no temporary file stays"


def test_a_run_that_still_goes_on(tmp_path: Path) -> None:
    run = run_folder(
        tmp_path / "young", [train_line(3)], config__yaml="name: young\ntrain: {max_steps: 9}\n"
    )
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')  # being written this very moment
    page = Page(write_report(run)[0].read_text())
    assert "step 3 of 9 when this report was written" in page.text
    (run / "stopped.json").write_text("{}")
    assert "stopped on request" in Page(write_report(run)[0].read_text()).text


@pytest.mark.parametrize("lines", [[], [evaluation_line(0)], [{"step": 1, "loss": float("nan")}]])
def test_a_run_that_has_hardly_begun(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    check_self_contained(Page(write_report(run_folder(tmp_path / "new", lines))[0].read_text()))


def test_writing_again_replaces(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "again", [train_line(1)])
    first = write_report(run)[1].read_bytes()
    assert write_report(run)[1].read_bytes() == first, "the same run gives the same picture"
    run_folder(run, [train_line(1), train_line(2)])
    assert write_report(run)[1].read_bytes() != first


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


_FLOATS = npst.arrays(
    np.float64,
    st.integers(1, 400),
    elements=st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False),
)


@given(_FLOATS)
def test_smoothing_keeps_ends_and_bounds(values: np.ndarray) -> None:
    smooth = smoothed(values)
    assert smooth.shape == values.shape
    assert smooth[0] == pytest.approx(values[0], abs=1e-3)
    assert smooth[-1] == pytest.approx(values[-1], abs=1e-3)
    slack = 1e-9 * np.abs(values).sum() + 1e-9
    assert smooth.min() >= values.min() - slack
    assert smooth.max() <= values.max() + slack


@given(st.integers(0, 6000))
def test_thinning_keeps_the_range_and_the_mean_line(num_lines: int) -> None:
    lines = [{"step": step, "loss": 2.0 * step} for step in range(1, num_lines + 1)]
    steps, values = series(lines, "loss")
    assert len(steps) == min(num_lines, 2000)
    assert np.allclose(values, 2.0 * steps), "a straight line stays one"
    assert np.all(np.diff(steps) > 0)


def test_lines_of_other_kinds_are_passed_over() -> None:
    curves = Curves.from_metrics([{"event": "resume", "step": 3}, {"x": 1}, train_line(1)])
    assert (len(curves.train), curves.evaluations, curves.resumed_at) == (1, [], [3])
