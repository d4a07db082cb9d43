"""The loss curve of a tiny run, frozen: a change that should not touch numerics does not move it.

The documents, the tokenizer, the shards, the order, the masks, the initial weights and the update
all stand behind these numbers. Where a change moves them on purpose, its pull request says why and
puts the new ones here. Other processors round differently; hence a tolerance, far below the effect
of any change of the algorithm.
"""

from __future__ import annotations

import pytest
from worker_processes import losses, train

pytestmark = pytest.mark.slow

GOLDEN = [
    6.5253808,
    6.4051129,
    6.2260226,
    6.0266792,
    6.0109046,
    6.0046728,
]


def test_the_curve_is_the_frozen_one(run_settings, write_config, tmp_path):
    run_settings["train"] |= {"precision": "fp32", "max_steps": 6}
    train(write_config(run_settings), processes=1, fresh=True)
    curve = [loss for _, loss in losses(tmp_path / "runs" / "tiny")]
    assert curve == pytest.approx(GOLDEN, rel=1e-5)
