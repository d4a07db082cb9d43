"""Recycled memory: never taken from anybody who still looks at it."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.reading.recycled_memory import RecycledMemory


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=80), seed=st.integers(0, 10**6))
def test_nobody_loses_what_he_holds(sizes: list[int], seed: int) -> None:
    """Whether it is held as array, as part of one, as memory view or as tensor."""
    memory, choose = RecycledMemory(), random.Random(seed)
    held: list[tuple[object, int]] = []
    for number, size in enumerate(sizes):
        array = memory.empty((size, 3), np.dtype("<u2"))
        assert array.shape == (size, 3)
        array[...] = number
        forms = (lambda a: a, lambda a: a[::2], lambda a: a.T.data, torch.from_numpy)
        held.append((choose.choice(forms)(array), number))
        del array
        while len(held) > choose.randrange(1, 20):
            held.pop(choose.randrange(len(held)))
        for value, expected in held:
            assert (np.asarray(value) == expected).all()


def test_memory_is_used_again() -> None:
    memory = RecycledMemory()
    places = set()
    for _ in range(100):
        array = memory.empty((1000,), np.dtype("<u4"))
        places.add(array.__array_interface__["data"][0])
        del array
    assert len(places) == 1
