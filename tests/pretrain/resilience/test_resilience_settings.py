"""Limits that contradict one another are refused in one line; time asleep is no time."""

from __future__ import annotations

import time

import pytest
from pydantic import ValidationError

from pretrain.resilience.awake_time import AwakeClock
from pretrain.resilience.settings import ResilienceSettings


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"watchdog": {"first_step_seconds": 10, "step_seconds": 20}}, "the first step takes"),
        ({"liveness": {"beat_seconds": 10, "silence_seconds": 20}}, "three times"),
        ({"stop": {"wall_clock_seconds": 0}}, "greater than 0"),
        ({"stop": {"wall_clock_seconds": float("nan")}}, "finite"),
        ({"watchdog": {"step_seconds": float("inf")}}, "finite"),
        ({"watchdog": {"limit": 1}}, "Extra inputs"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint) as caught:
        ResilienceSettings.model_validate(settings)
    assert len(caught.value.errors()) == 1
    assert "\n" not in caught.value.errors()[0]["msg"]


def test_the_defaults_end_a_run_within_half_a_minute() -> None:
    liveness = ResilienceSettings().liveness
    assert liveness.silence_seconds + 3 * liveness.beat_seconds <= 25


def test_time_asleep_does_not_count() -> None:
    clock = AwakeClock(0.05)
    clock.seconds()
    time.sleep(0.5)
    assert clock.seconds() <= 0.11
    began = time.monotonic()
    start = clock.seconds()
    for _ in range(20):
        time.sleep(0.02)
        clock.seconds()
    assert clock.seconds() - start == pytest.approx(time.monotonic() - began, abs=0.15)
