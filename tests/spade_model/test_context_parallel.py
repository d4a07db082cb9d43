"""Sequences on several ranks: real processes, compared with one that has the whole."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import context_ranks
import pytest
import torch
from context_ranks import CASES, LENGTH, TINY, Case
from torch import Tensor

from spade_model.context_parallel.cost import (
    attention_traffic,
    cross_attention_traffic,
    state_space_traffic,
)
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart

SIZES = (2, 3, 4)
TOLERANCE = {"torch.float64": 1e-11, "torch.float32": 1e-5}
EVERY_SIZE = pytest.mark.parametrize("size", SIZES)
EVERY_CASE = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("context")


def start(folder: Path, *words: str) -> None:
    """Run `context_ranks` in a process of its own."""
    subprocess.run(
        [sys.executable, context_ranks.__file__, folder, *words],
        check=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@functools.cache
def run_of(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """What each rank of each group found, in one start of their processes."""
    start(folder, *map(str, SIZES))
    return {
        size: [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)] for size in SIZES
    }


@pytest.fixture
def ranks(size: int, folder: Path) -> list[dict[str, Any]]:
    return run_of(folder)[size]


@functools.cache
def whole(name: str) -> dict[str, Any]:
    """What one process finds that has the whole sequence."""
    return context_ranks.measure(CASES[name], None)


@functools.cache
def trained(name: str) -> dict[str, Any]:
    """The same process after training steps."""
    return context_ranks.train(CASES[name], None)


def close(actual: Tensor, expected: Tensor, precision: str, what: str) -> None:
    """Within the tolerance of a precision, measured by the largest number of a tensor."""
    scale = float(expected.abs().max())
    error = float((actual - expected).abs().max())
    assert error <= TOLERANCE[precision] * scale, f"{what}: {error} of {scale}"


def check_equal(case: Case, parts: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    """Outputs and gradients of all ranks are those of the whole."""
    valid = context_ranks.batch(case)["attention_mask"]
    valid = torch.ones(3, LENGTH, dtype=torch.bool) if valid is None else valid
    for precision in TOLERANCE:
        found = [part[precision] for part in parts]
        encoder = torch.cat([x["encoder"] for x in found], dim=1)
        close(encoder[valid], expected[precision]["encoder"][valid], precision, "encoder")
        close(found[0]["logits"], expected[precision]["logits"], precision, "logits")
        for name, gradient in expected[precision]["gradients"].items():
            close(found[0]["gradients"][name], gradient, precision, f"gradient of {name}")
        for other in found[1:]:
            assert torch.equal(other["loss"], found[0]["loss"])
            assert torch.equal(other["logits"], found[0]["logits"])
            for name, gradient in found[0]["gradients"].items():
                assert torch.equal(other["gradients"][name], gradient)


def check_training(steps: dict[str, Any], expected: dict[str, Any]) -> None:
    """Ten steps of AdamW end with the weights of the whole, and then generate the same."""
    losses = torch.tensor(steps["losses"])
    torch.testing.assert_close(losses, torch.tensor(expected["losses"]), rtol=1e-5, atol=0)
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(steps["weights"][name], weight, rtol=0, atol=1e-5)
    assert torch.equal(steps["generated"], expected["generated"])


@EVERY_CASE
def test_a_group_of_one_computes_the_whole(name: str) -> None:
    case, part = CASES[name], ContextPart(ContextGroup.alone(), (LENGTH,))
    check_equal(case, [context_ranks.measure(case, part)], whole(name))
    if case.steps:
        check_training(context_ranks.train(case, part), trained(name))


@pytest.mark.slow
@EVERY_CASE
@EVERY_SIZE
def test_parts_compute_what_the_whole_does(
    name: str, size: int, ranks: list[dict[str, Any]]
) -> None:
    parts = [rank["cases"][name] for rank in ranks]
    check_equal(CASES[name], parts, whole(name))
    if CASES[name].steps:
        expected = trained(name)
        for part in parts:
            check_training(part["steps"], expected)


def check_causal(kind: str, parts: list[dict[str, Any]]) -> None:
    """Logits, the loss of every part, and gradients are those of the whole."""
    expected = context_ranks.causal(kind, None)
    valid = context_ranks.batch(CASES["s4 packed, all trained"])["attention_mask"]
    logits = torch.cat([x["logits"] for x in parts], dim=1)
    close(logits[valid], expected["logits"][valid], "torch.float64", "logits")
    close(parts[0]["loss"], expected["loss"], "torch.float64", "loss")
    assert all(torch.equal(x["loss"], parts[0]["loss"]) for x in parts)
    for name, gradient in expected["gradients"].items():
        close(parts[0]["gradients"][name], gradient, "torch.float64", f"gradient of {name}")


@pytest.mark.parametrize("kind", context_ranks.CAUSAL)
def test_a_group_of_one_has_the_loss_of_a_language_model(kind: str) -> None:
    part = ContextPart(ContextGroup.alone(), (LENGTH,))
    check_causal(kind, [context_ranks.causal(kind, part)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", context_ranks.CAUSAL)
@EVERY_SIZE
def test_parts_of_a_language_model_compute_what_the_whole_does(
    kind: str, size: int, ranks: list[dict[str, Any]]
) -> None:
    """Each part predicts what the next begins with; the last part is one token and predicts none.

    The first rank receives no state and the last one sends none.
    """
    check_causal(kind, [rank["causal"][kind] for rank in ranks])


@pytest.mark.slow
@EVERY_SIZE
def test_an_encoder_in_parts_writes_what_the_whole_does(
    size: int, ranks: list[dict[str, Any]]
) -> None:
    """By greedy search, by beams, and by sampling from the same seed."""
    expected = context_ranks.written(None)
    assert len({repr(ids.tolist()) for ids in expected.values()}) == len(expected)
    for rank in ranks:
        for name, ids in expected.items():
            assert torch.equal(rank["written"][name], ids), name


@pytest.mark.slow
def test_two_starts_of_a_job_give_the_same_bits(folder: Path, tmp_path: Path) -> None:
    start(tmp_path, "again")
    again = [torch.load(tmp_path / f"2-{rank}.pt")["bits"] for rank in range(2)]
    assert {rank["bits"] for rank in run_of(folder)[2]} == set(again)
    assert again[0] == again[1]


@pytest.mark.slow
@EVERY_SIZE
def test_dropout_repeats_and_is_shared_by_decoders(size: int, ranks: list[dict[str, Any]]) -> None:
    """The same run again, and with either kind of activation checkpointing, is the same in bits."""
    for rank in ranks:
        first, *others = rank["dropout"]
        for other in others:
            assert torch.equal(other["loss"], first["loss"])
            assert torch.equal(other["encoder"], first["encoder"])
            for name, gradient in first["gradients"].items():
                assert torch.equal(other["gradients"][name], gradient), name
        # The decoders drop alike, and torch's generators end alike.
        assert torch.equal(first["loss"], ranks[0]["dropout"][0]["loss"])
        assert torch.equal(first["state"], ranks[0]["dropout"][0]["state"])


@pytest.mark.slow
@EVERY_SIZE
def test_sent_bytes_are_those_of_the_formulas(size: int, ranks: list[dict[str, Any]]) -> None:
    config, given = CASES["s4"].config, {"batch_size": 2}
    across = cross_attention_traffic(config, size, **given, target_tokens=6, activation_bytes=4)
    for number, rank in enumerate(ranks):
        by_length = {}
        for lengths, checkpointing, transfers in rank["traffic"]:
            formulas = {
                "attention": attention_traffic(
                    config, lengths, number, **given, activation_bytes=4
                ),
                "state_space": state_space_traffic(config, size, number, **given),
                "cross_attention": across,
            }
            repeats = 2 if checkpointing == "full" else 1
            for kind, formula in formulas.items():
                for backward, expected, times in (
                    (False, formula.forward_bytes, 2 * repeats),
                    (True, formula.backward_bytes, 2),
                ):
                    sent = [x[2] for x in transfers if (x[0], x[1]) == (kind, backward)]
                    assert sent == [expected] * times, (kind, lengths)
            if checkpointing == "none":
                by_length[lengths] = sum(x[2] for x in transfers)
        _, short, long = by_length.values()
        assert short == long


@pytest.mark.slow
@EVERY_SIZE
def test_ranks_that_were_not_given_the_same_are_told_so(
    size: int, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        told = rank["disagreements"]
        assert set(told) == {"rows", "cut", "tokens", "mask", "generator"}
        assert all("the ranks of a context group differ" in text for text in told.values())
        assert "lengths_tokens" in told["cut"]
        assert "seed" in told["generator"]


def test_what_a_window_sends_is_two_windows() -> None:
    """The short form of the formula, for parts that are longer than the window."""
    found = attention_traffic(TINY, (50, 60, 70), 1, batch_size=3, activation_bytes=2)
    width, radius = TINY.inner_dim, TINY.local_radius_tokens
    assert found.forward_bytes == found.backward_bytes == 3 * 4 * radius * width * 2
