"""The report is one page without anything foreign in it, whatever the run folder holds."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import spade
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pretrain.errors import RunError
from pretrain.report.comparison import differing, summarize, write_comparison
from pretrain.report.curves import Curves, series, smoothed
from pretrain.report.report import run_page, write_report
from pretrain.report.run_record import flatten, read_run

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


def test_roll_backs_skips_and_fills_of_a_run_are_told(tmp_path: Path) -> None:
    decisions = [
        {"action": "skip", "step": 4, "to_step": None},
        {"action": "skip", "step": 5, "to_step": None},
        {"action": "roll_back", "step": 6, "to_step": 3},
    ]
    gap = {"before": NASTY, "truth": "stood here", "generated": "was\nwritten", "after": "then"}
    run = run_folder(
        tmp_path / "spiky",
        [train_line(step) for step in range(1, 9)],
        decisions__jsonl="".join(json.dumps(line) + "\n" for line in decisions) + '{"action": "a',
        fills__jsonl=json.dumps({"step": 8, "samples": [[gap], []]}) + "\n",
    )
    page = Page(write_report(run)[0].read_text())
    check_self_contained(page)
    assert "; rolled back to step 3; 2 steps skipped" in page.text
    assert "Gaps filled in at step 8" in page.text
    assert "stood here" in page.text
    assert NASTY in page.text


def test_several_runs_are_compared(tmp_path: Path) -> None:
    base = "name: {0}\ntrain: {{max_steps: 9, seed: {1}}}\nmodel: {{vocab_size: 3}}\n"
    lines = [*(train_line(step) for step in range(1, 10)), evaluation_line(9, 4.5)]
    one = run_folder(tmp_path / "one", lines, config__yaml=base.format("one", 1))
    more = [{"event": "resume", "step": 4}, evaluation_line(5, 4.25), evaluation_line(9, 5.5)]
    other = run_folder(
        tmp_path / "other",
        lines[:-1] + more,
        config__yaml=base.format("other", 2) + f"note: {json.dumps(NASTY)}\n",
        decisions__jsonl='{"action": "roll_back", "step": 7, "to_step": 5}\n',
        environment__json='{"torch": "2.13"}',
    )
    young = run_folder(tmp_path / "_$x", [], config__yaml="train: [torn\n")
    page_path, picture, summaries = write_comparison([one, other, young], tmp_path / "new" / "out")
    page = Page(page_path.read_text())
    check_self_contained(page)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [item.run for item in summaries] == ["one", "other", "_$x"]
    first, second, third = summaries
    assert (first.state, first.resumed, first.rolled_back) == ("finished after 9 steps", 0, 0)
    assert (second.resumed, second.rolled_back, second.heldout_loss) == (1, 1, 5.5)
    assert (second.best_heldout_loss, second.best_heldout_step) == (4.25, 5)
    assert (third.step, third.loss, third.tokens_per_second) == (0, None, None)
    assert len(third.problems) == 1
    assert "config.yaml: cannot be read" in third.problems[0]
    assert third.problems[0] in page.text
    assert NASTY in page.text
    for name, shown in (("train.seed", True), ("note", True), ("model.vocab_size", True)):
        assert (name in page.text) == shown
    page_path, *_ = write_comparison([one, one], tmp_path)
    assert "All settings that are known are the same" in page_path.read_text()


def test_the_command_writes_and_tells(tmp_path: Path) -> None:
    lines = [train_line(step) for step in range(1, 4)]
    one = run_folder(tmp_path / "one", lines, config__yaml="train: {max_steps: 3}\n")
    other = run_folder(tmp_path / "other\x1b[2J", [*lines, "damaged"])  # type: ignore[list-item]
    told = json.loads(spade("report", one, "--json"))
    assert told["page"] == str(one / "report.html")
    assert told["runs"][0]["state"] == "finished after 3 steps"
    output = spade("report", one, other, "--out", tmp_path / "both")
    assert "metrics.jsonl: 1 lines damaged, the first is 4" in output
    assert "\x1b" not in output.replace(str(tmp_path), "")
    assert (tmp_path / "both" / "comparison.html").exists()
    assert "no run has written here" in spade("report", one, tmp_path / "both", code=1)


_PLACES = ("metrics.jsonl", "config.yaml", "environment.json", "decisions.jsonl", "fills.jsonl")
_KEYS = st.sampled_from(
    (
        *("step", "loss", "event", "eval/heldout/loss", "eval/a/b", "learning_rate/x"),
        *("tokens_seen", "tokens_per_second", "memory_bytes", "action", "to_step", "samples"),
        *("train", "max_steps", "model", "data", "heldout", "name", NASTY, "\ud800"),
    )
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([10**400, -(10**30), 1e308, float("nan"), float("inf"), 2**53])
    | st.integers(0, 9)
    | st.floats()
    | st.sampled_from(["resume", "roll_back", NASTY, "\ud800", "\x00", "\u202e", "!!int x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=8,
)
_LINES = st.lists(st.dictionaries(_KEYS, _VALUES, max_size=6), max_size=6).map(
    lambda lines: "".join(json.dumps(line) + "\n" for line in lines).encode()
)
_YAML = st.sampled_from(
    (
        *(b"a: !!timestamp x", b"a: !!int ''", b"a: !!bool x", b"a: 2024-99-99", b"{", b"- 1"),
        *(b"a: " + b"9" * 5000, b"train: {max_steps: " + b"9" * 4000 + b"}", b"name: \xff"),
        b"name: " + NASTY.encode(),
    )
)


_CONTENTS = st.dictionaries(
    st.sampled_from(_PLACES), st.binary(max_size=60) | _LINES | _YAML, min_size=1
)


def hostile_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    (folder / "metrics.jsonl").touch()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@settings(max_examples=100)
@given(_CONTENTS)
def test_whatever_lies_in_the_folder_is_read(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    record = read_run(hostile_folder(tmp_path_factory.mktemp("hostile"), contents))
    page = Page(run_page(record, [], b""))
    check_self_contained(page)
    assert not set(page.text) & set("\x00\u202e")
    page.text.encode()
    flatten(record.config)
    summarize(record)


@settings(max_examples=4)  # drawing takes a second each
@given(_CONTENTS)
def test_whatever_lies_in_the_folder_can_be_drawn(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    folder = hostile_folder(tmp_path_factory.mktemp("hostile"), contents)
    check_self_contained(Page(write_comparison([folder, folder], folder)[0].read_text()))


def test_numbers_that_are_hard_to_draw(tmp_path: Path) -> None:
    hard = [1e29, -1e29, 1e-300, 1e308, 10**400, float("nan"), float("-inf"), True, "1", [2]]
    for kind in (train_line, evaluation_line):
        lines = [{**dict.fromkeys(kind(1), value), "step": n} for n, value in enumerate(hard)]
        run = run_folder(tmp_path / kind.__name__, lines)
        check_self_contained(Page(write_report(run)[0].read_text()))


def test_aliases_that_multiply_are_not_written_out(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    text = "\n".join(["a0: &a0 [1, 1]", *levels])
    record = read_run(run_folder(tmp_path / "many", [], config__yaml=text))
    assert record.config == {}
    assert record.problems == ["config.yaml: holds no settings"]


@pytest.mark.parametrize("name", _PLACES)
def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path, name: str) -> None:
    run = run_folder(tmp_path / "odd", [train_line(1)])
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    record = read_run(run)
    assert len(record.problems) == 1
    assert record.problems[0].startswith(name)


_SETTINGS = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(
        st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=6,
    ),
)


@given(st.lists(_SETTINGS, min_size=1, max_size=4))
def test_differing_settings_are_those_that_differ(of_runs: list[dict[str, Any]]) -> None:
    flat = [flatten(settings) for settings in of_runs]
    found = differing(flat)
    for name in {name for values in flat for name in values}:
        differs = any(values.get(name) != flat[0].get(name) for values in flat)
        assert (name in found) == differs
    assert not differing([flat[0], flat[0]])


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
