"""What is said of a tokenizer is what counting by hand gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.corpora.corpus import Document
from data_pipeline.errors import DataError
from data_pipeline.progress import Progress
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from data_pipeline.tokenization.tokenizer_inspect import inspect_tokenizer


@pytest.fixture(scope="module")
def tokenizer(prose_data: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(prose_data / "tokenizer")


def test_numbers_are_those_of_counting(tokenizer: DocumentTokenizer) -> None:
    documents = [
        Document("a", "lorem dolor\nrest 日本日", 0),
        Document("b", "lorem", 1),
        Document("c", "dolor dolor", 1),
    ]
    told: list[Progress] = []
    rows = inspect_tokenizer(tokenizer, documents, ["x", "y"], progress=told.append)
    assert [row["input"] for row in rows] == ["x", "y", "all"]
    one, two, both = rows
    tokens = [len(tokenizer.encode(document.text)) for document in documents]
    assert (one["tokens"], two["tokens"], both["tokens"]) == (
        tokens[0],
        tokens[1] + tokens[2],
        sum(tokens),
    )
    assert one["text_bytes"] == len(documents[0].text.encode())
    assert one["tokens_per_word"] == tokens[0] / 4
    assert two["bytes_per_token"] == 16 / (tokens[1] + tokens[2])
    # Three of the 20 characters are not in the vocabulary; the line end counts as covered.
    assert one["coverage"] == pytest.approx(1 - 3 / 20)
    assert one["uncovered"] == ["日", "本"]
    assert (two["coverage"], two["uncovered"]) == (1.0, [])
    used = {int(n) for document in documents for n in tokenizer.encode(document.text)}
    assert both["ids_used"] == len(used)
    assert both["ids_used_share"] == len(used) / tokenizer.piece_count
    assert told[-1].done == both["text_bytes"]


def test_enough_text_of_each_input_is_enough(tokenizer: DocumentTokenizer) -> None:
    documents = [Document(str(n), "lorem ipsum", n % 2) for n in range(40)]
    rows = inspect_tokenizer(tokenizer, documents, ["x", "y"], input_bytes=25)
    assert [row["documents"] for row in rows] == [3, 3, 6]
    with pytest.raises(DataError, match="no text to tokenize"):
        inspect_tokenizer(tokenizer, [], ["x"])
