"""Every schedule rises linearly, stays in (0, 1], ends where it says, and remembers nothing."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretrain.optimization.schedules import learning_rate_factor
from pretrain.optimization.settings import ScheduleKind, ScheduleSettings

KINDS = get_args(ScheduleKind)
TOKENS_OF_A_STEP = 64


def schedule(kind: str, warmup: int, decay: int = 0, ratio: float = 0.1) -> ScheduleSettings:
    return ScheduleSettings(
        kind=kind,  # type: ignore[arg-type]
        warmup_steps=warmup,
        decay_steps=decay if kind == "wsd" else 0,
        final_ratio=ratio,
    )


def factor(settings: ScheduleSettings, step: int, total: int) -> float:
    """Of a step, counted from 1, where all updates were applied and are of one size."""
    return learning_rate_factor(
        settings, updates=step - 1, tokens_seen=step * TOKENS_OF_A_STEP, max_steps=total
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
def test_factor_is_between_zero_and_one_and_falls_after_the_warmup(
    kind: str, plan: tuple[int, int, int], ratio: float, data: Any
) -> None:
    total, warmup, decay = plan
    settings = schedule(kind, warmup, decay, ratio)
    step = data.draw(st.integers(1, total))
    here = factor(settings, step, total)
    assert 0 <= here <= 1
    if step <= warmup:
        assert here == step / warmup
    elif step < total:
        assert factor(settings, step + 1, total) <= here + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@given(warmup=st.integers(1, 100_000), total=st.integers(2, 2000), data=st.data())
def test_a_warmup_in_tokens_rises_with_the_tokens_and_not_with_the_steps(
    kind: str, warmup: int, total: int, data: Any
) -> None:
    settings = ScheduleSettings(
        kind=kind,  # type: ignore[arg-type]
        warmup_tokens=warmup,
        decay_steps=1 if kind == "wsd" else 0,
    )
    tokens = data.draw(st.integers(1, 2 * warmup))
    here = learning_rate_factor(settings, updates=0, tokens_seen=tokens, max_steps=total)
    assert 0 < here <= min(1.0, tokens / warmup)
    if kind == "constant":
        assert here == min(1.0, tokens / warmup)
    if kind == "inverse_sqrt" and tokens >= warmup:
        assert here == math.sqrt(warmup / tokens)


def test_both_warmups_agree_where_all_steps_are_of_one_size() -> None:
    """Up to the end of the warm-up for all kinds that do not fall meanwhile."""
    for kind in ("constant", "inverse_sqrt"):
        in_steps = schedule(kind, 50)
        in_tokens = ScheduleSettings(kind=kind, warmup_tokens=50 * TOKENS_OF_A_STEP)
        for step in range(1, 500):
            assert math.isclose(factor(in_steps, step, 500), factor(in_tokens, step, 500))


def test_a_skipped_step_does_not_move_the_schedule() -> None:
    settings = schedule("cosine", 10)
    here = learning_rate_factor(settings, updates=40, tokens_seen=1000, max_steps=100)
    later = learning_rate_factor(settings, updates=40, tokens_seen=2000, max_steps=100)
    assert (
        here == later != learning_rate_factor(settings, updates=41, tokens_seen=2000, max_steps=100)
    )


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
@given(plan=plans, ratio=st.floats(0.0, 1.0), in_tokens=st.booleans())
def test_cosine_and_wsd_end_at_the_final_ratio(
    kind: str, plan: tuple[int, int, int], ratio: float, in_tokens: bool
) -> None:
    total, warmup, decay = plan
    settings = schedule(kind, warmup, decay, ratio)
    if in_tokens:
        settings = settings.model_copy(
            update={"warmup_steps": None, "warmup_tokens": max(1, warmup) * TOKENS_OF_A_STEP}
        )
    assert factor(settings, total, total) == pytest.approx(ratio)


def test_wsd_is_stable_until_its_decay() -> None:
    settings = schedule("wsd", 10, 20)
    assert {factor(settings, step, 100) for step in range(10, 81)} == {1.0}
    assert factor(settings, 90, 100) == pytest.approx(0.55)


def test_inverse_sqrt_halves_when_the_step_quadruples() -> None:
    settings = schedule("inverse_sqrt", 100)
    assert factor(settings, 400, 10_000) == pytest.approx(0.5)
    assert math.isclose(factor(settings, 100, 10_000), 1.0)


def test_constant_is_one_after_its_warmup() -> None:
    assert {factor(schedule("constant", 10), step, 100) for step in range(10, 101)} == {1.0}


def test_the_warmup_is_a_hundred_steps_where_nothing_is_said() -> None:
    assert factor(ScheduleSettings(), 50, 1000) == 0.5
    assert ScheduleSettings(warmup_tokens=5).steps_of_warmup() == 0


def test_negative_updates_are_refused() -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        factor(schedule("cosine", 1), 0, 10)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"warmup_steps": 5, "warmup_tokens": 5}, "keep one of them"),
        ({"kind": "wsd"}, "schedule.decay_steps is 0"),
        ({"kind": "constant", "decay_steps": 5}, "only kind: wsd"),
        ({"warmup_tokens": 0}, "warmup_tokens"),
    ],
)
def test_impossible_schedules_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ScheduleSettings(**values)


def test_what_is_written_out_can_be_read_again() -> None:
    for settings in (ScheduleSettings(), ScheduleSettings(warmup_tokens=7)):
        assert ScheduleSettings(**settings.model_dump()) == settings
