"""The exported tokenizer gives SentencePiece's ids, gives the text back, and needs nobody."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from spade_model.huggingface.tokenization import (
    SpadeTokenizer,
    TokenizerConversionError,
    build_backend,
    sentinel_token,
)

SEGMENTS = r"[^\n]{0,8191}\n|[^\n]{1,8192}"
SENTINELS = 40
PIECES = 2000
SHARED = Path(os.environ.get("SPADE_SHARED", Path(__file__).parents[3] / "shared"))

TRAINING = {
    "vocab_size": PIECES,
    "model_type": "unigram",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "pad_id": 0,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "num_threads": 1,
    "minloglevel": 2,
}


def standard_library(documents: int) -> list[str]:
    """Every fifth source file, so that the sample is not all of one package."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in sorted(root.rglob("*.py")) if not {"test", "site-packages"} & {*p.parts}]
    texts = (path.read_text("utf-8", errors="ignore") for path in paths[::5])
    return list(itertools.islice(texts, documents))


def train(path: Path, **changes: Any) -> Path:
    documents = changes.pop("documents", 60)
    segments = (m for text in standard_library(documents) for m in re.findall(SEGMENTS, text))
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=segments, model_writer=buffer, **(TRAINING | changes)
    )
    path.write_bytes(buffer.getvalue())
    return path


@pytest.fixture(scope="module")
def spiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("tokenizer") / "spiece.model")


@pytest.fixture(scope="module")
def original(spiece_model: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(spiece_model))


@pytest.fixture(scope="module")
def tokenizer(spiece_model: Path) -> SpadeTokenizer:
    return SpadeTokenizer.from_sentencepiece(
        spiece_model, sentinels=SENTINELS, segment_pattern=SEGMENTS, model_max_length=4096
    )


@pytest.fixture(scope="module")
def literal(spiece_model: Path) -> Any:
    """The backend in the mode in which `</s>` in a document is four characters, as it was there."""
    backend = build_backend(spiece_model, sentinels=SENTINELS, segment_pattern=SEGMENTS)
    backend.encode_special_tokens = True
    return backend


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """SentencePiece and backend of a vocabulary without digits, brackets and most letters."""
    path = tmp_path_factory.mktemp("poor") / "spiece.model"
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("aeinrst"), 5)) for _ in range(300)]
    lines = (" ".join(random.choice(words, 9)) + "." for _ in range(600))
    buffer = io.BytesIO()
    options = TRAINING | {"vocab_size": 400}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=buffer, **options
    )
    path.write_bytes(buffer.getvalue())
    backend = build_backend(path, sentinels=SENTINELS, segment_pattern=SEGMENTS)
    backend.encode_special_tokens = True
    return sentencepiece.SentencePieceProcessor(model_file=str(path)), backend


def compare(
    original: sentencepiece.SentencePieceProcessor, literal: Any, text: str
) -> tuple[int, int]:
    """Counts (segments, ties broken differently); any other difference fails."""
    segments = re.findall(SEGMENTS, text)
    assert "".join(segments) == text
    expected = original.encode(segments)
    ids = literal.encode(text, add_special_tokens=False).ids
    assert literal.decode(ids, skip_special_tokens=False) == text.replace("\u2581", " ")
    if ids == list(itertools.chain.from_iterable(expected)):
        return len(segments), 0
    ties = 0
    for segment, wanted in zip(segments, expected, strict=True):
        got = literal.encode(segment, add_special_tokens=False).ids
        if got == wanted:
            continue
        scores = [sum(map(original.get_score, pieces)) for pieces in (wanted, got)]
        # Float32 sums of a few hundred scores; a real difference is a whole piece's score.
        assert scores[0] == pytest.approx(scores[1], rel=1e-6), segment
        ties += 1
    assert ties
    return len(segments), ties


INVISIBLE = st.sampled_from("\n \t\r\x00\x85\u2028\u2581\ufeff\u0301")
LITERAL = st.sampled_from(
    ["  ", "日本", "🐍", "<0x0A>", "<pad>", "</s>", "<unk>", "<extra_id_0>", "▁the", "def ", "----"]
)
OTHER = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TEXT = st.lists(INVISIBLE | LITERAL | OTHER, max_size=30).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_ids_equal_sentencepiece_on_any_text(
    original: sentencepiece.SentencePieceProcessor, literal: Any, text: str
) -> None:
    compare(original, literal, text)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
@example("<0x0A>")
@example("a<0x0A>n</s><pad><unk><extra_id_0>")
def test_ids_equal_sentencepiece_where_most_characters_are_unknown(
    poor: tuple[Any, Any], text: str
) -> None:
    compare(*poor, text)


