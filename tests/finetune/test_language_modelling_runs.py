"""A language model trained from scratch: what is learned, left behind, and measured again."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from commands import spade
from transformers import AutoModelForCausalLM, AutoTokenizer


def chain(words: int, seed: int) -> str:
    """Text in which a word is known from the one before, and its frequency tells little."""
    chance = random.Random(seed)
    order = ["ban", "der", "lin", "mor", "sun", "ten", "bin", "don"]
    said, place = [], 0
    for _ in range(words):
        place = (place + 1) % len(order) if chance.random() < 0.9 else chance.randrange(len(order))
        said.append(order[place])
    return " ".join(said) + "\n"


@pytest.mark.slow
def test_a_run_learns_and_leaves_a_model_that_is_measured_alike(
    exported: Path, tmp_path: Path
) -> None:
    """By the recipe, by the command in one process, and in two: the same bits."""
    for name, words, seed in (("train", 6000, 0), ("valid", 400, 1), ("test", 1200, 2)):
        (tmp_path / f"{name}.txt").write_text(chain(words, seed))
    out = tmp_path / "run"
    said = spade(
        *("finetune", "lm", str(exported), "--from-scratch", "tiny", "--out", str(out)),
        *("--train", str(tmp_path / "train.txt"), "--validation", str(tmp_path / "valid.txt")),
        *("--test", str(tmp_path / "test.txt"), "--length-tokens", "32", "--epochs", "2"),
        *("--learning-rate", "3e-3", "--evaluate-every-steps", "40"),
    )
    assert "windows of 32 tokens, stride 16" in said
    results = json.loads((out / "results.json").read_text())
    found = results["seeds"][0]["details"]["test"]
    # Frequencies alone leave 3 bits of a word, 0.75 of each of its 4 bytes; the chain itself 0.2.
    assert found["bits_per_byte"] < 0.5
    curve = [line for line in results["seeds"][0]["history"] if "validation/loss" in line]
    for line in curve:
        assert line["validation/loss"] == pytest.approx(line["validation/nll_per_token"], abs=1e-12)
    assert min(line["validation/perplexity"] for line in curve) == pytest.approx(
        results["summary"]["validation"]["perplexity"]["mean"], rel=1e-6
    )
    lines = [json.loads(s) for s in (out / "seed-0" / "losses-test.jsonl").open()]
    assert sum(line["tokens"] for line in lines) == found["tokens"]
    assert sum(line["nats"] for line in lines) / found["tokens"] == pytest.approx(
        found["nll_per_token"]
    )
    folder = out / "seed-0" / "model"
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    prompt = tokenizer("ban der lin", return_tensors="pt", add_special_tokens=False)
    written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("ban der lin mor sun")

    command = ["evaluate", "lm", str(folder), str(tmp_path / "test.txt"), "--json"]
    alone = json.loads(spade(*command))["files"][str(tmp_path / "test.txt")]
    assert alone == found
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = subprocess.run(
        [sys.executable, *torchrun, "-m", "launch.cli", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert both.returncode == 0, both.stdout + both.stderr
    shared = both.stdout[both.stdout.index("{") :]
    assert json.loads(shared)["files"][str(tmp_path / "test.txt")] == alone
