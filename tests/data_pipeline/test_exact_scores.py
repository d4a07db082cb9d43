"""Scores are multiples of 1/64 nat and nothing else of the model changes."""

from __future__ import annotations

import io
from itertools import pairwise

import sentencepiece

from data_pipeline.tokenization.exact_scores import STEPS_PER_NAT, with_exact_scores
from data_pipeline.tokenization.tokenizer import DocumentTokenizer


def load(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def test_only_the_scores_change(prose_corpus):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose_corpus.read_text().splitlines()),
        model_writer=writer,
        vocab_size=400,
        byte_fallback=True,
        minloglevel=2,
    )
    before, after = load(writer.getvalue()), load(with_exact_scores(writer.getvalue()))
    assert len(writer.getvalue()) == len(with_exact_scores(writer.getvalue()))
    assert before.get_piece_size() == after.get_piece_size()
    moved = 0
    for piece in range(before.get_piece_size()):
        assert before.id_to_piece(piece) == after.id_to_piece(piece)
        assert before.is_byte(piece) == after.is_byte(piece)
        assert (after.get_score(piece) * STEPS_PER_NAT).is_integer()
        assert abs(before.get_score(piece) - after.get_score(piece)) <= 0.5 / STEPS_PER_NAT
        moved += before.get_score(piece) != after.get_score(piece)
    assert moved > 100
    assert with_exact_scores(after.serialized_model_proto()) == after.serialized_model_proto()


def test_trained_tokenizers_have_exact_scores(prose_data):
    tokenizer = DocumentTokenizer.load(prose_data / "tokenizer")
    processor = load((prose_data / "tokenizer" / "spiece.model").read_bytes())
    scores = [processor.get_score(piece) for piece in range(tokenizer.piece_count)]
    assert all((score * STEPS_PER_NAT).is_integer() for score in scores)
    assert any(one != other for one, other in pairwise(scores))
