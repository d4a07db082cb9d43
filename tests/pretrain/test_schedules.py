"""Every schedule rises linearly, stays in (0, 1], and ends where it says."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.optimization.schedules import ScheduleKind, learning_rate_factor

KINDS = get_args(ScheduleKind)


def factor(kind: ScheduleKind, step: int, warmup: int, total: int, decay: int, ratio: float):
    return learning_rate_factor(
        kind, step, warmup_steps=warmup, max_steps=total, decay_steps=decay, final_ratio=ratio
    )


plans = st.integers(2, 2000).flatmap(
    lambda total: st.integers(0, total - 1).flatmap(
        lambda warmup: st.tuples(
            st.just(total), st.just(warmup), st.integers(1, max(1, total - warmup))
        )
    )
)


@pytest.mark.parametrize("kind", KINDS)
@given(plan=plans, ratio=st.floats(0.0, 1.0), data=st.data())
def test_factor_is_between_zero_and_one_and_falls_after_the_warmup(kind, plan, ratio, data):
    total, warmup, decay = plan
    step = data.draw(st.integers(1, total))
    here = factor(kind, step, warmup, total, decay, ratio)
    assert 0 <= here <= 1
    if step <= warmup:
        assert here == step / warmup
    elif step < total:
        assert factor(kind, step + 1, warmup, total, decay, ratio) <= here + 1e-12


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@given(plan=plans, ratio=st.floats(0.0, 1.0))
def test_cosine_and_wsd_end_at_the_final_ratio(kind, plan, ratio):
    total, warmup, decay = plan
    assert factor(kind, total, warmup, total, decay, ratio) == pytest.approx(ratio)


def test_wsd_is_stable_until_its_decay():
    values = [factor("wsd", step, 10, 100, 20, 0.1) for step in range(10, 81)]
    assert set(values) == {1.0}
    assert factor("wsd", 90, 10, 100, 20, 0.1) == pytest.approx(0.55)


def test_inverse_sqrt_halves_when_the_step_quadruples():
    assert factor("inverse_sqrt", 400, 100, 10_000, 0, 0.0) == pytest.approx(0.5)
    assert math.isclose(factor("inverse_sqrt", 100, 100, 10_000, 0, 0.0), 1.0)


def test_step_zero_is_refused():
    with pytest.raises(ValueError, match="counted from 1"):
        factor("cosine", 0, 1, 10, 0, 0.1)
