"""The assembled network: padding, causality, cache, loss, training behaviour."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seq2seq_models import EVERY_KIND, SMALL, build, close, tokens
from torch import Tensor, nn

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.attention.cache import DecoderCache
from spade_model.attention.decoder import causal_mask
from spade_model.config import SpadeConfig
from spade_model.seq2seq import SpadeForSeq2Seq, cross_entropy


@EVERY_KIND
def test_padding_changes_nothing(config: SpadeConfig) -> None:
    """Other pad ids, more padding, padding on the left or in between: the same valid outputs."""
    model = build(config)
    source, target = tokens(1, 23), tokens(1, 7)
    whole = model(source, target)
    variants = {
        "right": torch.arange(30) < 23,
        "more": torch.arange(61) < 23,
        "left": torch.arange(30) >= 7,
        "both": (torch.arange(40) >= 4) & (torch.arange(40) < 27),
    }
    for valid in variants.values():
        for filling in (tokens(1, len(valid)), torch.zeros(1, len(valid), dtype=torch.long)):
            filling[0, valid] = source[0]
            padded = model(filling, target, attention_mask=valid[None])
            close(padded.encoder_hidden_states[0, valid], whole.encoder_hidden_states[0])
            close(padded.logits, whole.logits)
            close(padded.loss, whole.loss)
    first, second = tokens(1, 30), tokens(1, 30)
    holes = (torch.arange(30) % 5 != 2)[None]
    second[holes] = first[holes]
    outputs = [model(ids, target, attention_mask=holes) for ids in (first, second)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)


@EVERY_KIND
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pad_ids_change_no_bit(config: SpadeConfig, precision: str) -> None:
    """On the right, on the left and in between, in the loss and in every gradient."""
    model = build(config)
    target, place = tokens(3, 7), torch.arange(40)
    masks = torch.stack([place < 29, place >= 11, place % 5 != 2])
    results = []
    source = tokens(3, 40)
    for filling in (tokens(3, 40), torch.zeros_like(source)):
        ids = torch.where(masks, source, filling)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(ids, target, attention_mask=masks)
        output.loss.backward()
        rest = [p.grad.clone() for name, p in model.named_parameters() if "shared" not in name]
        results.append([output.logits, output.encoder_hidden_states[masks], output.loss, *rest])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@EVERY_KIND
def test_rows_of_a_batch_do_not_meet(config: SpadeConfig) -> None:
    model = build(config)
    source, target = tokens(3, 20), tokens(3, 6)
    valid = torch.arange(20)[None] < torch.tensor([20, 11, 3])[:, None]
    together = model(source, target, attention_mask=valid)
    for row in range(3):
        one = slice(row, row + 1)
        close(
            model(source[one], target[one], attention_mask=valid[one]).logits, together.logits[one]
        )


def test_a_row_without_valid_tokens_stays_finite() -> None:
    model = build(SMALL).train()
    valid = torch.tensor([[True] * 9, [False] * 9])
    output = model(tokens(2, 9), tokens(2, 4), attention_mask=valid)
    output.loss.backward()
    assert bool(output.logits.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@EVERY_KIND
@pytest.mark.parametrize("start_token", [0, 1, 7])
def test_decoder_sees_no_future(config: SpadeConfig, start_token: int) -> None:
    """Also where the start token is the padding token."""
    config = dataclasses.replace(config, pad_token_id=0, decoder_start_token_id=start_token)
    model = build(config)
    source, labels = tokens(1, 12), tokens(1, 10)
    labels[0, 3] = 0
    logits = model(source, labels).logits
    assert bool(logits.isfinite().all())
    for t in range(9):
        changed = labels.clone()
        changed[0, t] = 1 + (changed[0, t] + 5) % 40
        after = model(source, changed).logits
        close(after[0, : t + 1], logits[0, : t + 1])
        assert not torch.allclose(after[0, t + 1], logits[0, t + 1])


def test_decoder_padding() -> None:
    """Left padding of the decoder shifts positions with the tokens and shows to no one."""
    model = build(SMALL)
    source, inputs = tokens(1, 12), tokens(1, 6)
    encoded = model.encode(source)
    plain = model.decode(inputs, encoded)
    valid = (torch.arange(9) >= 3)[None]
    for filling in (tokens(1, 3), torch.zeros(1, 3, dtype=torch.long)):
        padded = torch.cat([filling, inputs], dim=1)
        logits = model.decode(padded, encoded, decoder_attention_mask=valid)
        assert bool(logits.isfinite().all())
        close(logits[:, 3:], plain)


@EVERY_KIND
def test_cached_decoding_is_uncached_decoding(config: SpadeConfig) -> None:
    model = build(config)
    source, inputs = tokens(2, 17), tokens(2, 9)
    encoder_valid = torch.arange(17)[None] < torch.tensor([17, 8])[:, None]
    decoder_valid = torch.arange(9)[None] >= torch.tensor([0, 2])[:, None]
    encoded = model.encode(source, encoder_valid)
    for valid in (None, decoder_valid):
        whole = model.decode(
            inputs, encoded, attention_mask=encoder_valid, decoder_attention_mask=valid
        )
        for cuts in ([1] * 9, [4, 1, 4], [9]):
            cache, parts, done = DecoderCache(), [], 0
            for length in cuts:
                seen = None if valid is None else valid[:, : done + length]
                part = model.decode(
                    inputs[:, done : done + length],
                    encoded,
                    attention_mask=encoder_valid,
                    decoder_attention_mask=seen,
                    cache=cache,
                )
                parts.append(part)
                done += length
            close(torch.cat(parts, dim=1), whole)
            assert cache.self_attention.length_tokens == 9
            assert cache.cross_attention.length_tokens == 17


def test_generation_is_greedy_and_ends_rows() -> None:
    model = build(SMALL)
    # An untrained tied head repeats the start token; another head says something.
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    source = tokens(4, 15)
    first = model.generate(source, max_new_tokens=12)
    # Choose an end that one row reaches before another.
    candidates = first.unique().tolist()
    steps = {end: (first == end).int().argmax(dim=1) for end in candidates}
    ends = [end for end in candidates if len({*steps[end].tolist()}) > 1]
    model.config = dataclasses.replace(SMALL, eos_token_id=ends[0], pad_token_id=1)
    generated = model.generate(source, max_new_tokens=12)
    for row in range(4):
        inputs = torch.tensor([[SMALL.decoder_start_token_id]])
        expected: list[int] = []
        while len(expected) < generated.shape[1]:
            if model.config.eos_token_id in expected:
                expected.append(1)
                continue
            encoded = model.encode(source[row : row + 1])
            expected.append(int(model.decode(inputs, encoded)[0, -1].argmax()))
            inputs = torch.cat([inputs, torch.tensor([[expected[-1]]])], dim=1)
        assert generated[row].tolist() == expected
    with pytest.raises(ValueError, match="max_new_tokens=41"):
        model.generate(source, max_new_tokens=41)


@given(past=st.integers(0, 4), length=st.integers(1, 5), bits=st.integers(0, 511))
def test_causal_mask_shows_the_valid_past_and_itself(past: int, length: int, bits: int) -> None:
    valid = torch.tensor([[bool(bits >> i & 1) for i in range(past + length)]])
    mask = causal_mask(valid, length, past, valid.device)
    for query in range(length):
        for key in range(past + length):
            expected = key == past + query or (key < past + query and bool(valid[0, key]))
            assert bool(mask[0, 0, query, key]) == expected


def test_too_long_targets_and_wrong_masks_are_explained() -> None:
    model = build(SMALL)
    with pytest.raises(ValueError, match=r"41 tokens.*max_target_length_tokens=40"):
        model(tokens(1, 5), tokens(1, 41))
    with pytest.raises(ValueError, match="decoder_attention_mask covers 3"):
        model(tokens(1, 5), tokens(1, 4), decoder_attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="both missing"):
        model(tokens(1, 5))


def test_loss_is_the_mean_over_real_labels() -> None:
    logits, labels = torch.randn(2, 5, 11), torch.randint(0, 11, (2, 5))
    labels[0, 2:] = -100
    real = labels != -100
    expected = -torch.log_softmax(logits, -1)[real].gather(1, labels[real][:, None]).mean()
    torch.testing.assert_close(cross_entropy(logits, labels), expected)
    assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32
    assert float(cross_entropy(logits, torch.full((2, 5), -100))) == 0.0


@EVERY_KIND
def test_forward_changes_no_state(config: SpadeConfig) -> None:
    model = build(config).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for length in (9, 33, 33):
        model(tokens(2, length), tokens(2, 6)).loss.backward()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def learned_names(config: SpadeConfig) -> tuple[str, ...]:
    names = ("C", "D", "log_dt", "A", "B", "P")
    return names[:-1] if config.state_space.startswith("s4d") else names


@EVERY_KIND
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_parameter_learns(config: SpadeConfig, precision: str) -> None:
    config = dataclasses.replace(config, trainable_state_space=learned_names(config), dropout=0.1)
    model = build(config).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        output = model(tokens(2, 40), tokens(2, 20))
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_bfloat16_stays_close_to_float32() -> None:
    model = build(SMALL)
    source, target = tokens(2, 40), tokens(2, 20)
    exact = model(source, target)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(source, target)
    assert (rounded.logits - exact.logits).norm() <= 3e-2 * exact.logits.norm()
    assert abs(rounded.loss.item() - exact.loss.item()) < 1e-2


def test_activation_checkpointing_computes_the_same() -> None:
    torch.manual_seed(0)
    model = build(dataclasses.replace(SMALL, dropout=0.1)).train()
    source, target = tokens(2, 20), tokens(2, 9)
    gradients = []
    choices = [("none", 1), ("full", 1), ("full", 2), ("selective", 1), ("selective", 2)]
    for kind, every_layers in choices:
        model.set_activation_checkpointing(ActivationCheckpointing(kind, every_layers))
        model.zero_grad()
        torch.manual_seed(5)
        model(source, target).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


def kept_bytes(kind: str, every_layers: int) -> int:
    """What the forward pass keeps for the backward pass, every storage counted once."""
    torch.manual_seed(0)
    model = build(dataclasses.replace(SMALL, num_encoder_layers=4)).train()
    model.set_activation_checkpointing(ActivationCheckpointing(kind, every_layers))
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(tokens(4, 64), tokens(4, 24))
    assert output.loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_checkpointing_of_more_layers_keeps_less() -> None:
    nothing, half, whole = (kept_bytes(*c) for c in (("none", 1), ("full", 2), ("full", 1)))
    assert whole < half < nothing


@pytest.mark.parametrize(("kind", "every_layers"), [("all", 1), ("full", 0)])
def test_an_impossible_checkpointing_is_refused(kind: str, every_layers: int) -> None:
    with pytest.raises(ValueError, match=r"unknown|give 1"):
        ActivationCheckpointing(kind, every_layers)


def test_construction_is_deterministic_and_ties_the_head() -> None:
    first, second, other = build(SMALL, 1), build(SMALL, 1), build(SMALL, 2)
    states = [model.state_dict() for model in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])
    assert first.lm_head.weight is first.model.shared.weight
    assert sum(".state_space." in name for name in states[0]) == 7 * 2


def test_meta_device_construction() -> None:
    with torch.device("meta"):
        model = SpadeForSeq2Seq(SMALL)
    assert all(x.is_meta for x in model.state_dict().values())
    model = model.to_empty(device="cpu")
    model.load_state_dict(build(SMALL).state_dict())
    model.lm_head.weight = model.model.shared.weight
    source, target = tokens(1, 9), tokens(1, 4)
    assert torch.equal(model.eval()(source, target).logits, build(SMALL)(source, target).logits)


def test_float64_is_computed_in_float64() -> None:
    model = build(SMALL)
    source, target = tokens(1, 30), tokens(1, 8)
    single, double = model(source, target), model.double()(source, target)
    assert double.loss.dtype == double.logits.dtype == torch.float64
    assert abs(double.loss.item() - single.loss.item()) < 1e-5


@pytest.mark.parametrize("sizes", [{}, {"d_model": 128, "num_heads": 2}], ids=["default", "small"])
@pytest.mark.parametrize("vocab_size", [500, 8192])
def test_loss_starts_near_the_logarithm_of_the_vocabulary(
    sizes: dict[str, int], vocab_size: int
) -> None:
    torch.manual_seed(0)
    model = SpadeForSeq2Seq(SpadeConfig(vocab_size=vocab_size, **sizes))
    source, target = (torch.randint(0, vocab_size, (2, n)) for n in (64, 32))
    with torch.no_grad():
        loss = float(model(source, target).loss)
    assert abs(loss - math.log(vocab_size)) < 0.7


def test_published_initialization_scales() -> None:
    """Standard deviations that the published code states, and torch's own where it states none."""
    config = SpadeConfig(
        vocab_size=3000,
        normalization="post",
        final_norm=False,
        initialization="published",
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    torch.manual_seed(0)
    model = SpadeForSeq2Seq(config).model
    mixing = model.encoder.layers[0].mixing
    feed_forward = model.decoder.layers[0].position_wise.feed_forward
    query, key, value = mixing.local_attention.query_key_value.weight.chunk(3)

    def spread(x: nn.Parameter | Tensor) -> float:
        return float(x.detach().std())

    expected = {
        spread(model.shared.weight): 1.0,
        spread(query): (512 * 64) ** -0.5,
        spread(key): 512**-0.5,
        spread(value): 512**-0.5,
        spread(mixing.local_attention.output.weight): 512**-0.5,
        spread(mixing.local_attention.relative_attention_bias.weight): 512**-0.5,
        spread(feed_forward.expand.weight): 512**-0.5,
        spread(feed_forward.contract.weight): 2048**-0.5,
        spread(mixing.aggregate.weight): (3 * 1024) ** -0.5,
        spread(model.decoder.layers[0].mixing.attention.output.weight): (3 * 512) ** -0.5,
    }
    for actual, wanted in expected.items():
        assert math.isclose(actual, wanted, rel_tol=0.1)
