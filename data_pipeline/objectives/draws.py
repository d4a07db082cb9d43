"""Random cuts of many rows at once, each row a pure function of its own key.

Everything is integer arithmetic, so the draws are the same on every machine and for every version
of numpy, whatever rows stand beside them. Rounds work in 32 bits, which vector units do four to
eight times as fast as 64.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_pipeline.permutation import IntegerArray, KeyArray, splitmix64

WordArray = npt.NDArray[np.uint32]

# Six leave small windows up to a few per cent from uniform, as the tests would notice.
NUM_ROUNDS = 8
# Larger windows would overflow the products of 32 bits in `_shift`.
MAXIMUM_TOKENS = 2**20

# Found by search for good avalanche: C. Wellons, "Prospecting for hash functions", 2018.
_FIRST_MULTIPLIER = np.uint32(0x7FEB352D)
_SECOND_MULTIPLIER = np.uint32(0x846CA68B)


def derive(keys: KeyArray, purpose: int) -> KeyArray:
    """Keys [n] that have nothing to do with those of other purposes."""
    return splitmix64(keys ^ splitmix64(np.array([purpose], dtype=np.uint64)))


def below(bounds: IntegerArray, keys: KeyArray) -> IntegerArray:
    """A number in [0, bound) for each key, uniform to within 2**-32 of the bound.

    Args:
        bounds: int64 [n], 1 to 2**31.
        keys: uint64 [n], each used for nothing else.

    Returns:
        int64 [n].
    """
    products: KeyArray = (keys >> np.uint64(32)) * bounds.astype(np.uint64)
    numbers: IntegerArray = (products >> np.uint64(32)).astype(np.int64)
    return numbers


def random_lengths(totals: IntegerArray, parts: IntegerArray, keys: KeyArray) -> IntegerArray:
    """Cuts each total into positive lengths, uniformly over all ways to do so.

    The cuts are the first places of a random permutation of all places, so they are distinct
    without drawing for every place.

    Args:
        totals: int64 [n], below `MAXIMUM_TOKENS`.
        parts: int64 [n] of at most `totals`; 1 where the total is 0.
        keys: uint64 [n], each used for nothing else.

    Returns:
        int64 [n, most parts], zeros behind a row's parts.
    """
    most_parts = int(parts.max(initial=1))
    bounds = np.zeros((len(totals), most_parts + 1), dtype=np.int64)
    bounds[:, 1:] = totals[:, None]
    if most_parts > 1:
        places = np.maximum(totals - 1, 1)
        cuts = _first_places(places, parts - 1, most_parts - 1, keys)
        bounds[:, 1:-1] = np.minimum(cuts + 1, totals[:, None])
    return np.diff(bounds, axis=1)


def _first_places(
    sizes: IntegerArray, counts: IntegerArray, most: int, keys: KeyArray
) -> npt.NDArray[np.int32]:
    """The first `counts` values of a random permutation of [0, size), sorted: [n, most].

    What stands behind a row's count is not below its size.

    A Feistel network over Z_a x Z_b permutes [0, a*b) (Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002). Values that lie outside [0, size) are passed over; `_grid` takes care
    that there are hardly any, and as many more are drawn.
    """
    distinct, inverse = np.unique(sizes, return_inverse=True)
    grids = np.array([_grid(size) for size in distinct.tolist()], dtype=np.uint32)[inverse]
    rows, columns = grids[:, :1], grids[:, 1:]
    excess = rows[:, 0].astype(np.int64) * columns[:, 0] - sizes
    most_excess = int(excess.max(initial=0))
    positions = np.arange(most + most_excess, dtype=np.uint32)
    row = positions // columns
    column = positions - row * columns
    # Positions that a small row does not have repeat its first ones, and are not kept.
    row %= rows
    _network(row, column, rows, columns, keys)
    values = (row * columns + column).astype(np.int32)
    kept = values < sizes[:, None].astype(np.int32)
    rank = np.cumsum(kept, axis=1, dtype=np.int32) if most_excess else positions + 1
    kept &= rank <= counts[:, None]
    values[~kept] = MAXIMUM_TOKENS
    values.sort(axis=1)
    return values[:, :most]


@lru_cache(maxsize=65536)
def _grid(size: int) -> tuple[int, int]:
    """A nearly square a x b with at least `size` places and few more.

    The narrower a grid, the worse it mixes; so of small ones only the squarest is taken.
    """
    root = math.isqrt(size - 1) + 1
    candidates = range(root, root - 1 - root // 8, -1)
    rows = min(candidates, key=lambda rows: -size % rows)
    return rows, -(-size // rows)


def _network(
    row: WordArray, column: WordArray, rows: WordArray, columns: WordArray, keys: KeyArray
) -> None:
    """Permutes places of a grid, in place."""
    for number in range(0, NUM_ROUNDS, 2):
        words = splitmix64(keys + np.uint64(number))[:, None]
        low, high = words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32)
        _shift(row, column ^ low, rows)
        _shift(column, row ^ high, columns)


def _shift(values: WordArray, words: WordArray, size: WordArray) -> None:
    """Adds scrambled `words` to `values`, modulo `size`, in place.

    Multiply, fold, multiply: the words already are a key with a few bits changed, and only the
    upper bits of the result are used.
    """
    words *= _FIRST_MULTIPLIER
    scratch = words >> np.uint32(15)
    words ^= scratch
    words *= _SECOND_MULTIPLIER
    # Sizes have at most 11 bits, so words get 21.
    words >>= np.uint32(11)
    words *= size
    words >>= np.uint32(21)
    values += words
    # Where the sum is below the size, the difference wraps around to something huge.
    np.subtract(values, size, out=scratch)
    np.minimum(values, scratch, out=values)
