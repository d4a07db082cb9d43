"""Piece scores whose sums are exact, so that every library finds the same segmentation.

A unigram tokenizer takes the segmentation with the highest sum of scores. SentencePiece adds in
float32, other libraries in float64, in other orders: where two segmentations are nearly equal, they
choose differently. Scores that are multiples of 1/64 nat have no such places: a segment has at most
8,192 characters of some 27 nats each, and sums of multiples of 1/64 below 2**18 are exact in
float32. Rounding moves token counts by less than 0.001 %.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

STEPS_PER_NAT = 64

# Of SentencePiece's ModelProto: `repeated SentencePiece pieces = 1`, and in it `float score = 2`.
_PIECES_FIELD, _SCORE_FIELD = 1, 2
_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5


def with_exact_scores(model: bytes) -> bytes:
    """Round the score of every piece of a SentencePiece model to 1/64 nat, in place.

    Args:
        model: A serialised model, as SentencePiece has just written it.

    Returns:
        The same bytes but for the scores.
    """
    content = bytearray(model)
    for start, end in _fields(content, 0, len(content), _PIECES_FIELD, _LENGTH_DELIMITED):
        for place, _ in _fields(content, start, end, _SCORE_FIELD, _FOUR_BYTES):
            (score,) = struct.unpack_from("<f", content, place)
            struct.pack_into("<f", content, place, round(score * STEPS_PER_NAT) / STEPS_PER_NAT)
    return bytes(content)


def _fields(
    content: bytearray, position: int, end: int, number: int, kind: int
) -> Iterator[tuple[int, int]]:
    """Where the values of one protobuf field begin and end, among the fields of one message."""
    while position < end:
        key, position = _varint(content, position)
        wire_kind = key & 7
        start = position
        if wire_kind == _VARINT:
            _, position = _varint(content, position)
        elif wire_kind == _LENGTH_DELIMITED:
            size, start = _varint(content, position)
            position = start + size
        else:
            position += {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[wire_kind]
        if (key >> 3, wire_kind) == (number, kind):
            yield start, position


def _varint(content: bytearray, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
