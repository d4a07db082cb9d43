"""What exporting is made of: sizes, curves, words, and generation by its definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.objectives import OBJECTIVES
from data_pipeline.objectives.batch import SpecialTokens, Windows
from pretrain.exporting.curve import curve_rows, draw_curve, read_curve
from pretrain.exporting.errors import ExportError
from pretrain.exporting.input_format import input_format
from pretrain.exporting.reference import beam_search, make_reference
from pretrain.exporting.weights import check_type, parse_size
from spade_model import SpadeConfig, SpadeForSeq2Seq

UNITS = {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
UNITS |= {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


@given(count=st.integers(1, 10**15 - 1), unit=st.sampled_from(sorted(UNITS)))
def test_sizes_are_read_exactly(count: int, unit: str) -> None:
    assert parse_size(f"{count}{unit}") == count * UNITS[unit]


@pytest.mark.parametrize(
    "text",
    ["", "5", "GB", "0GB", "-1GB", "5 GB", " 5GB", "5GB\n", "1.5GB", "5gb", "5G", "5PB", "٥GB"],
)
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ExportError, match=r"max_shard_size .* such as 500MB") as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)


@given(text=st.text(max_size=12))
def test_only_three_types(text: str) -> None:
    if text in ("float32", "bfloat16", "float16"):
        assert check_type(text) == text
    else:
        with pytest.raises(ExportError, match="use float32, bfloat16 or float16"):
            check_type(text)


def write_metrics(path: Path, steps: int, every: int) -> None:
    lines: list[Any] = [{"step": 0, "eval/heldout/loss": 9.0}]
    for step in range(1, steps + 1):
        lines.append({"step": step, "loss": 1000.0 / step, "tokens_seen": 7 * step})
        if step % every == 0:
            lines.append({"step": step, "eval/heldout/loss": float(step), "eval/x/loss": 1.0})
    lines += [{"event": "resume"}, [], {"step": 3, "loss": math.nan}, {"step": "4", "loss": 1.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + '{"step": 5, "lo', encoding="utf-8")


@pytest.mark.parametrize(("steps", "last"), [(1, 1), (7, 5), (9000, 9000), (9001, 8999)])
def test_a_curve_is_thinned_without_losing_its_sum(tmp_path: Path, steps: int, last: int) -> None:
    write_metrics(tmp_path / "metrics.jsonl", steps, every=5)
    curve = read_curve(tmp_path / "metrics.jsonl", last)
    assert 0 < len(curve.train) <= 4096
    assert curve.train[-1].step == last
    assert [point.step for point in curve.heldout] == list(range(0, last + 1, 5))
    wanted = {"step": last, "eval/heldout/loss": last, "eval/x/loss": 1}
    assert curve.evaluation == (wanted if last % 5 == 0 else None)
    if steps > 8192:  # four steps a point
        losses = [1000.0 / step for step in range(1, last + 1)]
        assert curve.train[0].loss == pytest.approx(np.mean(losses[: curve.train[0].step]))
    rows = curve_rows(curve)
    assert rows[-1]["step"] == last
    assert rows[-1]["tokens_seen"] == 7 * last
    assert len(rows) <= 8
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    draw_curve(curve, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size < 100_000


def test_no_metrics_no_curve(tmp_path: Path) -> None:
    curve = read_curve(tmp_path / "none.jsonl", 5)
    assert (curve.train, curve.evaluation, curve_rows(curve)) == ([], None, [])
    draw_curve(curve, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def provenance_with(kind: str, sentinels: int) -> dict[str, Any]:
    return {
        "tokenizer": {
            "vocab_size": 200,
            "piece_count": 200 - sentinels,
            "sentinel_count": sentinels,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "unk_token_id": 2,
        },
        "objective": {"kind": kind, "input_length_tokens": 64, "target_length_tokens": 40},
        "model": {"max_target_length_tokens": 40},
    }


@pytest.mark.parametrize("kind", ["span_corruption", "ul2", "prefix_lm", "gap_sentences"])
def test_the_described_format_is_what_the_objective_makes(kind: str) -> None:
    """Sentinels and mode tokens of the card are those of real batches."""
    sentinels = 40
    ends = np.zeros(200, dtype=np.bool_)
    ends[5] = True
    vocab = SpecialTokens(200, sentinels, 1, 0, ends)
    objective = OBJECTIVES[kind](input_length_tokens=64)
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 30, (24, objective.window_tokens)).astype(np.uint16)
    windows = Windows(tokens, np.full(24, objective.window_tokens))
    batch = objective.make(windows, generator.integers(0, 2**63, 24).astype(np.uint64), vocab)
    card = input_format(provenance_with(kind, sentinels))
    used = {199 - int(x) for x in np.unique(batch.input_ids) if x >= 200 - sentinels}
    asked = {199 - int(x) for x in np.unique(batch.labels) if x >= 200 - sentinels}
    first = {199 - int(row[0]) for row in batch.input_ids}
    if kind == "prefix_lm":
        assert not used | asked
        assert "no sentinels" in card
    elif kind == "gap_sentences":
        assert (used, asked) == ({0}, set())
        assert "the same for all" in card
    else:
        assert {0, 1} <= used & asked
        assert "`<extra_id_1>`" in card
    if kind == "ul2":
        assert first == {37, 38, 39}
        assert all(f"`<extra_id_{number}>` (" in card for number in first)
        # The lowest sentinel stands before regular denoising, which masks least.
        shares = {
            number: np.mean([np.sum(row > 1) for row in batch.labels[batch.input_ids[:, 0] == x]])
            for number in first
            for x in [199 - number]
        }
        assert "`<extra_id_39>` (R:" in card
        assert shares[39] < shares[37]


@pytest.fixture(scope="module")
def plain() -> SpadeForSeq2Seq:
    torch.manual_seed(3)
    config = SpadeConfig(
        vocab_size=60,
        d_model=32,
        num_heads=2,
        head_dim=16,
        d_ff=48,
        num_encoder_layers=1,
        num_decoder_layers=1,
        state_dim=8,
        local_radius_tokens=7,
        max_target_length_tokens=16,
    )
    model = SpadeForSeq2Seq(config)
    with torch.no_grad():
        model.model.shared.weight.mul_(6)  # an untrained model is undecided
    return model.eval()


def test_one_beam_is_greedy_decoding(plain: SpadeForSeq2Seq) -> None:
    reference = make_reference(plain, 32)
    ids, valid = reference["input_ids"], reference["attention_mask"].bool()
    found = reference["greedy"]
    assert found.shape[1] > 3
    greedy = plain.generate(ids, attention_mask=valid, max_new_tokens=found.shape[1])
    for row, other in zip(found.tolist(), greedy.tolist(), strict=True):
        until = other.index(1) if 1 in other else len(row)  # ours never ends
        assert row[:until] == other[:until]


def test_beams_that_hold_all_prefixes_find_the_best_of_all(plain: SpadeForSeq2Seq) -> None:
    """With as many beams as tokens, two steps are an exhaustive search."""
    ids = make_reference(plain, 32)["input_ids"][:1]
    valid = torch.ones_like(ids, dtype=torch.bool)
    hidden = plain.encode(ids, valid)
    start = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        one = plain.decode(start, hidden, attention_mask=valid)[0, -1].log_softmax(-1)
        every = torch.arange(60)[:, None]
        prefixes = torch.cat([start.expand(60, 1), every], 1)
        two = plain.decode(
            prefixes, hidden.expand(60, -1, -1), attention_mask=valid.expand(60, -1)
        )[:, -1].log_softmax(-1)
    totals = one[:, None] + two
    totals[1, :] = totals[:, 1] = -torch.inf  # no end of sequence
    best = divmod(int(totals.argmax()), 60)
    found = beam_search(plain, ids, valid, beams=20, steps=2)
    assert tuple(found[0].tolist()) in (best, best[:1])


def test_nothing_is_decided_where_all_is_equal(plain: SpadeForSeq2Seq) -> None:
    torch.manual_seed(0)
    flat = SpadeForSeq2Seq(plain.config).eval()
    with torch.no_grad():
        flat.model.shared.weight.zero_()
    assert beam_search(flat, torch.full((2, 9), 7), torch.ones(2, 9).bool(), beams=1, steps=5).shape
    reference = make_reference(flat, 32)
    assert reference["greedy"].shape == reference["beams"].shape == (2, 0)
