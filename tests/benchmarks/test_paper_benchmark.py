"""The measurements of the paper's claims run, are kept, and mean what their tables say."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.common.far_header import Training, make_texts
from benchmarks.paper.__main__ import QUESTIONS, main, make_options, parse
from benchmarks.paper.ablations import BASE, make_arm, variants
from benchmarks.paper.ceilings import posteriors, simulate_ceiling
from benchmarks.paper.cells import Cell, measure_cells
from benchmarks.paper.extrapolation import bootstrap_interval, language_arms
from benchmarks.paper.language import build as build_language
from benchmarks.paper.language import held_out_loss, split_documents
from benchmarks.paper.options import SMOKE
from benchmarks.paper.plots import draw
from benchmarks.paper.recall import arms
from benchmarks.paper.tagging import build, evaluation_texts, steps_to, train_arm

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = ("recall", "ablations", "extrapolation")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.paper", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def tables_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    content = json.loads((out / "results.json").read_text())
    return {table["name"]: table["rows"] for table in content["tables"]}


@pytest.mark.slow
def test_three_questions_are_answered_once(tmp_path: Path) -> None:
    done = run(*OURS, "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ARTIFICIAL TEXT" in done.stdout
    first = tables_of(tmp_path)
    assert {row["variant"] for row in first["recall"]} == set(arms(SMOKE.recall, 0))
    assert len(first["ablations"]) == len(variants(3))
    by_value = {row["value"]: row for row in first["ablations_rates"]}
    for value, factor in ((BASE, 5), ("x0.2", 0.2), ("x1", 1)):
        row = by_value[value]
        rate = row["state space's highest rate"] / row["model's highest rate"]
        assert rate == pytest.approx(factor), "the rate applies"
    moved = [by_value[value]["C moved"] for value in ("not at all", "x0.2", "x1", BASE)]
    assert moved[0] == 0
    assert moved == sorted(moved)
    assert len(set(moved)) == 4
    figures = [tmp_path / f"{question}.png" for question in OURS]
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)

    # Typed again, nothing is measured; one cell that is missing is, and comes out the same.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.json")}
    missing = tmp_path / "cells" / "ablations" / "kind-s4d_lin-seed0.json"
    missing.unlink()
    done = run("ablations", "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    changed = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {missing}
    for name, rows in tables_of(tmp_path).items():
        for row, other in zip(rows, first[name], strict=True):
            if row.get("value") == "s4d_lin":
                row, other = row | {"ms/step (CPU)": 0}, other | {"ms/step (CPU)": 0}
            assert row == other, name

    for figure in figures:
        figure.unlink()
    draw(tmp_path)
    assert all(figure.is_file() for figure in figures), "drawn again from results.json"


def test_the_command_line_is_checked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for wrong, complaint in ((["speling"], "unknown question"), (["--workers", "-1"], "below 0")):
        with pytest.raises(SystemExit):
            parse(wrong)
        assert complaint in capsys.readouterr().err
    options = make_options(parse(["recall", "--seeds", "3", "4", "--workers", "1"]))
    assert (options.seeds, options.workers) == ((3, 4), 1)
    assert set(parse([*QUESTIONS]).questions) == set(QUESTIONS)
    for command in (["--draw", str(tmp_path)], ["extrapolation", "--out", str(tmp_path)]):
        with pytest.raises(SystemExit, match=r"^benchmarks\.paper: .*; give .*$"):
            main(command)


@dataclasses.dataclass(frozen=True)
class Sum:
    """Settings of a cell for the tests below."""

    numbers: tuple[int, ...]
    fails: bool = False


def add(settings: Sum) -> dict[str, Any]:
    if settings.fails:
        raise RuntimeError("as asked")
    return {"sum": sum(settings.numbers), "process": os.getpid()}


@pytest.mark.slow
def test_cells_are_kept_whatever_fails_beside_them(tmp_path: Path) -> None:
    cells = [Cell(f"sums/{number}", Sum((number, 1))) for number in range(3)]
    failing = Cell("sums/failing", Sum((0,), fails=True))
    with pytest.raises(RuntimeError, match="sums/failing"):
        measure_cells([failing, *cells], add, tmp_path, workers=2)
    found = measure_cells(cells, add, tmp_path, workers=0)
    assert [result["sum"] for result in found] == [1, 2, 3]
    assert len({result["process"] for result in found} - {os.getpid()}) == 3, "a process each"


def test_a_cell_of_other_settings_is_refused(tmp_path: Path) -> None:
    measure_cells([Cell("sum", Sum((1, 2)))], add, tmp_path, workers=0)
    with pytest.raises(ValueError, match=r"numbers=\[1, 2\], not \[1, 3\]; give another --out"):
        measure_cells([Cell("sum", Sum((1, 3)))], add, tmp_path, workers=0)


def test_ceilings_rise_with_what_is_seen_and_begin_at_chance() -> None:
    windows = (30, 128, 256, 512, 1024)
    found = [
        simulate_ceiling(window, texts=150, length_tokens=1024, reach=30) for window in windows
    ]
    expected = [ceiling.expected for ceiling in found]
    assert expected == sorted(expected)
    assert expected[0] == pytest.approx(0.25), "nothing is seen of the header"
    assert expected[-1] > 0.99
    for ceiling in found:
        assert ceiling.right == pytest.approx(ceiling.expected, abs=0.06), "probabilities are true"


@given(st.integers(0, 2**31), st.integers(0, 128))
@settings(max_examples=25, deadline=None)
def test_posteriors_are_those_of_the_votes_in_sight(seed: int, window: int) -> None:
    """Counted one token at a time, with the rates of a vote as the task states them."""
    generator = torch.Generator().manual_seed(seed)
    texts = make_texts(1, 128, generator, trained_length=128, reach=14)
    found = posteriors(texts, window)[0]
    ids = texts.ids[0].tolist()
    for place, probabilities in list(zip(texts.places[0].tolist(), found, strict=True))[:4]:
        register = ids[place] - 44 - 16
        weights = torch.ones(4, dtype=torch.float64)
        for token in ids[max(0, place - window) : place + window + 1]:
            if 0 <= (vote := token - 44 - 4 * register) < 4:
                weights[vote] *= 0.15 / 0.02
        torch.testing.assert_close(probabilities, weights / weights.sum())


def gradient_of_embedding(name: str) -> torch.Tensor:
    """Of the question's place alone, with attention switched off: what the state space lets by."""
    model = build(arms(SMOKE.recall, 0)[name])
    for layer in model.encoder.encoder.layers:
        layer.mixing.local_attention.output.weight.data.zero_()
    texts = evaluation_texts(arms(SMOKE.recall, 0)[name], model.reach)[0]
    embedded = model.encoder.shared(texts.ids).detach().requires_grad_()
    hidden = model.encoder.encoder(embedded)
    rows = torch.arange(len(texts.ids))
    hidden[rows, texts.places[:, 0]].square().sum().backward()
    assert embedded.grad is not None
    others = torch.ones_like(texts.ids, dtype=torch.bool)
    others[rows, texts.places[:, 0]] = False
    return embedded.grad[others]


