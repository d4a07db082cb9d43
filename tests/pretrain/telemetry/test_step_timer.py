"""Where a step's time goes: parts within parts, collectives, the slowest rank."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from python_processes import ForkedProcess
from telemetry_rank import SLOWNESS_SECONDS, WIDTH

from pretrain.telemetry.rank_facts import OWN_SECONDS, straggler_line, summarize_rank_facts
from pretrain.telemetry.step_timer import PARTS, StepTimer

NAP = 0.02


def test_the_time_of_an_inner_part_is_not_counted_twice() -> None:
    timer = StepTimer(torch.device("cpu"))
    start = time.perf_counter()
    for _ in range(2):
        with timer.part("backward"):
            time.sleep(NAP)
            with timer.part("communication"):
                time.sleep(2 * NAP)
                with timer.part("data"):
                    time.sleep(NAP)
            time.sleep(NAP)
        time.sleep(NAP)
        timer.step_done()
    found = timer.take()
    wall = (time.perf_counter() - start) / 2
    assert set(found) == {f"time/{name}_seconds" for name in (*PARTS, "other")}
    assert sum(found.values()) == pytest.approx(wall, rel=0.02)
    for name, naps in {"backward": 2, "communication": 2, "data": 1, "other": 1}.items():
        assert naps * NAP <= found[f"time/{name}_seconds"]
    assert timer.own_seconds == pytest.approx(
        found["time/backward_seconds"] + found["time/data_seconds"]
    )
    assert sum(timer.take().values()) < NAP, "counted anew"


def test_a_part_that_fails_is_closed_and_other_threads_do_not_count() -> None:
    timer = StepTimer(torch.device("cpu"))

    def elsewhere() -> None:
        with timer.part("communication"):
            time.sleep(NAP)

    with pytest.raises(KeyError), timer.part("forward"), timer.part("data"):
        raise KeyError
    thread = threading.Thread(target=elsewhere)
    with timer.part("optimizer"):
        thread.start()
        thread.join()
    timer.step_done()
    found = timer.take()
    assert found["time/optimizer_seconds"] >= NAP
    assert found["time/communication_seconds"] == 0


def test_a_part_costs_microseconds() -> None:
    timer = StepTimer(torch.device("cpu"))
    start = time.perf_counter()
    for _ in range(1000):
        with timer.part("forward"):
            pass
    assert (time.perf_counter() - start) / 1000 < 200e-6


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Ten steps on two ranks of which the second is slow, under ZeRO 2 and 3."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).resolve().parents[2] / "support" / "telemetry_rank.py"
    processes = []
    for stage in (2, 3):
        for rank in range(2):
            environment = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "1",
                "PYTHONPATH": os.pathsep.join(["tests/support", "."]),
            }
            processes.append(
                ForkedProcess([str(script), str(folder), "10", str(stage)], environment)
            )
    for process in processes:
        assert process.wait(200) == 0, process.output
    return {
        stage: [
            json.loads((folder / f"{stage}-{rank}.json").read_text(encoding="utf-8"))
            for rank in range(2)
        ]
        for stage in (2, 3)
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_waiting_for_a_slow_rank_is_communication(
    two_ranks: dict[int, list[dict[str, Any]]], stage: int
) -> None:
    fast, slow = two_ranks[stage]
    assert fast["losses"] == slow["losses"], "the same batch"
    assert fast["untouched"]
    for record in (fast, slow):
        assert record["communication/calls"] >= 2
        # Gradients are reduced in float32 once a step: weights and biases of both layers.
        assert record["communication/bytes"] >= 4 * 2 * (WIDTH + 1) * WIDTH
    waited = [record["time/communication_seconds"] for record in (fast, slow)]
    assert waited[0] > waited[1] + SLOWNESS_SECONDS / 2
    assert slow["time/forward_seconds"] >= SLOWNESS_SECONDS
    own = fast["ranks"][OWN_SECONDS]
    assert own[1] > own[0] + SLOWNESS_SECONDS / 2
    assert slow["ranks"] is None
    summary = summarize_rank_facts(fast["ranks"])
    assert summary[f"{OWN_SECONDS}/max_rank"] == 1
    assert summary["memory/host_peak_bytes/mean"] > 2**20
    line = straggler_line(own, 20)
    assert line is not None
    assert line.startswith("rank 1 is slow: ")


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=9), st.floats(1, 300))
def test_only_a_rank_beyond_the_limit_is_named(seconds: list[float], percent: float) -> None:
    line = straggler_line(seconds, percent)
    middle = sorted(seconds)[(len(seconds) - 1) // 2]
    if line is None:
        assert len(seconds) == 1 or max(seconds) <= middle * (1 + percent / 100)
    else:
        assert max(seconds) > middle * (1 + percent / 100)
        named = int(line.split()[1])
        assert seconds[named] == max(seconds)
