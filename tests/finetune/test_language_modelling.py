"""Language models: streams of tokens, windows over them, losses, and the recipe."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from finetune_models import sentences

from finetune.errors import FinetuneError
from finetune.exported import copy_tokenizer, load_tokenizer
from finetune.language_modelling.losses import metrics, report, row_losses, window_losses
from finetune.language_modelling.recipe import LanguageModelling, load_language_model
from finetune.language_modelling.text import EncodedText, Text, encode_text, read_text
from finetune.language_modelling.windows import IGNORED, TokenWindows, collate
from launch.cli import run as run_command
from spade_model.huggingface import SpadeForCausalLM, SpadePretrainedConfig

PAD = 0


def stream(tokens: int, *, vocab_size: int = 300) -> EncodedText:
    """Made-up ids of so many predictions."""
    ids = np.random.default_rng(tokens).integers(2, vocab_size, tokens + 1).astype(np.int32)
    return EncodedText(Path("made-up.txt"), ids, 1, 3 * tokens, 4 * tokens, 1, 0)


@pytest.fixture(scope="module")
def folder(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that has learned nothing, drawn wide so that tokens differ in their cost."""
    out = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    model = SpadeForCausalLM(
        SpadePretrainedConfig(
            vocab_size=len(load_tokenizer(exported)),
            d_model=32,
            num_heads=2,
            head_dim=16,
            d_ff=64,
            num_encoder_layers=0,
            num_decoder_layers=2,
            state_dim=8,
            local_radius_tokens=7,
            trained_length_tokens=24,
        )
    )
    with torch.no_grad():
        model.model.shared.weight.mul_(20)
    model.save_pretrained(out)
    copy_tokenizer(exported, out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> SpadeForCausalLM:
    return load_language_model(folder).eval()


def losses(model: SpadeForCausalLM, rows: TokenWindows, batch_size: int = 3) -> Any:
    return window_losses(model, rows, batch_size=batch_size, pad_token_id=PAD, bfloat16=False)


@given(data=st.data(), tokens=st.integers(1, 400), length=st.integers(1, 90))
@settings(max_examples=200, deadline=None)
def test_each_token_is_predicted_once_with_the_promised_context(
    data: st.DataObject, tokens: int, length: int
) -> None:
    stride = data.draw(st.integers(1, length))
    text = stream(tokens)
    rows = TokenWindows(text, length, stride)
    predicted: list[int] = []
    for index in range(len(rows)):
        window, row = rows.window(index), rows[index]
        assert 0 <= window.start <= window.scored_from < window.stop <= tokens
        assert window.stop - window.start <= length
        # What the model is given, and what counts, is what the window says.
        ids, labels = row["input_ids"], row["labels"]
        assert ids.tolist() == text.ids[window.start : window.stop + 1].tolist()
        counted = [window.start + k for k in range(len(ids) - 1) if labels[k + 1] != IGNORED]
        assert counted == list(range(window.scored_from, window.stop))
        assert labels[0] == IGNORED
        assert all(labels[k - window.start + 1] == text.ids[k + 1] for k in counted)
        if index:
            assert window.scored_from - window.start >= length - stride
        else:
            assert window.scored_from == 0
        predicted += counted
    assert predicted == list(range(tokens))
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_impossible_windows_are_refused() -> None:
    for length, stride, complaint in (
        (0, 1, "length_tokens is 0"),
        (8, 9, "stride_tokens is 9: use from 1 to length_tokens, 8"),
        (8, 0, "stride_tokens is 0"),
    ):
        with pytest.raises(FinetuneError, match=complaint):
            TokenWindows(stream(20), length, stride)


def own_loss(model: SpadeForCausalLM, ids: Sequence[int]) -> float:
    """What the model itself says of a row of its own, summed."""
    row = torch.tensor([list(ids)])
    with torch.no_grad():
        return float(model(input_ids=row, labels=row, use_cache=False).loss) * (len(ids) - 1)


def test_windows_cost_what_the_model_says_of_them(model: SpadeForCausalLM) -> None:
    text = stream(61)
    ids = text.ids.tolist()
    # One window over all is one pass; windows that do not overlap are rows of their own.
    whole = losses(model, TokenWindows(text, 61, 7))
    assert whole == pytest.approx([own_loss(model, ids)], rel=1e-5)
    longer = losses(model, TokenWindows(text, 100, 100))
    assert longer.tolist() == whole.tolist()
    blocks = losses(model, TokenWindows(text, 20, 20))
    expected = [own_loss(model, ids[first : first + 21]) for first in range(0, 61, 20)]
    assert blocks == pytest.approx(expected, rel=1e-5)
    # A window that slides costs the difference of what a longer and a shorter row cost.
    sliding = losses(model, TokenWindows(text, 20, 5))
    expected = [own_loss(model, ids[:21])]
    for first in range(5, 45, 5):
        row = ids[first : first + 21]
        expected.append(own_loss(model, row) - own_loss(model, row[: 20 - 5 + 1]))
    assert sliding[:-1] == pytest.approx(expected, rel=1e-4)
    assert len(sliding) == 10
    # More context than the window reaches changes nothing but by the state space and the layers.
    assert sliding.sum() != pytest.approx(blocks.sum(), rel=1e-6)


def test_padding_and_batches_change_nothing(model: SpadeForCausalLM) -> None:
    text = stream(73)
    rows = TokenWindows(text, 16, 6)
    one_by_one = losses(model, rows, batch_size=1)
    for batch_size in (2, 5, 64):
        assert losses(model, rows, batch_size) == pytest.approx(one_by_one, rel=1e-6)
    batch = collate([rows[0], rows[len(rows) - 1]], PAD)
    assert not bool(batch["attention_mask"].all()), "the last window is shorter"
    with torch.no_grad():
        plain = row_losses(model, batch)
        behind = batch["attention_mask"] == 0
        batch["input_ids"][behind] = 7
        assert row_losses(model, batch).tolist() == plain.tolist()


def test_a_model_that_knows_nothing_pays_for_each_token_alike(folder: Path, tmp_path: Path) -> None:
    """All units follow from the counts; the words are WikiText's."""
    model = load_language_model(folder).eval()
    with torch.no_grad():
        model.model.shared.weight.zero_()
    path = tmp_path / "text.txt"
    path.write_bytes("\n = Bandar = \n\n ban der <unk> , lin né \n".encode())
    text = encode_text(read_text(path, "text"), load_tokenizer(folder))
    assert (text.words, text.size_bytes) == (3 + 6 + 4, path.stat().st_size)
    rows = TokenWindows(text, 8, 3)
    found = metrics(rows, losses(model, rows))
    vocab_size, tokens = model.config.vocab_size, text.tokens
    assert found["nll_per_token"] == pytest.approx(math.log(vocab_size))
    assert found["perplexity"] == pytest.approx(vocab_size)
    assert found["word_perplexity"] == pytest.approx(vocab_size ** (tokens / 13))
    assert found["bits_per_byte"] == pytest.approx(tokens * math.log2(vocab_size) / text.size_bytes)
    assert report(rows, losses(model, rows))["nll_interval"] is None, "too short to tell"


def test_intervals_hold_the_mean_and_narrow_with_more_text() -> None:
    widths = []
    for tokens in (40_000, 640_000):
        rows = TokenWindows(stream(tokens), 512, 256)
        scored = [rows.window(k).stop - rows.window(k).scored_from for k in range(len(rows))]
        drawn = np.random.default_rng(0).normal(3.0, 0.5, len(rows))
        found = report(rows, drawn * scored)
        low, high = found["nll_interval"]
        assert low < found["nll_per_token"] < high
        assert found["perplexity_interval"] == [math.exp(low), math.exp(high)]
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


TRICKY = (
    "two  spaces\tand a tab\r\n\n</s> <pad> <unk> <extra_id_0> é \U0001f40d\u2028x\n" + "y" * 9000
)


def test_documents_become_one_stream_that_gives_them_back(exported: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(exported)
    documents = [TRICKY, "", "no end of line", "\ufeffmark\n"]
    text = encode_text(Text(tmp_path, documents), tokenizer)
    assert text.changed_lines == 0
    end = tokenizer.eos_token_id
    pieces: list[list[int]] = [[]]
    for token in text.ids.tolist():
        if token == end:
            pieces.append([])
        else:
            pieces[-1].append(token)
    assert pieces[0] == pieces[-1] == [], "it begins and ends with an end of text"
    assert pieces[1:-1] == [tokenizer(d, add_special_tokens=False).input_ids for d in documents]
    assert [tokenizer.decode(piece) for piece in pieces[1:-1]] == documents
    # The tokenizer's mark for spaces comes back as a space: that is said.
    lossy = encode_text(Text(tmp_path, ["ban\n", "ban\u2581der\nlin\n"]), tokenizer)
    assert (lossy.lines, lossy.changed_lines) == (3, 1)


def test_files_are_read_exactly(tmp_path: Path) -> None:
    plain = tmp_path / "wiki.test.tokens"
    plain.write_bytes(TRICKY.encode())
    zipped = tmp_path / "wiki.test.tokens.gz"
    zipped.write_bytes(gzip.compress(TRICKY.encode()))
    for path in (plain, zipped):
        text = read_text(path, "text")
        assert text.documents == [TRICKY]
        assert text.size_bytes == len(TRICKY.encode())
    rows = tmp_path / "rows.jsonl.gz"
    lines = [json.dumps({"body": d}) for d in (TRICKY, "a b\n", "")]
    rows.write_bytes(gzip.compress("\n".join(lines).encode()))
    text = read_text(rows, "body")
    assert text.documents == [TRICKY, "a b\n", ""]
    assert text.words == Text(rows, [TRICKY]).words + 3

    def complaint(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FinetuneError) as caught:
            read_text(tmp_path / name, "text")
        return str(caught.value)

    assert "holds no words" in complaint("empty.txt", b"   ")
    assert "line 3: not UTF-8" in complaint("latin.txt", b"a\nb\ncaf\xe9\n")
    assert "damaged gzip" in complaint("cut.txt.gz", zipped.read_bytes()[:-30])
    assert "half of a surrogate" in complaint("half.jsonl", b'{"text": "a \\ud83d"}\n')
    assert "no column 'text'" in complaint("other.jsonl", b'{"body": "a"}\n')


def test_models_and_tokenizers_that_do_not_fit_are_refused(
    exported: Path, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "train.txt"
    path.write_text("ban der lin\n" * 9)

    def complaint(model: Path, **options: Any) -> str:
        with pytest.raises(FinetuneError) as caught:
            LanguageModelling(model, path, path, **options)
        return str(caught.value)

    assert "has an encoder and is no language model" in complaint(exported)
    assert "from_scratch is 'huge': use tiny" in complaint(exported, from_scratch="huge")
    assert "no tokenizer.json" in complaint(tmp_path, from_scratch="tiny")
    assert "called 'train' already" in complaint(folder, tests=[path, path])
    small = tmp_path / "small"
    model = load_language_model(folder)
    model.resize_token_embeddings(50)
    model.save_pretrained(small)
    assert "no tokenizer.json" in complaint(small)
    assert "and the model has 50" in complaint(small, tokenizer=folder)
    recipe = LanguageModelling(exported, path, path, from_scratch="tiny", length_tokens=12)
    made = recipe.make_model(None)
    assert made.config.vocab_size == len(load_tokenizer(exported))
    assert (made.config.trained_length_tokens, made.config.dropout) == (12, 0.1)
    assert recipe.make_model(0.3).config.dropout == 0.3
    # Training rows do not overlap; measured windows do.
    assert len(recipe.training) < len(recipe.validation)


def test_the_command_measures_files(
    folder: Path, model: SpadeForCausalLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for number, rows in enumerate((60, 8)):
        path = tmp_path / f"{number}.txt"
        path.write_text("".join(f"{text}\n" for text, _ in sentences(rows, seed=number)))
        paths.append(path)
    assert run_command(["evaluate", "lm", str(folder), *map(str, paths), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["length_tokens"], found["stride_tokens"]) == (24, 12), "as it was trained"
    for path in paths:
        windows = TokenWindows(encode_text(read_text(path, "text"), load_tokenizer(folder)), 24, 12)
        assert found["files"][str(path)] == report(windows, losses(model, windows, 8))
    few = ["--length-tokens", "30", "--stride-tokens", "31"]
    assert run_command(["evaluate", "lm", str(folder), str(paths[1]), *few]) == 1
    assert "stride_tokens is 31: use from 1" in capsys.readouterr().err
    assert run_command(["evaluate", "lm", str(folder), str(paths[1])]) == 0
    said = capsys.readouterr().out
    assert "windows of 24 tokens, stride 12" in said
    assert "bits per byte" in said


WIKITEXT = os.environ.get("SPADE_WIKITEXT_DATA")


@pytest.mark.skipif(WIKITEXT is None, reason="SPADE_WIKITEXT_DATA names no WikiText-2 validation")
def test_words_are_those_that_wikitext_counts() -> None:
    """217,646 is the size of WikiText-2's validation set as its authors publish it."""
    text = read_text(Path(str(WIKITEXT)), "text")
    assert (text.words, text.size_bytes) == (217_646, Path(str(WIKITEXT)).stat().st_size)
