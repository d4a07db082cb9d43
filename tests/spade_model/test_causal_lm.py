"""The language model: what it may see, its loss, its texts, and that it learns.

Decoding with a cache is in `test_causal_decoding`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from causal_models import EVERY_VARIANT, SMALL, build, close, decode, tokens
from torch import nn

from spade_model import SpadeConfig, SpadeForCausalLM
from spade_model.activation_checkpointing import ActivationCheckpointing


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: threads only cost."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@EVERY_VARIANT
def test_no_token_sees_the_future(name: str) -> None:
    model, ids = build(name), tokens(1, 16)
    logits = model(ids).logits[0]
    for t in range(16):
        changed = ids.clone()
        changed[0, t] = 2 + (changed[0, t] + 5) % 30
        after = model(changed).logits[0]
        close(after[:t], logits[:t])
        assert not torch.allclose(after[t], logits[t], atol=1e-3)


@pytest.mark.parametrize(("name", "reach"), [("default", None), ("local", 10), ("full", None)])
def test_only_the_state_space_sees_beyond_the_windows(name: str, reach: int | None) -> None:
    model = build(name)
    embeddings = torch.randn(1, 40, SMALL.d_model, requires_grad=True)
    output = model.model.decoder(embeddings)[0, -1]
    (output @ torch.randn(SMALL.d_model)).backward()
    seen = embeddings.grad[0].abs().sum(-1) > 1e-7
    assert bool(seen.all()) if reach is None else seen.tolist() == [False] * 29 + [True] * 11


@EVERY_VARIANT
def test_packed_documents_do_not_meet(name: str) -> None:
    model, lengths = build(name), [7, 1, 13, 5]
    if model.config.attention == "chunk":
        lengths = [6, 12, 18]  # Chunks are counted from the start of the row.
    documents = [tokens(1, length) for length in lengths]
    packed = torch.cat(documents, dim=1)
    segments = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    together = model(packed, packed, segment_ids=segments)
    losses = []
    for document, part in zip(documents, together.logits.split(lengths, dim=1), strict=True):
        alone = model(document, document)
        close(part, alone.logits)
        losses.append(alone.loss * (document.shape[1] - 1))
    close(together.loss, sum(losses) / (sum(lengths) - len(lengths)))


def test_loss_is_that_of_the_next_token() -> None:
    model, ids = build(), tokens(2, 9)
    labels = ids.clone()
    labels[1, 4:] = -100
    output = model(ids, labels)
    expected = [
        -output.logits[row, t].log_softmax(-1)[ids[row, t + 1]]
        for row, length in enumerate([9, 4])
        for t in range(length - 1)
    ]
    close(output.loss, torch.stack(expected).mean())
    assert model(ids, torch.full_like(ids, -100)).loss == 0
    assert model(ids).loss is None
    assert model(tokens(1, 1), tokens(1, 1)).loss == 0


@EVERY_VARIANT
def test_backends_agree(name: str) -> None:
    model, ids = build(name), tokens(2, 33)
    valid = torch.arange(33)[None] >= torch.tensor([[0], [7]])
    expected = model(ids, attention_mask=valid).logits
    for backend in ("reference", "blocked", "tiled"):
        model.set_attention_backend(backend)
        close(model(ids, attention_mask=valid).logits[valid], expected[valid])
    with pytest.raises(ValueError, match="'fast'"):
        model.set_attention_backend("fast")


class TestGeneration:
    def talkative(self, name: str) -> SpadeForCausalLM:
        """A tied head of an untrained model repeats its input; another says something."""
        model = build(name)
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
        return model

    @EVERY_VARIANT
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_is_the_argmax_of_computing_everything_again(self, name: str, side: str) -> None:
        model, lengths = self.talkative(name), [11, 3, 8]
        prompts = [tokens(1, length) for length in lengths]
        ids, valid = tokens(3, 11), torch.zeros(3, 11, dtype=torch.bool)
        for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            place = slice(0, length) if side == "right" else slice(11 - length, 11)
            ids[row, place], valid[row, place] = prompt[0], True
        first = model.generate(ids, attention_mask=valid, max_new_tokens=14)
        # Choose an end that one row reaches before another.
        steps = {end: (first == end).int().argmax(dim=1) for end in first.unique().tolist()}
        end = next(end for end in steps if len({*steps[end].tolist()}) > 1)
        model.config = dataclasses.replace(model.config, eos_token_id=end, pad_token_id=1)
        generated = model.generate(ids, attention_mask=valid, max_new_tokens=14)
        assert len(set(generated.flatten().tolist())) > 5
        for row, prompt in enumerate(prompts):
            expected: list[int] = []
            while len(expected) < generated.shape[1]:
                if end in expected:
                    expected.append(1)
                    continue
                expected.append(int(model(prompt).logits[0, -1].argmax()))
                prompt = torch.cat([prompt, torch.tensor([[expected[-1]]])], dim=1)
            assert generated[row].tolist() == expected

    def test_lengths_and_empty_prompts(self) -> None:
        model, ids = self.talkative("default"), tokens(2, 5)
        assert model.generate(ids, max_new_tokens=1).shape == (2, 1)
        with pytest.raises(ValueError, match="max_new_tokens=0"):
            model.generate(ids, max_new_tokens=0)
        mask = torch.tensor([[True] * 5, [False] * 5])
        with pytest.raises(ValueError, match="without a token"):
            model.generate(ids, attention_mask=mask, max_new_tokens=3)


class TestTraining:
    def test_activation_checkpointing_computes_the_same(self) -> None:
        model, ids = build(dropout=0.1, shared_relative_bias=True).train(), tokens(2, 20)
        gradients = []
        for kind in ("none", "full"):
            model.set_activation_checkpointing(ActivationCheckpointing(kind))
            model.zero_grad()
            torch.manual_seed(5)
            model(ids, ids).loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    @EVERY_VARIANT
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_every_parameter_learns(self, name: str, precision: str) -> None:
        names = ("C", "D", "log_dt", "A", "B")
        model, ids = build(name, trainable_state_space=names, dropout=0.1).train(), tokens(2, 40)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(ids, ids).loss
        assert loss.dtype == torch.float32
        loss.backward()
        for parameter_name, parameter in model.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert bool(parameter.grad.isfinite().all()), parameter_name
            assert bool((parameter.grad != 0).any()), parameter_name

    @pytest.mark.parametrize("name", ["default", "stack", "chunk"])
    def test_learns_a_repeating_pattern(self, name: str) -> None:
        """Of which the token alone does not tell the next."""
        model = build(name).train()
        pattern = torch.tensor([5, 9, 5, 5, 7, 9, 5, 9, 9, 7])
        ids = pattern.repeat(4)[None].roll(3, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(120):
            loss = model(ids, ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.3
        continued = model.eval().generate(ids[:, :30], max_new_tokens=10)
        assert continued.tolist() == ids[:, 30:].tolist()

    @pytest.mark.parametrize("vocab_size", [500, 8192])
    def test_loss_starts_near_the_logarithm_of_the_vocabulary(self, vocab_size: int) -> None:
        torch.manual_seed(0)
        model = SpadeForCausalLM(
            SpadeConfig(vocab_size=vocab_size, d_model=128, num_heads=2, num_encoder_layers=0)
        )
        ids = torch.randint(0, vocab_size, (2, 64))
        with torch.no_grad():
            assert abs(float(model(ids, ids).loss) - math.log(vocab_size)) < 0.7


def test_construction_is_deterministic_and_ties_the_head() -> None:
    states = [build().state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    model = build()
    assert model.lm_head.weight is model.model.shared.weight
    assert sum("relative_attention_bias" in name for name in states[0]) == 2
    assert sum("relative_attention_bias" in n for n in build("published").state_dict()) == 1


def test_an_encoder_is_not_for_language_models() -> None:
    with pytest.raises(ValueError, match="num_encoder_layers=2"):
        SpadeForCausalLM(dataclasses.replace(SMALL, num_encoder_layers=2))


def test_float64_is_computed_in_float64() -> None:
    model, ids = build(), tokens(1, 30)
    single, double = model(ids, ids), model.double()(ids, ids)
    assert double.loss.dtype == double.logits.dtype == torch.float64
    assert abs(double.loss.item() - single.loss.item()) < 1e-5
    with torch.no_grad():
        cached, _ = decode(model, ids, None, [7, *[1] * 23])
    torch.testing.assert_close(cached, double.logits, rtol=0, atol=1e-12)
