"""Evaluations of a real run: two ranks under ZeRO 3, where every forward pass is collective."""

from __future__ import annotations

from pathlib import Path

import pytest
from worker_processes import losses, read_lines, train

pytestmark = pytest.mark.slow


def test_evaluations_do_not_move_the_losses(run_settings, write_config, prose_data, tmp_path: Path):
    run_settings["model"] |= {"dropout": 0.1}
    run_settings["data"] |= {"heldout": {"kept": str(prose_data / "heldout")}}
    run_settings["train"] |= {"max_steps": 3}
    run_settings["deepspeed"] = {"zero_stage": 3}
    # Three micro-batches in all: in the second round one rank has none of its own.
    run_settings["evaluation"] = {
        "samples": 2,
        "objectives": {
            "short": {"kind": "prefix_lm", "longest_target_tokens": 8},
            "shorter": {"kind": "prefix_lm", "longest_target_tokens": 4},
        },
    }
    config = write_config(run_settings)
    train(config, "name=often", "evaluation.every_steps=1", processes=2)
    train(config, "name=seldom", "evaluation.every_steps=100", processes=2)

    often, seldom = tmp_path / "runs" / "often", tmp_path / "runs" / "seldom"
    assert losses(often) == losses(seldom)
    found = {
        run: {
            line["step"]: {key: line[key] for key in line if key.startswith("eval/")}
            for line in read_lines(run / "metrics.jsonl")
            if "eval/heldout/loss" in line
        }
        for run in (often, seldom)
    }
    assert list(found[often]) == [0, 1, 2, 3]
    assert list(found[seldom]) == [0, 3]
    assert {step: found[often][step] for step in (0, 3)} == found[seldom]
    for before, after in ((0, 1), (1, 2), (2, 3)):
        changed = found[often][before].items() ^ found[often][after].items()
        assert {"eval/heldout/loss", "eval/kept/shorter/text_loss"} <= {key for key, _ in changed}
