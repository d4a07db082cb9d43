"""The benchmark of context parallelism runs from end to end, and its parts do what they say."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common.far_header import NOISE, REGISTERS, VALUES
from benchmarks.context.__main__ import QUESTIONS, make_options, parse
from benchmarks.context.options import SMOKE, WIDE_MODEL, Options, Stage
from benchmarks.context.retrieval import StretchedTagger, answers_of, draw_texts
from benchmarks.context.traffic import formulas, ring_bytes, ulysses_bytes
from spade_model.config import SpadeConfig
from spade_model.context_parallel.checks import cut_lengths
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart

REPOSITORY = Path(__file__).resolve().parents[2]


def run(out: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "benchmarks.context", "--smoke", "--out", str(out), *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((out / "results.json").read_text())
    return {table["name"]: table["rows"] for table in content["tables"]}


@pytest.mark.slow
def test_every_question_is_answered(tmp_path: Path) -> None:
    tables = run(tmp_path / "two")
    assert set(tables) == {
        *("traffic", "traffic_counted", "training", "length", "retrieval", "retrieval_training")
    }
    counted = tables["traffic_counted"]
    assert {row["tokens"] for row in counted} == set(SMOKE.counted_tokens)
    assert all(row["as the formulas say"] for row in counted)
    assert len({row["all of it"] for row in counted}) == 1, "nothing grows with the length"
    alone, shared = tables["training"]
    assert (alone["processes"], shared["processes"]) == (1, 2)
    assert shared["difference of losses"] < 1e-5
    assert all(row["equal on all ranks"] and row["peak MiB of each"] > 0 for row in (alone, shared))
    assert [row["tokens"] for row in tables["length"]] == list(SMOKE.lengths)
    assert all(row["us/token (CPU)"] > 0 for row in tables["length"])
    for row in tables["retrieval"]:
        assert row["nearest evidence, tokens"] > row["tokens"] / 2
    assert len(tables["retrieval_training"]) == 2 * len(SMOKE.stages)

    # Cutting the texts, and training the networks beside each other, changes no answer.
    uncut = run(tmp_path / "one", "retrieval", "--processes", "1")["retrieval"]
    for row, other in zip(tables["retrieval"], uncut, strict=True):
        assert row | {"s/text": 0} == other | {"s/text": 0}


def test_the_command_line_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["speling"])
    assert "unknown question 'speling'" in capsys.readouterr().err
    given_options = ["length", "--lengths", "64", "128", "--texts", "5", "--training-ranks", "1"]
    options = make_options(parse(given_options))
    assert (options.lengths, options.texts, options.training_ranks) == ((64, 128), 5, (1,))
    assert options.stages == Options().stages
    assert set(parse([*QUESTIONS]).questions) == set(QUESTIONS)
    options = make_options(parse(["--stages", "64:2:3", "128:1:1"]))
    assert options.stages == (Stage(64, 2, 3), Stage(128, 1, 1))
    for wrong in ("64:2", "66:1:1", "64:0:1", "64:1:x"):
        with pytest.raises(SystemExit):
            parse(["retrieval", "--stages", wrong])


@given(st.integers(1, 16), st.integers(1, 64), st.integers(1, 8), st.sampled_from((2, 4)))
def test_bytes_of_other_schemes_are_those_of_the_pieces_that_move(
    ranks: int, part_tokens: int, heads_of_a_rank: int, activation_bytes: int
) -> None:
    """Piece by piece: by all-to-all a rank sends each other one the heads that are its own."""
    width = ranks * heads_of_a_rank
    given_sizes = (ranks * part_tokens, ranks, width, activation_bytes)
    to_each = part_tokens * heads_of_a_rank * activation_bytes
    all_to_alls = sum(to_each for _ in "qkvo" for other in range(ranks) if other)
    assert ulysses_bytes(*given_sizes) == all_to_alls
    handed_on = sum(part_tokens * width * activation_bytes for _ in "kv" for _ in range(1, ranks))
    assert ring_bytes(*given_sizes) == handed_on


def test_ours_does_not_grow_with_the_length_and_theirs_do() -> None:
    config = SpadeConfig(**WIDE_MODEL)
    ours = [
        formulas(config, cut_lengths(tokens, 4), 2, target_tokens=8, activation_bytes=2)
        for tokens in (16_384, 1_048_576)
    ]
    assert ours[0] == ours[1]
    assert ours[0]["attention"].forward_bytes == 4 * 127 * 512 * 2
    assert ours[0]["state_space"].forward_bytes == 3 * 512 * 64 * 4
    for theirs in (ulysses_bytes, ring_bytes):
        assert theirs(1_048_576, 4, 512, 2) == 64 * theirs(16_384, 4, 512, 2)


@given(st.integers(64, 300), st.integers(0, 2**31))
def test_evidence_is_half_a_text_away(quarter: int, seed: int) -> None:
    length = 4 * quarter
    texts = draw_texts(2, length, torch.Generator().manual_seed(seed))
    first_question = NOISE + REGISTERS * VALUES
    votes = (texts.ids >= NOISE) & (texts.ids < first_question)
    assert not votes[:, quarter:].any(), "all evidence is in the first quarter"
    assert int(texts.places.min()) >= 3 * quarter
    assert int(texts.places.max()) < length
    assert torch.equal(texts.places - (quarter - 1), texts.distances)
    assert int(texts.distances.min()) > length // 2
    assert (texts.ids.gather(1, texts.places) >= first_question).all()


def test_a_stretched_state_space_answers_a_stretched_text() -> None:
    """Responses to a constant, at four times the length: the same at the same share of it."""
    torch.manual_seed(0)
    tagger = StretchedTagger(SMOKE, "s4")
    (mixer,) = tagger.mixers
    before = mixer.get_parameter("log_dt").detach().clone()
    length = tagger.length_tokens
    with torch.no_grad():
        # Of the past alone; the fastest features are too coarse at the shorter length.
        slow = before < math.log(2e-2)
        short = mixer.compute_kernel(length)[..., slow, :].double().cumsum(dim=-1)
        tagger.stretch(4 * length)
        long = mixer.compute_kernel(4 * length)[..., slow, :].double().cumsum(dim=-1)
    middle = slice(length // 4, None)
    difference = (long[..., 3::4] - short)[..., middle].norm() / short[..., middle].norm()
    assert float(difference) < 0.05
    tagger.stretch(length)
    torch.testing.assert_close(mixer.get_parameter("log_dt"), before)


@pytest.mark.parametrize("state_space", ["s4", "none"])
def test_answers_are_those_of_the_network(state_space: str) -> None:
    torch.manual_seed(0)
    network = StretchedTagger(SMOKE, state_space).network.eval()
    texts = draw_texts(3, 256, torch.Generator().manual_seed(1))
    found = answers_of(network, texts, ContextPart.of(ContextGroup.alone(), 256))
    with torch.no_grad():
        assert torch.equal(found, network(texts).argmax(dim=-1))
