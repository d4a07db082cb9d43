"""Samples that the model fills in at evaluations: what is shown is what stands there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.objectives.batch import Batch
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.ranks import Ranks
from pretrain.sample_groups import make_sample_group
from pretrain.telemetry.fills import Gap, fill_samples, fills_text, write_fills
from spade_model import SpadeConfig, SpadeForSeq2Seq

CPU = torch.device("cpu")
ALONE = make_sample_group(Ranks(0, 1, 0, "test"), 1)
ANSWER_TOKENS = 12


class Prompter(SpadeForSeq2Seq):
    """The real model with its answers given: what is tested is not what it has learned."""

    def __init__(self, tokenizer: DocumentTokenizer, answers: list[list[int]]) -> None:
        torch.manual_seed(0)
        super().__init__(
            SpadeConfig(
                vocab_size=tokenizer.vocab_size,
                d_model=16,
                num_heads=2,
                head_dim=8,
                d_ff=16,
                num_encoder_layers=1,
                num_decoder_layers=1,
                state_dim=8,
                local_radius_tokens=7,
                dropout=0.5,
            )
        )
        self.answers = answers

    def generate(self, *arguments: object, max_new_tokens: int, **options: object) -> torch.Tensor:
        options["max_new_tokens"] = max_new_tokens
        mine = super().generate(*arguments, **options)  # type: ignore[arg-type]
        assert mine.shape[0] == len(self.answers)
        width = max(map(len, self.answers))
        rows = [[*map(int, row), *[0] * (width - len(row))] for row in self.answers]
        return torch.tensor(rows)[:, :max_new_tokens]


@pytest.fixture(scope="module")
def tokenizer(prose_data: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(prose_data / "tokenizer")


def sample(
    tokenizer: DocumentTokenizer, words: list[str], truths: list[str]
) -> tuple[list[int], list[int]]:
    """A text with a sentinel between each two parts, and the target that fills them."""
    text, target = [], []
    for number, word in enumerate(words):
        text += tokenizer.encode(word).tolist()
        if number < len(truths):
            sentinel = tokenizer.sentinel_id(number)
            text.append(sentinel)
            target += [sentinel, *tokenizer.encode(truths[number]).tolist()]
    end = tokenizer.eos_token_id
    return [*text, end], [*target, end]


def batch_of(samples: list[tuple[list[int], list[int]]]) -> Batch:
    lengths = [[len(row) for row in rows] for rows in zip(*samples, strict=True)]
    padded = [
        np.array([[*row, *[0] * (max(map(len, rows)) - len(row))] for row in rows], np.uint16)
        for rows in zip(*samples, strict=True)
    ]
    return Batch(padded[0], padded[1], *(np.array(some, np.int32) for some in lengths))


def test_gaps_show_their_surroundings_the_truth_and_the_answer(
    tokenizer: DocumentTokenizer,
) -> None:
    first = sample(tokenizer, ["an", "on", "in"], ["ta", "to"])
    second = sample(tokenizer, ["is", "it"], ["ra"])
    one, two = tokenizer.sentinel_id(0), tokenizer.sentinel_id(1)
    answers = [
        # The second gap first, the first twice: what came first counts.
        [two, *tokenizer.encode("lo"), one, *tokenizer.encode("ta"), one, tokenizer.eos_token_id],
        [tokenizer.eos_token_id, one, *tokenizer.encode("no")],
    ]
    model = Prompter(tokenizer, answers).train()
    state = torch.get_rng_state()
    found = fill_samples(model, batch_of([first, second]), tokenizer, CPU, ALONE, answer_tokens=60)
    assert torch.equal(torch.get_rng_state(), state), "no random number is drawn"
    assert model.training
    assert model.model.encoder.training
    assert found == [
        [Gap("an", "ta", "ta", "on"), Gap("on", "to", "lo", "in")],
        [Gap("is", "ra", "", "it")],
    ]


def test_only_as_much_is_shown_as_the_answer_could_reach(tokenizer: DocumentTokenizer) -> None:
    long = "the quick brown fox jumps over the lazy dog again and again"
    row = sample(tokenizer, ["an", "on", "in"], [long, "to"])
    model = Prompter(tokenizer, [[tokenizer.eos_token_id]])
    ((gap,),) = fill_samples(
        model, batch_of([row]), tokenizer, CPU, ALONE, answer_tokens=ANSWER_TOKENS, context_tokens=1
    )
    assert gap.truth == tokenizer.decode(tokenizer.encode(long)[: ANSWER_TOKENS - 1])
    assert long.startswith(gap.truth)


def test_a_target_without_sentinels_is_one_gap(tokenizer: DocumentTokenizer) -> None:
    text = [*tokenizer.encode("an on"), tokenizer.eos_token_id]
    target = [*tokenizer.encode("it is"), tokenizer.eos_token_id]
    model = Prompter(tokenizer, [tokenizer.encode("is it").tolist()])
    (gaps,) = fill_samples(model, batch_of([(text, target)]), tokenizer, CPU, ALONE)
    assert gaps == [Gap("an on", "it is", "is it", "")]


def test_texts_are_shown_as_they_are_and_kept_once_a_step(tmp_path: Path) -> None:
    gaps = [Gap("a\n```\n", "<b>\x1b[2J", "", "*c*\u2028")]
    shown = fills_text([gaps, gaps])
    assert all(
        line.startswith(("    ", "#### sample ")) or not line for line in shown.splitlines()
    ), "Markdown shows indented lines as they are"
    assert "\x1b" not in shown
    assert "truth      <b> [2J" in shown
    for step in (3, 6, 9, 6):  # killed after 9, resumed from 3
        write_fills(tmp_path, step, [gaps])
    lines = (tmp_path / "fills.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 6]
    (kept,) = json.loads(lines[-1])["samples"]
    assert Gap(**kept[0]) == gaps[0]
