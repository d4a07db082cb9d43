"""When ranks that failed are started again: the rules, without any rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.restarts import Restarts

FAILURES = st.sampled_from([1, 7, 81, 82, 134, 137, -9])


@pytest.mark.parametrize("code", [0, 75, 2, 130, 143])
def test_what_is_no_failure_is_not_restarted(code: int) -> None:
    assert not Restarts(5, -1).decide(code, 10, asked_to_stop=False).restart


@given(FAILURES, st.integers(-1, 100))
def test_nothing_is_restarted_against_a_request_or_unasked(code: int, step: int) -> None:
    assert not Restarts(5, -1).decide(code, step, asked_to_stop=True).restart
    assert not Restarts(0, -1).decide(code, step, asked_to_stop=False).restart


@given(st.lists(FAILURES, min_size=1, max_size=60), st.integers(1, 5))
def test_progress_gives_all_tries_back(codes: list[int], allowed: int) -> None:
    """A run that gets further between any two failures never ends by them."""
    restarts = Restarts(allowed, -1)
    for step, code in enumerate(codes):
        decision = restarts.decide(code, step, asked_to_stop=False)
        assert (decision.restart, decision.wait_seconds) == (True, 1.0)
        assert f"step {step}:" in decision.say
        assert str(code) in decision.say
    assert restarts.total == len(codes)


@given(st.lists(FAILURES.filter(lambda code: code != 1), min_size=12, max_size=12))
def test_without_progress_it_waits_longer_and_then_gives_up(codes: list[int]) -> None:
    restarts = Restarts(9, 40)
    decisions = [restarts.decide(code, 40, asked_to_stop=False) for code in codes]
    waits = [decision.wait_seconds for decision in decisions if decision.restart]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all("no newer checkpoint" in decision.say for decision in decisions[9:])


def test_an_error_of_the_run_itself_is_tried_twice() -> None:
    restarts = Restarts(9, -1)
    assert restarts.decide(1, -1, asked_to_stop=False).restart
    assert not restarts.decide(1, -1, asked_to_stop=False).restart


def test_an_error_of_the_run_itself_may_come_again_further_on() -> None:
    restarts = Restarts(9, -1)
    for code, step in ((1, -1), (137, -1), (1, -1), (1, 10)):
        assert restarts.decide(code, step, asked_to_stop=False).restart
