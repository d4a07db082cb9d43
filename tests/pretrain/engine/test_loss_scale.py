"""The scale of the loss: found within a few steps, a power of two, the same after a resume."""

from __future__ import annotations

import math
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from pretrain.engine.loss_scale import LossScale


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 60))
def test_it_is_a_function_of_what_happened(overflows: list[bool], cut: int) -> None:
    whole = LossScale.for_precision("fp16")
    resumed = LossScale.for_precision("fp16")
    for number, overflow in enumerate(overflows):
        if number == cut:
            resumed = LossScale.continued(asdict(resumed), "fp16")
        whole.note(overflow=overflow)
        resumed.note(overflow=overflow)
        assert 1 <= whole.scale <= 2.0**24
        assert math.log2(whole.scale).is_integer()
    assert whole == resumed


def test_it_falls_at_once_and_rises_slowly() -> None:
    scale = LossScale.for_precision("fp16")
    scale.note(overflow=True)
    assert scale.scale == 2.0**15
    for _ in range(999):
        scale.note(overflow=False)
    assert scale.scale == 2.0**15
    scale.note(overflow=False)
    assert scale.scale == 2.0**16


def test_other_precisions_have_none() -> None:
    scale = LossScale.for_precision("bf16")
    for overflow in (True, False) * 1000:
        scale.note(overflow=overflow)
    assert scale.scale == 1.0
    fresh = LossScale.for_precision("fp16")
    assert LossScale.continued(asdict(scale), "fp16") == fresh
    assert LossScale.continued(asdict(fresh), "bf16") == LossScale.for_precision("bf16")