@settings(max_examples=200, deadline=None)
@given(text=TEXT.filter(lambda text: "\u2581" not in text))
def test_decoding_returns_the_text(tokenizer: SpadeTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("length", [8190, 8191, 8192, 8193, 20000])
@pytest.mark.parametrize("end", ["", "\n", "\nnext"])
def test_long_lines_are_cut_at_the_same_places(
    original: sentencepiece.SentencePieceProcessor, literal: Any, length: int, end: str
) -> None:
    line = ("value = 12345 + other_name  # why\t" * (length // 30))[:length]
    compare(original, literal, line + end)


def test_ids_equal_sentencepiece_on_the_standard_library(
    original: sentencepiece.SentencePieceProcessor, literal: Any
) -> None:
    counts = [compare(original, literal, text) for text in standard_library(150)]
    segments, ties = (sum(column) for column in zip(*counts, strict=True))
    print(f"{segments} segments, {ties} ties broken differently")
    assert ties < segments / 100


@pytest.mark.parametrize("corpus", ["sotu", "peps", "pd_books"])
def test_ids_equal_sentencepiece_on_real_documents(
    original: sentencepiece.SentencePieceProcessor, literal: Any, corpus: str
) -> None:
    path = SHARED / "data" / corpus / "docs.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set SPADE_SHARED to the folder that holds data/")

    def texts() -> Iterator[str]:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in itertools.islice(lines, 0, None, 9):
                yield json.loads(line)["text"]

    counts = [compare(original, literal, text) for text in texts()]
    segments, ties = (sum(column) for column in zip(*counts, strict=True))
    print(f"{corpus}: {len(counts)} documents, {segments} segments, {ties} ties broken differently")
    assert ties < segments / 100


def test_sentinels_count_down_from_the_last_id(tokenizer: SpadeTokenizer) -> None:
    assert len(tokenizer) == PIECES + SENTINELS
    for k in range(SENTINELS):
        assert tokenizer.convert_tokens_to_ids(sentinel_token(k)) == PIECES + SENTINELS - 1 - k
    ids = tokenizer.encode("a<extra_id_0>b<extra_id_1>", add_special_tokens=False)
    assert [i for i in ids if i >= PIECES] == [PIECES + SENTINELS - 1, PIECES + SENTINELS - 2]
    assert tokenizer.decode(ids) == "a<extra_id_0>b<extra_id_1>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_every_sequence_ends_with_eos(tokenizer: SpadeTokenizer) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.encode("") == [1]
    first = tokenizer.encode("one\n", add_special_tokens=False)
    second = tokenizer.encode(" two", add_special_tokens=False)
    assert tokenizer.encode("one\n") == [*first, 1]
    assert tokenizer.encode("one\n", " two") == [*first, 1, *second, 1]


def test_saved_folder_needs_neither_us_nor_sentencepiece(
    tokenizer: SpadeTokenizer, spiece_model: Path, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "spiece.model").read_bytes() == spiece_model.read_bytes()
    text = "def f(x):\n\treturn  “x” <extra_id_3> 🐍\n"
    script = (
        "import sys, json\n"
        "for name in ('sentencepiece', 'google.protobuf', 'spade_model'):\n"
        "    sys.modules[name] = None\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer.encode(sys.argv[2])\n"
        "print(json.dumps([ids, tokenizer.decode(ids), tokenizer.model_max_length,\n"
        "                  tokenizer.pad_token_id, tokenizer.padding_side]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "out"), text],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    ids, decoded, limit, pad, side = json.loads(result.stdout.splitlines()[-1])
    assert ids == tokenizer.encode(text)
    assert decoded == text + "</s>"
    assert (limit, pad, side) == (4096, 0, "right")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "changes text"),
        ({"add_dummy_prefix": True}, "changes text"),
        ({"remove_extra_whitespaces": True}, "changes text"),
        ({"byte_fallback": False}, "no byte pieces"),
        ({"pad_id": 2, "unk_id": 0}, "(2, 1, 0)"),
        ({"user_defined_symbols": ["<extra_id_0>"]}, "named like a sentinel"),
        ({"model_type": "bpe"}, "unigram"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    model = train(tmp_path / "other.model", documents=6, vocab_size=500, **changes)
    with pytest.raises(TokenizerConversionError, match=re.escape(words)) as caught:
        build_backend(model, sentinels=4, segment_pattern=SEGMENTS)
    assert str(model) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    model = tmp_path / "spiece.model"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(TokenizerConversionError, match="not a readable SentencePiece model"):
        build_backend(model, sentinels=4, segment_pattern=SEGMENTS)
