"""Exact doubles of documents, found by the hashes of their texts in bounded memory.

The first occurrence in the order of the corpus stays, whichever part it belongs to, so no text of
the training part lies in the held-out part as well. Two texts count as the same when their xxh3_128
are: by chance that happens to no corpus, but the hash is no defence against somebody who wants it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.corpora.corpus_scan import read_rows
from data_pipeline.files import explaining

_HASH = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<u8")])
_DOCUMENTS_AT_A_TIME = 2**22

BoolArray = npt.NDArray[np.bool_]


class DocumentMarks:
    """One bit for each document of the corpus, counted through all tables in order."""

    def __init__(self, documents: int) -> None:
        """Marks none of `documents`."""
        self._bits = np.zeros((documents + 7) // 8, np.uint8)

    def add(self, numbers: npt.NDArray[np.uint64]) -> None:
        """Marks documents."""
        bits = np.left_shift(1, (numbers & np.uint64(7)).astype(np.uint8), dtype=np.uint8)
        np.bitwise_or.at(self._bits, (numbers >> np.uint64(3)).astype(np.int64), bits)

    def between(self, start: int, stop: int) -> BoolArray:
        """[stop - start] whether each document from `start` up to, without, `stop` is marked."""
        whole = np.unpackbits(self._bits[start // 8 : (stop + 7) // 8], bitorder="little")
        return whole[start % 8 : start % 8 + stop - start].astype(bool)


def find_duplicates(
    tables: Sequence[Path],
    documents: int,
    folder: Path,
    documents_at_a_time: int = _DOCUMENTS_AT_A_TIME,
) -> DocumentMarks:
    """Marks every document whose text has occurred before.

    Hashes are dealt out to files by their first bits, and each file is sorted by itself: memory
    stays at a few hundred MiB plus a bit for each document.

    Args:
        tables: The tables of the scan, in order.
        documents: Rows in all of them.
        folder: Folder for the files, which are removed again.
        documents_at_a_time: About how many to sort at once.

    Raises:
        DataError: If the system refuses.
    """
    marks = DocumentMarks(documents)
    num_bits = max(0, (documents // documents_at_a_time).bit_length())
    paths = [folder / f"hashes-{number:04d}" for number in range(2**num_bits)]
    try:
        _deal_out(tables, paths, num_bits)
        for path in paths:
            with explaining("read", path):
                hashes = np.fromfile(path, _HASH)
            marks.add(_repeated(hashes))
    finally:
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return marks


def _deal_out(tables: Sequence[Path], paths: Sequence[Path], num_bits: int) -> None:
    for path in paths:
        with explaining("write", path):
            path.write_bytes(b"")
    number = 0
    for table in tables:
        for rows in read_rows(table):
            hashes = np.empty(len(rows), _HASH)
            hashes["high"], hashes["low"] = rows["text_high"], rows["text_low"]
            hashes["number"] = np.arange(number, number + len(rows), dtype=np.uint64)
            number += len(rows)
            buckets = (
                hashes["high"] >> np.uint64(64 - num_bits)
                if num_bits
                else np.zeros(len(rows), np.uint64)
            )
            for bucket in np.unique(buckets).tolist():
                path = paths[bucket]
                with explaining("write", path), path.open("ab") as stream:
                    stream.write(hashes[buckets == bucket].tobytes())


def _repeated(hashes: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Numbers of all documents but the first of each text; `hashes` are in order of number."""
    # A stable sort keeps equal ones in the order of the corpus.
    ordered = hashes[np.lexsort((hashes["low"], hashes["high"]))]
    same = (ordered["high"][1:] == ordered["high"][:-1]) & (
        ordered["low"][1:] == ordered["low"][:-1]
    )
    repeated: npt.NDArray[np.uint64] = ordered["number"][1:][same]
    return repeated
