"""The guard finds spikes, is quiet in noise, and a resumed one judges as one that went on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pretrain.optimization.settings import SpikeSettings
from pretrain.optimization.spikes import Decision, SpikeGuard, is_calm, roll_back_or_abort

DEFAULTS = SpikeSettings()
Noise = Callable[[random.Random], float]


def laplace(source: random.Random) -> float:
    """Of unit variance; its tails fall as an exponential."""
    return source.expovariate(math.sqrt(2)) * source.choice((-1, 1))


def outliers(source: random.Random) -> float:
    """Normal, but every hundredth is three times as wide."""
    return source.gauss(0, 3 if source.random() < 0.01 else 1)


def step_of(
    step: int, source: random.Random, noise: Noise, norm_noise: float = 0.15
) -> tuple[float, float]:
    """Loss and gradient norm of a run that learns: fast at first, slowly later."""
    level = 2.0 + 8.0 * math.exp(-step / 150) + 1.5 / math.sqrt(1 + step / 100)
    loss = level * (1 + 0.03 * noise(source))
    norm = (0.3 + 3 * math.exp(-step / 100)) * math.exp(norm_noise * noise(source))
    return loss, norm


def feed(guard: SpikeGuard, loss: float, norm: float) -> Decision:
    """Apply a step as the engine would."""
    applied = math.isfinite(norm) and norm <= guard.norm_limit_for(loss)
    return guard.judge(loss, norm, applied)


def warm_guard(steps: int = 200, seed: int = 0, **changes: Any) -> SpikeGuard:
    guard = SpikeGuard(SpikeSettings(**changes))
    source = random.Random(seed)
    for step in range(steps):
        assert feed(guard, *step_of(step, source, laplace)).action == "apply"
    return guard


@pytest.mark.parametrize("noise", [laplace, outliers])
def test_no_false_alarm_in_ten_thousand_noisy_steps(noise: Noise) -> None:
    guard, source = SpikeGuard(DEFAULTS), random.Random(1)
    for step in range(10_000):
        decision = feed(guard, *step_of(step, source, noise))
        assert decision == Decision("apply", ""), f"step {step}: {decision}"


def test_tenfold_spikes_are_all_skipped_and_nothing_around_them() -> None:
    """Of the norm where its own noise is a tenth and its level is steady: a fast fall counts as
    noise. Beyond that, clipping is what holds."""
    guard, source = SpikeGuard(DEFAULTS), random.Random(2)
    caught = {"loss": 0, "norm": 0}
    for step in range(3000):
        loss, norm = step_of(step, source, random.Random.normalvariate, norm_noise=0.1)
        spiked = ""
        if step % 200 == 100 and step > 200:
            spiked = "loss"
        elif step % 200 == 50 and step > 500:
            spiked = "norm"
        decision = feed(
            guard, loss * (10 if spiked == "loss" else 1), norm * (10 if spiked == "norm" else 1)
        )
        assert decision.action == ("skip" if spiked else "apply"), f"step {step}: {decision}"
        if spiked:
            caught[spiked] += 1
            assert ("loss" if spiked == "loss" else "gradient norm") in decision.reason
    assert min(caught.values()) > 10


def test_nothing_finite_is_judged_before_there_is_history() -> None:
    guard = warm_guard(DEFAULTS.minimum_history_steps - 1)
    assert guard.loss_limit() == guard.norm_limit() == math.inf
    assert feed(guard, 1e6, 1e6).action == "apply"
    assert guard.loss_limit() < math.inf


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_never_applied(loss: float) -> None:
    for guard in (SpikeGuard(DEFAULTS), warm_guard(), SpikeGuard(SpikeSettings(enabled=False))):
        assert guard.norm_limit_for(loss) == -1
        decision = feed(guard, loss, 1.0)
        assert decision.action == "skip"
        assert str(loss) in decision.reason


def test_the_limits_say_beforehand_what_is_skipped() -> None:
    guard = warm_guard()
    loss, norm = guard.loss_limit(), guard.norm_limit()
    assert feed(guard, math.nextafter(loss, math.inf), 0.3).action == "skip"
    assert feed(guard, 2.5, math.nextafter(norm, math.inf)).action == "skip"
    assert feed(guard, loss, norm).action == "apply"


def test_skipped_steps_are_no_history() -> None:
    guard = warm_guard()
    before = guard.to_json()
    feed(guard, 1000.0, 1.0)
    after = guard.to_json()
    assert (after["losses"], after["log_norms"]) == (before["losses"], before["log_norms"])


def test_a_spike_that_stays_makes_the_run_go_back() -> None:
    guard = warm_guard()
    actions = []
    for _ in range(DEFAULTS.patience):
        assert is_calm(guard.to_json()) == guard.calm == (not actions)
        actions.append(feed(guard, 50.0, 5.0).action)
    assert actions == ["skip"] * (DEFAULTS.patience - 1) + ["roll_back"]


def test_a_level_that_is_raised_but_below_the_limit_makes_the_run_go_back() -> None:
    guard = warm_guard()
    level = sorted(guard.to_json()["losses"])[-1]
    raised = level + 0.7 * (guard.loss_limit() - level)
    decisions = [feed(guard, raised, 0.3) for _ in range(DEFAULTS.patience)]
    assert [decision.action for decision in decisions] == ["apply"] * (DEFAULTS.patience - 1) + [
        "roll_back"
    ]


def test_single_spikes_with_calm_between_never_make_it_go_back() -> None:
    guard, source = warm_guard(), random.Random(3)
    for step in range(300, 400):
        assert feed(guard, 50.0, 0.3).action == "skip"
        assert feed(guard, *step_of(step, source, laplace)).action == "apply"
        assert guard.calm


def test_gradients_that_overflow_under_a_usual_loss_end_the_run_but_roll_nothing_back() -> None:
    guard = warm_guard()
    actions = [feed(guard, 2.5, math.inf).action for _ in range(DEFAULTS.max_skips_in_row)]
    assert actions == ["skip"] * (DEFAULTS.max_skips_in_row - 1) + ["abort"]
    assert guard.calm


def test_switched_off_it_skips_what_is_not_finite_and_gives_up_on_it() -> None:
    guard = warm_guard(enabled=False, max_skips_in_row=7)
    assert feed(guard, 1e9, 1e9).action == "apply"
    actions = [feed(guard, math.nan, math.nan).action for _ in range(7)]
    assert actions == ["skip"] * 6 + ["abort"]


def test_after_too_many_roll_backs_to_one_checkpoint_the_run_gives_up() -> None:
    decision = Decision("roll_back", "loss 9 is above 3")
    for done in range(DEFAULTS.max_roll_backs):
        assert roll_back_or_abort(decision, done, DEFAULTS) == decision
    last = roll_back_or_abort(decision, DEFAULTS.max_roll_backs, DEFAULTS)
    assert last.action == "abort"
    assert "z_threshold" in last.reason


def test_a_new_stage_begins_a_new_history_where_a_resumed_run_does_too() -> None:
    guard = SpikeGuard(DEFAULTS)
    source = random.Random(0)
    for step in range(200):
        guard.enter(8, 512)
        assert feed(guard, *step_of(step, source, laplace)).action == "apply"
    resumed = SpikeGuard(DEFAULTS, guard.to_json())
    for each in (guard, resumed):
        each.enter(8, 512)
        assert feed(each, 50.0, 50.0).action == "skip"
        each.enter(8, 1024)
        assert feed(each, 50.0, 50.0).action == "apply"
    assert guard.to_json() == resumed.to_json()


numbers = st.floats(1e-6, 1e6) | st.sampled_from([math.nan, math.inf, 0.0])


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=80),
    cut=st.integers(0, 80),
)
def test_a_guard_from_json_judges_as_the_one_that_went_on(
    steps: list[tuple[float, float]], cut: int
) -> None:
    few = SpikeSettings(window_steps=16, minimum_history_steps=8, max_roll_backs=1)
    guard = SpikeGuard(few)
    resumed: SpikeGuard | None = None
    for number, (loss, norm) in enumerate(steps):
        if number == cut:
            resumed = SpikeGuard(few, json.loads(json.dumps(guard.to_json(), allow_nan=False)))
        decision = feed(guard, loss, norm)
        if resumed is not None:
            assert feed(resumed, loss, norm) == decision
            assert resumed.to_json() == guard.to_json()
            assert resumed.loss_limit() == guard.loss_limit()
            assert resumed.norm_limit() == guard.norm_limit()
        if decision.action == "apply":
            assert math.isfinite(loss + norm)


@pytest.mark.parametrize(
    "damage",
    [
        {"losses": None},
        {"losses": [1.0]},
        {"losses": ["1"], "log_norms": [1.0]},
        {"losses": [math.nan], "log_norms": [1.0]},
        {"trouble_in_row": -1},
        {"skips_in_row": 1.5},
        {"stage": [1]},
        {"stage": None},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="state of the spike guard is damaged"):
        SpikeGuard(DEFAULTS, SpikeGuard(DEFAULTS).to_json() | damage)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"window_steps": 10}, "minimum_history_steps 64 exceeds spikes.window_steps 10"),
        ({"patience": 30}, "spikes.patience 30 exceeds spikes.max_skips_in_row 20"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SpikeSettings(**values)
