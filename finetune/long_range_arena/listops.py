"""ListOps: nested operations on lists of digits, drawn at random together with their values.

The grammar is that of Nangia and Bowman (2018, arXiv 1804.06028), lengths and chances are those of
Long Range Arena (Tay et al. 2020, arXiv 2011.04006, and its published ``listops.py``): an argument
is an operation with probability 0.25 and else a digit; an operation has from 2 to 10 arguments,
each number as likely; arguments at depth 10 are digits, the outermost operation being at depth 1;
an expression counts one token for a digit and two for an operation (its name and its bracket), and
is kept if it has more than 500 and less than 2,000 of them.

Trees are drawn level by level, many at once; the law is the same as of drawing one after the
other. First come the shapes, since most are rejected for their length; digits and operators are
drawn for those that are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.errors import FinetuneError
from finetune.long_range_arena.vocabulary import FIRST_ID, OPERATORS, Ids

OPERATION_SHARE = 0.25
"""Of the arguments above the deepest level."""
_TREES_AT_ONCE = 2048
_BLOCKS_IN_VAIN = 100
"""Blocks in a row without a new expression after which there seem to be no more."""
_DIGITS = 10
_CLOSING = FIRST_ID + _DIGITS + len(OPERATORS)

Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ListOpsGrammar:
    """Which expressions are drawn; the defaults are Long Range Arena's.

    Raises:
        FinetuneError: A value is impossible.
    """

    longer_than_tokens: int = 500
    """Expressions have more tokens than this, brackets included."""
    shorter_than_tokens: int = 2000
    """And less than this."""
    max_depth: int = 10
    """Depth of the deepest digits; the outermost operation has depth 1."""
    max_arguments: int = 10
    """Of one operation; the least number is 2."""

    def __post_init__(self) -> None:
        for name, least in (
            ("longer_than_tokens", 1),
            ("shorter_than_tokens", self.longer_than_tokens + 2),
            ("max_depth", 2),
            ("max_arguments", 2),
        ):
            if getattr(self, name) < least:
                raise FinetuneError(f"{name} is {getattr(self, name)}: use {least} or more")


@dataclass(frozen=True)
class _Level:
    """All nodes of one depth, those of one parent side by side."""

    parents: Places
    """Of each node: its parent's place in the level above; of roots their own place."""
    num_arguments: Places
    """Of each node: how many; 0 makes it a digit."""


