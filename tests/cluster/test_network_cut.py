"""Ranks on two hosts, and the loss of the network between them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from machines.hosts import INTERFACE, Hosts, wait_for

from pretrain.resilience.ending import LOST_EXIT_CODE

SCRIPT = Path(__file__).parents[1] / "support" / "rank_in_trouble.py"

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def test_ranks_on_both_sides_of_a_cut_end_within_half_a_minute(
    hosts: Hosts, tmp_path: Path
) -> None:
    options = {
        "behaviour": ["train", "train"],
        "steps": 1_000_000,
        "timeout": 1800.0,
        "watchdog": {},
        "liveness": {},
    }
    ranks = [
        hosts.start(
            f"node{rank + 1}",
            *(sys.executable, str(SCRIPT), str(tmp_path), json.dumps(options)),
            environment={
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": hosts.address("node1"),
                "MASTER_PORT": "29500",
                "GLOO_SOCKET_IFNAME": INTERFACE,
            },
        )
        for rank in range(2)
    ]
    steps = [tmp_path / f"rank-{rank}-step-5" for rank in range(2)]
    wait_for(lambda: all(step.exists() for step in steps), 90, "both ranks to train")
    hosts.cut("node2")
    began = time.monotonic()
    codes = [rank.wait(30) for rank in ranks]
    seconds = time.monotonic() - began
    outputs = [rank.output for rank in ranks]
    assert codes == [LOST_EXIT_CODE] * 2, outputs
    assert 15 < seconds < 30
    for rank, output in enumerate(outputs):
        assert f"error: rank {rank}: rank {1 - rank} gave no sign of life for 20 s" in output
        stacks = (tmp_path / f"rank-{rank:05d}-stacks.txt").read_text()
        assert "all_reduce" in stacks
        assert "not returned" in stacks
