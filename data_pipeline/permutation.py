"""Random numbers and permutations as pure integer functions of a key.

Nothing here keeps a state or depends on numpy's generators, so values never change between
versions of numpy, between machines, or with the number of processes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError

IntegerArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]

NUM_ROUNDS = 6
# Values up to here keep every sum and product below 2**64.
MAXIMUM_SIZE = 2**62

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)


def splitmix64(values: KeyArray) -> KeyArray:
    """Scrambles 64-bit integers, one to one.

    Args:
        values: Any shape of at least one dimension (numpy warns of scalar overflow only).

    Returns:
        The same shape.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, the
    output function of SplitMix64.
    """
    mixed: KeyArray = values + _GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST_MULTIPLIER
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND_MULTIPLIER
    mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def check_seed(seed: int) -> int:
    """Returns `seed`, or raises `DataError` where it is not an integer in [0, 2**63)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise DataError(f"seed must be an integer from 0 to 2**63 - 1, not {seed!r}")
    return seed


def derive_keys(seed: int, purpose: int, counters: npt.ArrayLike = 0) -> KeyArray:
    """Independent keys, one for each counter.

    Args:
        seed: The user's seed.
        purpose: A small constant that keeps uses of the same seed apart.
        counters: Non-negative integers below 2**63, any shape.

    Returns:
        Keys of the counters' shape, of at least one dimension.

    Raises:
        DataError: If the seed is out of range.
    """
    numbers = np.atleast_1d(np.asarray(counters)).astype(np.uint64)
    base = splitmix64(np.array([check_seed(seed)], dtype=np.uint64))
    base = splitmix64(base ^ np.uint64(purpose))
    return splitmix64(base + splitmix64(numbers))


def mix_keys(keys: KeyArray, numbers: npt.ArrayLike) -> KeyArray:
    """New keys, one for each pair of a key and a number.

    Args:
        keys: Any shape of at least one dimension.
        numbers: Non-negative integers that broadcast against `keys`.

    Returns:
        Keys of the broadcast shape.
    """
    return splitmix64(keys ^ splitmix64(np.atleast_1d(np.asarray(numbers)).astype(np.uint64)))


def permute(positions: npt.ArrayLike, sizes: npt.ArrayLike, keys: KeyArray) -> IntegerArray:
    """Where a keyed random permutation of [0, size) puts each position, without any table.

    A Feistel network over Z_a x Z_b with a, b about sqrt(size) permutes [0, a*b); positions that
    land outside [0, size) walk on along their cycle until they land inside (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002, methods "generalized Feistel" and "cycle
    walking"). Fewer than sqrt(size) of the values lie outside, so one step nearly always suffices.

    Args:
        positions: Integers in [0, size), any shape.
        sizes: Numbers of elements, 1 to 2**62; broadcast against `positions`.
        keys: Broadcasts against `positions`; each element uses the permutation of its key.

    Returns:
        int64 of the broadcast shape.
    """
    return _walk(positions, sizes, keys, inverse=False)


def unpermute(values: npt.ArrayLike, sizes: npt.ArrayLike, keys: KeyArray) -> IntegerArray:
    """The inverse of `permute`: `unpermute(permute(x, n, k), n, k) == x`."""
    return _walk(values, sizes, keys, inverse=True)


def _walk(
    start: npt.ArrayLike, sizes: npt.ArrayLike, keys: KeyArray, *, inverse: bool
) -> IntegerArray:
    values, limits = np.asarray(start, dtype=np.uint64), np.asarray(sizes, dtype=np.uint64)
    shape = np.broadcast_shapes(values.shape, keys.shape, limits.shape)
    values = np.broadcast_to(values, shape)
    assert limits.min(initial=1) >= 1, limits
    assert limits.max(initial=1) <= MAXIMUM_SIZE, limits
    assert bool((values < limits).all()), "position outside the permutation"
    # Everything in its own shape, which is often much smaller than that of the positions.
    rows = _square_root(limits - np.uint64(1)) + np.uint64(1)
    columns = (limits + rows - np.uint64(1)) // rows
    round_keys = [splitmix64(keys ^ np.uint64(number)) for number in range(NUM_ROUNDS)]
    result = _network(values, rows, columns, round_keys, inverse=inverse)
    outside = result >= limits
    while outside.any():
        walking_keys = [np.broadcast_to(round_key, shape)[outside] for round_key in round_keys]
        result[outside] = _network(
            result[outside],
            np.broadcast_to(rows, shape)[outside],
            np.broadcast_to(columns, shape)[outside],
            walking_keys,
            inverse=inverse,
        )
        outside = result >= limits
    return result.astype(np.int64)


def _square_root(values: KeyArray) -> KeyArray:
    """Largest integers whose squares are not above `values`, which lie below 2**62."""
    roots = np.sqrt(values.astype(np.float64)).astype(np.uint64)
    # The floating-point root is off by one at most.
    roots = roots - (roots * roots > values)
    following = roots + np.uint64(1)
    result: KeyArray = np.where(following * following <= values, following, roots)
    return result


def _network(
    values: KeyArray,
    num_rows: KeyArray,
    num_columns: KeyArray,
    round_keys: list[KeyArray],
    *,
    inverse: bool,
) -> KeyArray:
    row = values // num_columns
    column = values - row * num_columns
    for number in reversed(range(NUM_ROUNDS)) if inverse else range(NUM_ROUNDS):
        if number % 2 == 0:
            shift = splitmix64(round_keys[number] ^ column) % num_rows
            row = (row + (num_rows - shift if inverse else shift)) % num_rows
        else:
            shift = splitmix64(round_keys[number] ^ row) % num_columns
            column = (column + (num_columns - shift if inverse else shift)) % num_columns
    result: KeyArray = row * num_columns + column
    return result