class _Chance:
    """Uniform numbers from the bits of PCG64, whose stream numpy promises never to change."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def shares(self, count: int) -> NDArray[np.float64]:
        """Numbers [count] from 0 to below 1."""
        raw: NDArray[np.uint64] = np.atleast_1d(self._bits.random_raw(count))
        shares: NDArray[np.float64] = (raw >> np.uint64(11)) * 2.0**-53
        return shares

    def choices(self, options: int, count: int) -> Places:
        """Numbers [count] from 0 to below `options`, all as likely."""
        return (self.shares(count) * options).astype(np.int64)


def draw_expressions(grammar: ListOpsGrammar, seed: int) -> Iterator[tuple[Ids, int]]:
    """Yield different expressions with their values, always the same ones for a seed.

    Args:
        grammar: Which ones.
        seed: From 0.

    Yields:
        Ids int16 [L] without parentheses or an end, and the value from 0 to 9.

    Raises:
        FinetuneError: The grammar has no more expressions, or hardly any.
    """
    chance = _Chance(seed)
    known: set[bytes] = set()
    in_vain = 0
    while in_vain < _BLOCKS_IN_VAIN:
        in_vain += 1
        levels = _draw_shapes(chance, grammar)
        for ids, value in _fill(chance, levels):
            digest = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
            if digest not in known:
                known.add(digest)
                in_vain = 0
                yield ids, value
    raise FinetuneError(
        f"{len(known):,} different expressions with more than {grammar.longer_than_tokens} and "
        f"less than {grammar.shorter_than_tokens} tokens were found, and no more; ask for fewer, "
        "or widen lengths, depth or arguments"
    )


def _draw_shapes(chance: _Chance, grammar: ListOpsGrammar) -> list[_Level]:
    """Draw the levels of trees of the right length, roots first, all of them operations.

    A root that is a digit would make an expression of one token, which is always too short, so
    that leaving it out changes no probability.
    """
    roots = np.arange(_TREES_AT_ONCE)
    levels = [_Level(roots, _draw_arguments(chance, grammar, _TREES_AT_ONCE))]
    trees = roots
    lengths = np.full(_TREES_AT_ONCE, 2)
    for depth in range(2, grammar.max_depth + 1):
        # A tree that is too long already need not grow: it is rejected in the end.
        growing = lengths[trees] < grammar.shorter_than_tokens
        above = np.where(growing, levels[-1].num_arguments, 0)
        parents = np.repeat(np.arange(len(above)), above)
        trees = trees[parents]
        num_arguments = np.zeros(len(parents), dtype=np.int64)
        if depth < grammar.max_depth:
            operations = chance.shares(len(parents)) < OPERATION_SHARE
            count = int(operations.sum())
            num_arguments[operations] = _draw_arguments(chance, grammar, count)
        tokens = np.where(num_arguments > 0, 2, 1)
        lengths += np.bincount(trees, tokens, minlength=len(lengths)).astype(np.int64)
        levels.append(_Level(parents, num_arguments))
    kept = (lengths > grammar.longer_than_tokens) & (lengths < grammar.shorter_than_tokens)
    return _keep_trees(levels, kept)


def _draw_arguments(chance: _Chance, grammar: ListOpsGrammar, count: int) -> Places:
    return 2 + chance.choices(grammar.max_arguments - 1, count)


def _keep_trees(levels: list[_Level], kept: NDArray[np.bool_]) -> list[_Level]:
    """Remove the trees of some roots from all levels."""
    left = [_Level(np.arange(int(kept.sum())), levels[0].num_arguments[kept])]
    for level in levels[1:]:
        places = np.cumsum(kept) - 1  # of each node above among those that are left
        kept = kept[level.parents]
        left.append(_Level(places[level.parents[kept]], level.num_arguments[kept]))
    return left


def _lengths(levels: list[_Level]) -> list[Places]:
    """Tokens of the expression below each node, by level."""
    found: list[Places] = []
    below: _Level | None = None
    for level in reversed(levels):
        lengths = np.where(level.num_arguments > 0, 2, 1)
        if below is not None:
            inner = np.bincount(below.parents, found[0], minlength=len(lengths))
            lengths = lengths + inner.astype(np.int64)
        found.insert(0, lengths)
        below = level
    return found


def _fill(chance: _Chance, levels: list[_Level]) -> Iterator[tuple[Ids, int]]:
    """Draw digits and operators, and write the trees out."""
    symbols = [
        np.where(
            level.num_arguments > 0,
            chance.choices(len(OPERATORS), len(level.parents)),
            chance.choices(_DIGITS, len(level.parents)),
        )
        for level in levels
    ]
    lengths = _lengths(levels)
    ids = np.empty(int(lengths[0].sum()), dtype=np.int16)
    starts = np.cumsum(lengths[0]) - lengths[0]
    rows = np.append(starts, len(ids))
    for depth, (level, drawn) in enumerate(zip(levels, symbols, strict=True)):
        if depth:
            before = np.cumsum(lengths[depth]) - lengths[depth]
            first = _firsts(levels[depth - 1])[level.parents]
            starts = starts[level.parents] + 1 + before - before[first]
        operations = level.num_arguments > 0
        ids[starts] = FIRST_ID + drawn + np.where(operations, _DIGITS, 0)
        ids[(starts + lengths[depth] - 1)[operations]] = _CLOSING
    for row, value in enumerate(_values(levels, symbols).tolist()):
        yield ids[rows[row] : rows[row + 1]], value


def _firsts(level: _Level) -> Places:
    """Place of each node's first argument in the level below."""
    return np.cumsum(level.num_arguments) - level.num_arguments


def _values(levels: list[_Level], symbols: list[Places]) -> Places:
    """Values of the roots, from the deepest level up."""
    values = symbols[-1]
    for depth in range(len(levels) - 2, -1, -1):
        level, below = levels[depth], levels[depth + 1]
        nodes = np.flatnonzero(level.num_arguments)
        firsts, counts = _firsts(level)[nodes], level.num_arguments[nodes]
        ranked = values[np.lexsort((values, below.parents))]
        sums = np.bincount(below.parents, values, minlength=len(level.parents)).astype(np.int64)
        medians = (ranked[firsts + (counts - 1) // 2] + ranked[firsts + counts // 2]) // 2
        # In the order of OPERATORS.
        results = np.stack(
            [ranked[firsts], ranked[firsts + counts - 1], medians, sums[nodes] % _DIGITS]
        )
        values = symbols[depth].copy()
        values[nodes] = results[symbols[depth][nodes], np.arange(len(nodes))]
    return values
