"""The tokenizer: exact round trips, the same model every time, and no mixed-up folders."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.corpora.corpus import Document, iterate_documents
from data_pipeline.errors import DataError
from data_pipeline.progress import Progress
from data_pipeline.tokenization.segments import (
    SEGMENT_CHARACTERS,
    SEGMENT_PATTERN,
    SegmentSample,
    StratifiedSample,
    iterate_chunks,
    iterate_segment_blocks,
    level_shares,
)
from data_pipeline.tokenization.tokenizer import DocumentTokenizer, train_tokenizer

SHARED = Path(os.environ.get("SPADE_SHARED", Path(__file__).parents[3] / "shared"))
NASTY_TEXTS = [
    "",
    " ",
    "  leading and   inner \t spaces  ",
    "\n\n\n",
    "a\r\nb\rc\n",
    "zero \x00 byte",
    "</s> <pad> <unk> <0x0A> <extra_id_0>",
    "日本語 żółć \U0001f600 e\u0301\u0301\u0301 ﬁ \u2028 \u200b",
    "x" * 20_000 + "\n" + "y z" * 9_000,
    "\ufeff",
]


@pytest.fixture(scope="module")
def tokenizer(prose_data: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(prose_data / "tokenizer")


@settings(deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.text(max_size=20),
            st.sampled_from(["\n", "\r\n", "\n\n"]),
            st.builds(
                lambda letter, more: letter * (SEGMENT_CHARACTERS + more),
                st.sampled_from("xé"),
                st.sampled_from([-2, -1, 0, 1, SEGMENT_CHARACTERS]),
            ),
        ),
        max_size=12,
    ),
    blocks=st.integers(1, 3),
)
def test_segments_are_those_of_the_pattern(parts: list[str], blocks: int) -> None:
    text = "".join(parts)
    lists = list(iterate_segment_blocks(text, blocks * SEGMENT_CHARACTERS))
    assert [segment for segments in lists for segment in segments] == re.findall(
        SEGMENT_PATTERN, text
    )
    assert "".join(segment for segments in lists for segment in segments) == text
    assert all(sum(map(len, segments)) <= blocks * SEGMENT_CHARACTERS for segments in lists)


@settings(deadline=None, max_examples=300)
@given(text=st.text() | st.sampled_from(NASTY_TEXTS))
def test_ids_stand_for_as_many_bytes_as_their_text_has(
    tokenizer: DocumentTokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.text_bytes[ids].sum() == len(tokenizer.decode(ids).encode())


def test_ids_of_no_text_stand_for_no_bytes(tokenizer: DocumentTokenizer) -> None:
    sizes = tokenizer.text_bytes
    assert sizes.shape == (tokenizer.vocab_size,)
    nothing = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    nothing += range(tokenizer.piece_count, tokenizer.vocab_size)
    assert np.flatnonzero(sizes == 0).tolist() == nothing


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_nasty_texts_come_back(tokenizer: DocumentTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None, max_examples=300)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=60))
def test_every_text_comes_back(tokenizer: DocumentTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.dtype("<u2")
    # Special ids never come out of a text, whatever it says.
    assert not set(ids.tolist()) & {0, 1, 2}
    assert np.array_equal(ids, tokenizer.encode(text, num_threads=3))


def test_the_space_mark_of_sentencepiece_is_the_one_exception(tokenizer: DocumentTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


@settings(deadline=None)
@given(lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=9)))
def test_ids_of_a_line_do_not_depend_on_other_lines(
    tokenizer: DocumentTokenizer, lines: list[str]
) -> None:
    parts = [tokenizer.encode(line + "\n") for line in lines]
    whole = tokenizer.encode("".join(line + "\n" for line in lines))
    assert whole.tolist() == [int(number) for part in parts for number in part]


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(
        st.one_of(
            st.text(st.characters(codec="utf-8"), max_size=30),
            st.sampled_from(["\n", "\r\n", "\n\n", " lorem ipsum"]),
            st.builds(
                lambda word, count: word * count,
                st.sampled_from(["x", "lo re ", "é\n", "word word word\n"]),
                st.integers(1, 4000),
            ),
        ),
        max_size=10,
    )
)
def test_chunks_give_the_ids_of_their_segments(
    tokenizer: DocumentTokenizer, parts: list[str]
) -> None:
    text = "".join(parts)
    chunks = list(iterate_chunks(text))
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= SEGMENT_CHARACTERS for chunk in chunks)
    segments = re.findall(SEGMENT_PATTERN, text)
    expected = [int(n) for segment in segments for n in tokenizer._processor.encode(segment)]
    assert tokenizer.encode(text).tolist() == expected


def test_documents_are_encoded_together_as_they_are_alone(tokenizer: DocumentTokenizer) -> None:
    blocks: list[None] = []
    together = tokenizer.encode_documents(
        [*NASTY_TEXTS, "long " * 200_000, "end"], after_block=lambda: blocks.append(None)
    )
    for text, ids in zip([*NASTY_TEXTS, "long " * 200_000, "end"], together, strict=True):
        assert ids.dtype == tokenizer.token_dtype
        assert ids.tolist() == [*tokenizer.encode(text).tolist(), tokenizer.eos_token_id]
    assert len(blocks) > 3


def test_a_long_line_is_encoded_piece_by_piece(
    tokenizer: DocumentTokenizer, prose_data: Path
) -> None:
    processor = sentencepiece.SentencePieceProcessor(
        model_proto=(prose_data / "tokenizer" / "spiece.model").read_bytes()
    )
    line = "lorem ipsum dolor " * 60_000
    expected = [
        number
        for start in range(0, len(line), SEGMENT_CHARACTERS)
        for number in processor.encode(line[start : start + SEGMENT_CHARACTERS])
    ]
    assert tokenizer.encode(line).tolist() == expected


def test_sentinels_lie_on_top_in_falling_order(tokenizer: DocumentTokenizer) -> None:
    assert tokenizer.vocab_size == tokenizer.piece_count + tokenizer.sentinel_count == 512 + 64
    assert tokenizer.sentinel_id(0) == tokenizer.vocab_size - 1
    assert tokenizer.sentinel_id(63) == tokenizer.piece_count
    with pytest.raises(DataError, match="sentinel 64 asked for, but the tokenizer has 64"):
        tokenizer.sentinel_id(64)
    word = tokenizer.encode(" lo").tolist()
    ids = [*word, tokenizer.sentinel_id(0), *word, tokenizer.sentinel_id(12), 1, 0]
    assert tokenizer.decode(ids) == " lo<extra_id_0> lo<extra_id_12>"
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(DataError, match="the vocabulary has 576"):
            tokenizer.decode([bad])


def test_invalid_unicode_is_an_error(tokenizer: DocumentTokenizer) -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("a \udcff")


@pytest.fixture(scope="module")
def documents(prose_corpus: Path) -> list[Document]:
    return list(iterate_documents([prose_corpus]))


def test_training_is_deterministic_whatever_the_order(
    tmp_path: Path, documents: list[Document]
) -> None:
    options = {"vocab_size": 400, "sentinels": 10, "sample_bytes": 30_000, "seed": 3}
    told: list[Progress] = []
    one = train_tokenizer(documents, out=tmp_path / "one", progress=told.append, **options)
    two = train_tokenizer(reversed(documents), out=tmp_path / "two", **options)
    for name in ("spiece.model", "tokenizer_manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = train_tokenizer(documents, out=tmp_path / "three", **{**options, "seed": 4})
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert told[-1] == Progress("train tokenizer", 400, 400, "pieces")
    facts = json.loads((tmp_path / "one" / "tokenizer_manifest.json").read_text())["training"]
    assert facts["documents"] == 120
    assert 25_000 < facts["sample_bytes"] <= 30_000
    assert not list(tmp_path.rglob("*.partial"))


def test_the_sample_is_bounded_spread_and_independent_of_order(documents: list[Document]) -> None:
    def sample(limit_bytes: int, which: list[Document], seed: int = 0) -> list[str]:
        collected = SegmentSample(limit_bytes, seed)
        for document in which:
            collected.add(document)
        assert collected.sample_bytes == sum(
            len(segment.encode()) for segment in collected.segments()
        )
        assert collected.sample_bytes <= limit_bytes
        return collected.segments()

    small = sample(40_000, documents)
    assert small == sample(40_000, documents[::-1])
    assert small != sample(40_000, documents, seed=1)
    # A larger sample only adds to a smaller one.
    assert sample(80_000, documents)[: len(small)] == small
    lines = {line for document in documents for line in document.text.split("\n")}
    assert set(small) <= lines
    touched = sum(any(segment in document.text for segment in small) for document in documents)
    assert touched > 100
    everything = sample(2**40, documents)
    assert len(everything) == sum(document.text.count("\n") + 1 for document in documents)


def test_a_giant_document_does_not_drown_the_others(documents: list[Document]) -> None:
    giant = Document("giant", "\n".join(f"giant line {number}" for number in range(100_000)))

    def giant_share(which: list[Document], limit_bytes: int) -> float:
        sample = SegmentSample(limit_bytes, 0, document_bytes=2000)
        for document in which:
            sample.add(document)
        lines = sample.segments()
        assert sample.sample_bytes > 0.9 * limit_bytes
        return sum(len(line) for line in lines if line.startswith("giant")) / sample.sample_bytes

    total_bytes = sum(len(document.text) for document in documents)
    assert total_bytes > 100_000
    assert giant_share([*documents, giant], 60_000) < 0.06
    assert giant_share([giant, *documents], 60_000) < 0.06
    # Where the others leave room, there is as much of it as fits.
    assert giant_share([giant, *documents], total_bytes + 500_000) > 0.5
    assert giant_share([giant], 60_000) == 1


def test_inputs_have_shares_by_size_or_equal_ones(documents: list[Document]) -> None:
    small = [
        Document(f"small {n}", "\n".join(f"small {n} {line}" for line in range(300)), 1)
        for n in range(8)
    ]
    sizes = [sum(len(d.text) for d in some) for some in (documents, small)]
    assert sizes[0] > 5 * sizes[1] / 2

    def small_share(limit_bytes: int, *, is_equal: bool) -> float:
        sample = StratifiedSample(limit_bytes, 0, is_equal=is_equal)
        for document in [*documents, *small]:
            sample.add(document)
        lines = sample.segments()
        total = sum(len(line.encode()) for line in lines)
        assert 0.9 * limit_bytes < total <= limit_bytes
        return sum(len(line) for line in lines if line.startswith("small")) / total

    by_size = sizes[1] / sum(sizes)
    assert small_share(40_000, is_equal=False) == pytest.approx(by_size, abs=0.08)
    assert small_share(40_000, is_equal=True) == pytest.approx(0.5, abs=0.05)


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8), total=st.integers(0, 300))
def test_shares_are_level(sizes: list[int], total: int) -> None:
    shares = level_shares(sizes, total)
    assert sum(shares) <= min(total, sum(sizes))
    assert sum(shares) > min(total, sum(sizes)) - len(sizes)
    assert all(share <= size for share, size in zip(shares, sizes, strict=True))
    # Nobody has less than another unless there is no more of it.
    for share, size in zip(shares, sizes, strict=True):
        assert share == size or share >= max(shares) - 1


def test_texts_that_do_not_suit_the_vocabulary_are_explained(tmp_path: Path) -> None:
    small = [Document("a", "hello world\n" * 5)]
    with pytest.raises(DataError, match=r"55 bytes of text are too few for .* 8192 pieces: they"):
        train_tokenizer(small, out=tmp_path)
    with pytest.raises(DataError, match="vocab_size 259 is too small"):
        train_tokenizer(small, vocab_size=259, out=tmp_path)
    with pytest.raises(DataError, match="260 pieces is too small for this text"):
        train_tokenizer(small, vocab_size=260, out=tmp_path)
    with pytest.raises(DataError, match=r"no text to train a tokenizer on \(0 documents\)"):
        train_tokenizer([], out=tmp_path)
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer([Document("a", "\n\n")], out=tmp_path)
    with pytest.raises(DataError, match="sentinels must be from 1"):
        train_tokenizer(small, sentinels=0, out=tmp_path)
    with pytest.raises(DataError, match="seed must be"):
        train_tokenizer(small, seed=-1, out=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot create the folder"):
        train_tokenizer(small, out=tmp_path / "file")
    assert not (tmp_path / "tokenizer_manifest.json").exists()


def test_a_changed_folder_is_refused(tmp_path: Path, prose_data: Path) -> None:
    folder = tmp_path / "tok"
    shutil.copytree(prose_data / "tokenizer", folder)
    model, manifest = folder / "spiece.model", folder / "tokenizer_manifest.json"
    sound_model, sound = model.read_bytes(), json.loads(manifest.read_text())

    model.write_bytes(sound_model[:500] + bytes([sound_model[500] ^ 1]) + sound_model[501:])
    with pytest.raises(DataError, match="do not belong together: the fingerprint differs"):
        DocumentTokenizer.load(folder)
    model.unlink()
    with pytest.raises(DataError, match=r"cannot read .*spiece\.model: No such file"):
        DocumentTokenizer.load(folder)
    model.write_bytes(sound_model)

    changes = {
        "sentinel_count": 65,
        "vocab_size": 577,
        "format_version": 2,
        "segment_pattern": ".*",
        "eos_token_id": 2,
        "fingerprint": "0" * 64,
    }
    for field, value in changes.items():
        manifest.write_text(json.dumps({**sound, field: value}))
        with pytest.raises(DataError, match=r"spade tokenizer train"):
            DocumentTokenizer.load(folder)
        manifest.write_text(json.dumps({key: sound[key] for key in sound if key != field}))
        with pytest.raises(DataError, match=field):
            DocumentTokenizer.load(folder)
    for content in ("", "[]", "{", "\xff"):
        manifest.write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=r"tokenizer_manifest\.json is damaged"):
            DocumentTokenizer.load(folder)
    manifest.unlink()
    with pytest.raises(DataError, match=r"tokenizer_manifest\.json is missing: .*spade tokenizer"):
        DocumentTokenizer.load(folder)


@pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason=f"no real corpora in {SHARED}; set SPADE_SHARED"
)
def test_real_documents_come_back(tokenizer: DocumentTokenizer) -> None:
    for name in ("sotu", "pd_books", "peps"):
        with gzip.open(SHARED / "data" / name / "docs.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in list(lines)[::20]:
                text = json.loads(line)["text"].replace("\u2581", " ")
                assert tokenizer.decode(tokenizer.encode(text)) == text