def test_only_the_detached_state_space_has_no_gradient() -> None:
    frozen, detached = map(build, (arms(SMOKE.recall, 0)[n] for n in ("S4 frozen", _DETACHED)))
    texts = evaluation_texts(arms(SMOKE.recall, 0)[_DETACHED], detached.reach)[0]
    with torch.no_grad():
        assert torch.equal(frozen(texts), detached(texts)), "the same network forward"
    assert float(gradient_of_embedding(_DETACHED).norm()) == 0
    for name in ("S4 frozen", "SPADE"):
        assert float(gradient_of_embedding(name).norm()) > 0
    mixers = {name: build(arm).mixers for name, arm in arms(SMOKE.recall, 0).items()}
    assert [*mixers["S4 frozen"][0].parameters()] == [*mixers[_DETACHED][0].parameters()] == []
    assert [*mixers["SPADE"][0].parameters()]


_DETACHED = "S4 without gradient"


def test_variants_change_one_thing() -> None:
    base, *others = variants(3)
    arm = make_arm(base, SMOKE.ablations, 0)
    assert len({variant.file_name for variant in (base, *others)}) == len(others) + 1
    for variant in others:
        changed = make_arm(variant, SMOKE.ablations, 0)
        assert len(variant.model) + (changed.state_space_factor != arm.state_space_factor) == 1
        assert build(changed).config != build(arm).config or (
            changed.state_space_factor != arm.state_space_factor
        )


def test_looking_changes_no_training() -> None:
    """The same weights, however often a tagger is asked on the way."""
    seldom = arms(SMOKE.recall, 0)["SPADE"]
    often = dataclasses.replace(seldom, every_steps=1)
    (one, told), (other, _) = train_arm(seldom), train_arm(often)
    for weight, same in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)
    assert told["rates"][1] == pytest.approx(Training(1).state_space_factor * told["rates"][0])
    assert steps_to([(1, 0.2), (2, 0.98), (3, 0.9)], 0.98) == 2
    assert steps_to([(1, 0.2)], 0.98) is None


def test_a_window_gains_nothing_from_context_that_it_cannot_see() -> None:
    """The same bytes are scored at every context: else window-only losses would differ."""
    arm = language_arms(SMOKE)["window only, relative_bias"]
    model = build_language(arm).eval()
    windows = torch.randint(256, (2, 256), generator=torch.Generator().manual_seed(0))
    short, long = (held_out_loss(model, windows, length, 127) for length in (128, 256))
    reach = model.config.num_decoder_layers * model.config.local_radius_tokens
    torch.testing.assert_close(short[:, reach:], long[:, reach:])
    assert not torch.allclose(short[:, :reach], long[:, :reach])


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.integers(50, 200))
def test_held_out_documents_are_not_trained_on(lengths: list[int], longest: int) -> None:
    documents = [bytes([index]) * length for index, length in enumerate(lengths)]
    if max(lengths) < longest:
        with pytest.raises(ValueError, match="give --data with longer ones"):
            split_documents(documents, longest, 5)
        return
    text, windows = split_documents(documents, longest, 5)
    assert windows.shape[1] == longest
    assert 1 <= len(windows) <= 5
    held_out = set(windows.flatten().tolist())
    assert len(held_out) == len(windows), "a document each"
    kept = [index for index in range(len(lengths)) if index not in held_out]
    counts = torch.bincount(text, minlength=len(lengths)) if len(text) else torch.zeros(256)
    for index in held_out - {10}:
        assert counts[index] == 0
    assert all(counts[index] == lengths[index] for index in kept if index != 10)  # 10: newlines


def test_intervals_hold_the_mean_and_shrink_with_documents() -> None:
    generator = np.random.default_rng(0)
    few, many = generator.normal(size=10), generator.normal(size=1000)
    widths = []
    for values in (few, many):
        low, high = bootstrap_interval(values)
        assert low < values.mean() < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(2 * 1.96 / 1000**0.5, rel=0.15)
    assert widths[0] > 4 * widths[1]
