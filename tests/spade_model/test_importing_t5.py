"""T5 and LongT5 as a warm start: the same function where SPADE adds nothing, and a true report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the import needs the extra hf")

from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LongT5Config,
    LongT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from spade_model.huggingface import SpadeForConditionalGeneration
from spade_model.huggingface.importing.published_files import PublishedFileError
from spade_model.huggingface.importing.t5 import T5Report, import_t5
from spade_model.huggingface.importing.vocabulary import MATRICES, exchange_vocabulary

SIZES: dict[str, Any] = {
    **{"vocab_size": 60, "d_model": 24, "d_kv": 6, "num_heads": 3, "d_ff": 40, "num_layers": 2},
    **{"num_decoder_layers": 3, "relative_attention_num_buckets": 8, "dropout_rate": 0.1},
    **{"relative_attention_max_distance": 20, "decoder_start_token_id": 0},
}
V1_0: dict[str, Any] = {**SIZES, "feed_forward_proj": "relu"}
V1_1: dict[str, Any] = {**SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LOCAL: dict[str, Any] = {**V1_1, "local_radius": 5, "encoder_attention_type": "local"}
GLOBAL: dict[str, Any] = {**LOCAL, "encoder_attention_type": "transient-global"}
OWN: dict[str, Any] = {"state_dim": 8, "max_target_length_tokens": 32}
NO_STATE_SPACE: dict[str, Any] = {"state_space": "none", "max_target_length_tokens": 32}


def make(facts: dict[str, Any], *, untied: bool = False) -> Any:
    """A T5 or LongT5 whose every weight is drawn, norms and tables of biases included."""
    torch.manual_seed(0)
    if "local_radius" in facts:
        model: Any = LongT5ForConditionalGeneration(LongT5Config(**facts))
    else:
        model = T5ForConditionalGeneration(T5Config(**facts))
    if untied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 24))
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "bias" in name:
                parameter.normal_()
    return model.eval()


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    return folder


def batch(length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, 2 * length // 3 :] = 0
    return {
        "input_ids": torch.randint(60, (2, length), generator=generator),
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(60, (2, 30), generator=generator),
    }


def close(found: Tensor, expected: Tensor) -> None:
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("facts", "untied", "length"),
    [
        (V1_0, False, 40),  # the window is the default, 127 tokens on either side
        (V1_1, True, 40),
        (LOCAL, False, 47),  # many times the radius
        (LOCAL, True, 6),
    ],
    ids=["t5", "t5-v1.1", "longt5-local", "longt5-short"],
)
def test_without_state_spaces_it_is_the_source(
    facts: dict[str, Any], untied: bool, length: int, tmp_path: Path
) -> None:
    model = make(facts, untied=untied)
    report = import_t5(saved(tmp_path / "t5", model), tmp_path / "out", NO_STATE_SPACE)
    assert (report.new, report.left_out) == ({}, {})
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert isinstance(ours, SpadeForConditionalGeneration)
    inputs = batch(length)
    with torch.no_grad():
        expected, found = model(**inputs, use_cache=False), ours(**inputs)
        valid = inputs["attention_mask"].bool()
        close(found.encoder_last_hidden_state[valid], expected.encoder_last_hidden_state[valid])
        close(found.logits, expected.logits)
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        for options in ({"num_beams": 1}, {"num_beams": 3}):
            asked: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, **options}
            # The cache of transformers' T5 has as many layers as the encoder.
            theirs = model.generate(**given, **asked, use_cache=False)
            assert torch.equal(ours.generate(**given, **asked), theirs)
    assert (ours.lm_head.weight is ours.model.shared.weight) == (not untied)
    assert report.parameters == sum(x.numel() for x in model.parameters())


def source_and_report(
    folder: Path, facts: dict[str, Any], own: dict[str, Any], **options: Any
) -> tuple[Any, T5Report]:
    model = make(facts, untied=options.pop("untied", False))
    return model, import_t5(saved(folder / "t5", model), folder / "out", own, **options)


@pytest.mark.parametrize("facts", [V1_0, GLOBAL], ids=["t5", "longt5-transient-global"])
def test_what_is_new_and_what_is_left_out_is_all_there_is(
    facts: dict[str, Any], tmp_path: Path
) -> None:
    own = {**OWN, "state_space_layers": [0, 1], "local_radius_tokens": 4}
    model, report = source_and_report(tmp_path, facts, own)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    sizes = {name: x.numel() for name, x in stored.items()}
    assert report.new == {name: sizes[name] for name in report.new}
    parts = (".state_space.", ".global_norm.", ".local_norm.", ".aggregate.")
    assert set(report.new) == {name for name in sizes if any(part in name for part in parts)}
    theirs = sum(x.numel() for x in model.parameters())
    assert sum(sizes.values()) == (
        theirs + sum(report.new.values()) - sum(report.left_out.values())
    )
    left_out = {name: x.numel() for name, x in model.named_parameters() if ".global_" in name}
    assert report.left_out == left_out
    assert bool(left_out) == (facts is GLOBAL)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (provenance["new"], provenance["left_out"]) == (report.new, report.left_out)
    assert provenance["source"] == model.config.model_type
    assert any("a window of 4 tokens" in note for note in report.notes)
    assert any("means of blocks" in note for note in report.notes) == (facts is GLOBAL)


@pytest.mark.parametrize("combine", ["concat", "add"])
def test_it_begins_near_the_source_and_learns_from_there(combine: str, tmp_path: Path) -> None:
    """Nearer than a T5 without its first attention; and the state space hears of the loss."""
    own = {**OWN, "combine": combine}
    model, _ = source_and_report(tmp_path, V1_0, own)
    ours = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    inputs = batch(40)
    with torch.no_grad():
        expected, found = model(**inputs).logits, ours(**inputs).logits
        model.encoder.block[0].layer[0].SelfAttention.o.weight.zero_()
        without = model(**inputs).logits
    assert (found - expected).norm() < 0.5 * (without - expected).norm()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        ours(**inputs, labels=inputs["decoder_input_ids"]).loss.backward()
        optimizer.step()
    mixing = ours.model.encoder.layers[0].mixing
    assert float(mixing.state_space.C.grad.abs().sum()) > 0


def test_a_head_of_its_own_is_kept_or_left_out(tmp_path: Path) -> None:
    model, report = source_and_report(tmp_path, V1_1, OWN, untied=True)
    assert any("--tie-head" in note for note in report.notes)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], model.lm_head.weight)
    tied = import_t5(tmp_path / "t5", tmp_path / "tied", OWN, tie_head=True)
    assert tied.left_out == {"lm_head.weight": 60 * 24}
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    assert json.loads((tmp_path / "tied" / "config.json").read_text())["tie_word_embeddings"]


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -3.0) for letter in "abcdefgh"] + [("▁a", -1.5)]
    T5Tokenizer(vocab=vocabulary, extra_ids=10).save_pretrained(tmp_path / "t5")
    _, report = source_and_report(tmp_path, V1_0, OWN)
    theirs, ours = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("t5", "out"))
    text = "a bad <extra_id_0> cab"
    assert ours(text).input_ids == theirs(text).input_ids
    assert f"{60 - len(theirs)} rows of the embedding belong to no token" in report.notes
    (tmp_path / "t5" / "tokenizer.json").write_text("{")
    check_refused(tmp_path / "t5", tmp_path / "other", "its tokenizer cannot be loaded")


def check_refused(source: Path, out: Path, complaint: str, own: Any = OWN) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(PublishedFileError, match=complaint) as caught:
        import_t5(source, out, own)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(out.parent.iterdir()) == before, "nothing is left behind"


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    good = saved(tmp_path / "good", make(V1_0))
    out = tmp_path / "out"
    activation = saved(tmp_path / "a", make({**V1_0, "feed_forward_proj": "gated-silu"}))
    check_refused(activation, out, "feed_forward_proj is 'gated-silu'")
    buckets = saved(tmp_path / "b", make({**V1_0, "relative_attention_num_buckets": 6}))
    check_refused(buckets, out, "relative_attention_num_buckets=6")
    check_refused(good, out, "d_ff cannot be chosen", {"d_ff": 3})
    check_refused(good, out, "state_dim=7", {"state_dim": 7})
    check_refused(good, good, "already holds something")
    config = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps({**config, "d_ff": 48}))
    check_refused(good, out, "mismatched|cannot be loaded")
    (good / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    check_refused(good, out, "missing keys: encoder.block.2")
    (good / "config.json").write_text(json.dumps({**config, "model_type": "bart"}))
    check_refused(good, out, "model_type is 'bart'")
    (good / "config.json").write_text(json.dumps(config))
    weights = good / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    check_refused(good, out, "cannot be")
    weights.unlink()
    (good / "pytorch_model.bin").write_bytes(b"anything")
    check_refused(good, out, "holds no \\*.safetensors")


def test_rows_follow_their_pieces_to_another_vocabulary() -> None:
    """Of each matrix; new rows look like old ones and are the same for the same seed."""
    before = {"<pad>": 0, "</s>": 1, "▁a": 3, "b": 4, "gone": 2}
    now = {"</s>": 1, "b": 0, "new": 3, "▁a": 2, "newer": 4}
    generator = torch.Generator().manual_seed(0)
    embedding = 5 + torch.randn(7, 3000, generator=generator)
    head = torch.randn(7, 3000, generator=generator)
    for state, matrices in (
        ({"model.shared.weight": embedding, "lm_head.weight": embedding, "x": head}, 1),
        ({"model.shared.weight": embedding, "lm_head.weight": head, "x": head}, 2),
    ):
        made = exchange_vocabulary(state, before, now, seed=3)
        assert (made.kept, made.drawn, made.dropped) == (3, 2, 4)
        assert made.state["x"] is head
        found = [made.state[name] for name in MATRICES]
        assert len({id(x) for x in found}) == matrices
        for name, x in zip(MATRICES, found, strict=True):
            assert x.shape == (5, 3000)
            for piece in ("</s>", "b", "▁a"):
                assert torch.equal(x[now[piece]], state[name][before[piece]])
            assert abs(float(x[3:].mean() - state[name].mean())) < 0.1
            assert abs(float(x[3:].std() - state[name].std())) < 0.2
        again = exchange_vocabulary(state, before, now, seed=3)
        assert all(torch.equal(made.state[name], again.state[name]) for name in MATRICES)
