"""The benchmark runs from end to end at tiny sizes, and what it measures with is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the peers need the extra bench")
from benchmarks.common.far_header import NOISE, REGISTERS, VALUES, make_texts
from benchmarks.common.machine import PeakMemory
from benchmarks.model.cauchy import cauchy_kernel
from benchmarks.model.encoders import MODELS, Encoder, Sizes, useful_flops_per_token
from benchmarks.model.kernel import make_mixer
from benchmarks.model.machine import alternate

REPOSITORY = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_every_question_is_answered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.model", "--smoke", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["facts"]["torch"] == torch.__version__
    assert content["facts"]["threads"] == 2
    tables = {table["name"]: table["rows"] for table in content["tables"]}
    assert set(tables) == {
        *("speed", "speed_ratios", "memory", "memory_ratios", "kernel", "convolution", "share"),
        *("length", "recall", "recall_distance"),
    }
    assert all(tables.values()), "no table is empty"
    for dtype, run in (("fp32", "forward"), ("fp32", "fwd+bwd"), ("bf16", "fwd+bwd")):
        rows = [row for row in tables["speed"] if (row["dtype"], row["pass"]) == (dtype, run)]
        assert {*MODELS} <= {row["model"] for row in rows}
        assert all(row["tokens/s"] > 0 and row["GEMM %"] > 0 for row in rows)
    ratios = tables["speed_ratios"][0]
    speeds = {
        row["model"]: row["tokens/s"]
        for row in tables["speed"]
        if (row["dtype"], row["pass"]) == (ratios["dtype"], ratios["pass"])
    }
    assert ratios["/ T5 sdpa"] == pytest.approx(speeds["spade"] / speeds["T5 sdpa"])
    assert {row["model"] for row in tables["memory"]} == {
        *("spade", "spade, checkpointing", "LongT5 local")
    }
    assert all(row["error of float32"] < 1e-4 for row in tables["kernel"])
    assert {row["method"] for row in tables["kernel"]} == {"two-level", "Cauchy"}
    for name in ("speed.png", "memory.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(PNG)
    page = (tmp_path / "out" / "tables.md").read_text()
    for table in content["tables"]:
        assert table["title"] in page
        assert table["title"] in done.stdout


def test_an_unknown_question_is_one_line() -> None:
    from benchmarks.model.__main__ import parse

    with pytest.raises(SystemExit, match="2"):
        parse(["sped"])


def test_flags_replace_the_defaults_of_every_question() -> None:
    from benchmarks.model.__main__ import Plan, make_plan, parse

    plan = make_plan(parse(["--lengths", "64", "128", "--d-model", "32", "--repeats", "9"]))
    assert plan.sizes.d_model == 32
    assert plan.speed.lengths == plan.kernel.lengths == plan.length.lengths == (64, 128)
    assert plan.recall.lengths == Plan().recall.lengths, "trained at one length of its own"
    assert plan.share.repeats == 9


@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
def test_the_cauchy_sum_is_the_kernel(length: int) -> None:
    """Two derivations of the same numbers, in float64."""
    mixer = make_mixer(6, 8).double()
    expected = mixer.compute_kernel(length)
    found = cauchy_kernel(mixer, length)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_useful_operations_are_those_of_the_modules() -> None:
    """Products of the layers as torch counts them; attention over the exact window by hand."""
    from torch.utils.flop_counter import FlopCounterMode

    sizes = Sizes(d_model=32, num_heads=2, d_ff=64, radius=15, vocab_size=64, state_dim=8)
    length = 8  # shorter than a window: every key is needed
    encoder = Encoder("T5 sdpa", sizes, 2, "fp32")
    encoder.module.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        encoder.forward(torch.zeros(1, length, dtype=torch.long))
    useful = length * useful_flops_per_token("T5 sdpa", sizes, 2, length)
    assert counter.get_total_flops() == useful
    assert useful_flops_per_token("spade none", sizes, 2, length) * length == useful
    aggregate = useful_flops_per_token("spade", sizes, 2, length) - useful // length
    assert aggregate == 2 * 64 * 32


def test_functions_run_in_turn() -> None:
    seen: list[str] = []
    functions = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    durations = alternate(functions, 2, lambda: seen.append("-"))
    assert "".join(seen) == "ab-ab-ab"
    assert {name: len(taken) for name, taken in durations.items()} == {"a": 2, "b": 2}


def test_peak_memory_is_seen_even_if_it_is_given_back() -> None:
    with PeakMemory() as peak:
        torch.ones(16, 2**20).sum()  # 64 MiB
    assert 60 * 2**20 < peak.extra_bytes < 100 * 2**20
    with PeakMemory() as peak:
        pass
    assert peak.extra_bytes < 8 * 2**20


@pytest.mark.parametrize("kind", ["around", "behind"])
def test_recall_texts_say_what_they_ask(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = make_texts(6, 4096, generator, trained_length=1024, reach=30, kind=kind)
    ids, places = texts.ids, texts.places
    questions = ids.gather(1, places)
    first = NOISE + REGISTERS * VALUES
    assert bool(((questions >= first) & (questions < first + REGISTERS)).all())
    assert int((ids >= first).sum()) == places.numel(), "no question stands anywhere else"
    assert int(texts.distances.min()) > 30
    assert int(texts.distances.max()) <= (512 if kind == "around" else 4096 - 512)
    votes = ids - NOISE
    for row in range(6):
        for register, label in zip(questions[row] - first, texts.labels[row], strict=True):
            counts = [int((votes[row] == register * VALUES + v).sum()) for v in range(VALUES)]
            assert max(range(VALUES), key=counts.__getitem__) == label
