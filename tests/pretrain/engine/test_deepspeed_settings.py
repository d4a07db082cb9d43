"""What is left to DeepSpeed: combinations that cannot work, and its own keys passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.config import RunConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.errors import ConfigError


def configuration(run_settings: dict[str, Any], **deepspeed: Any) -> RunConfig:
    run_settings["model"] |= {"vocab_size": 512, "max_target_length_tokens": 64}
    return RunConfig.from_dict(run_settings | {"deepspeed": deepspeed})


@pytest.mark.parametrize(
    ("deepspeed", "complaint"),
    [
        ({"zero_stage": 0, "offload_optimizer": "cpu"}, "set deepspeed.zero_stage to 1, 2 or 3"),
        ({"offload_optimizer": "nvme", "nvme_folder": "/x"}, "set deepspeed.zero_stage to 3"),
        ({"zero_stage": 2, "offload_parameters": "cpu"}, "set deepspeed.zero_stage to 3"),
        ({"zero_stage": 3, "offload_optimizer": "nvme"}, "deepspeed.nvme_folder is missing"),
        ({"nvme_folder": "/x"}, "is used by nothing"),
        ({"zero_stage": 4}, "deepspeed.zero_stage is 4"),
        ({"raw": {"fp16": {}}}, "train.precision does that"),
        ({"raw": {"optimizer": {}}}, "this project's optimizer does that"),
        ({"raw": {"gradient_clipping": 2}}, "decided by other settings"),
        ({"raw": {"wall_clock_brakedown": True}}, "did you mean wall_clock_breakdown?"),
        ({"raw": {"zero_optimization": {"stage": 1}}}, "decided by the other settings"),
        ({"raw": {"zero_optimization": {"reduce_bucket_sise": 1}}}, "mean reduce_bucket_size?"),
        ({"raw": {"zero_optimization": 3}}, "give it keys and values"),
    ],
)
def test_each_mistake_is_one_line(
    run_settings: dict[str, Any], deepspeed: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(run_settings, **deepspeed)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_keys_of_deepspeed_reach_it(run_settings: dict[str, Any]) -> None:
    raw = {
        "zero_optimization": {"reduce_bucket_size": 1000, "stage3_max_live_parameters": 5},
        "wall_clock_breakdown": True,
    }
    made = deepspeed_config(configuration(run_settings, zero_stage=3, raw=raw), 2)
    assert made["zero_optimization"]["reduce_bucket_size"] == 1000
    assert made["zero_optimization"]["stage3_max_live_parameters"] == 5
    assert made["zero_optimization"]["stage"] == 3
    assert made["wall_clock_breakdown"] is True


def test_what_the_device_decides(run_settings: dict[str, Any], tmp_path: Path) -> None:
    config = configuration(
        run_settings, zero_stage=3, offload_optimizer="nvme", nvme_folder=str(tmp_path)
    )
    on_cpu = deepspeed_config(config, 2)["zero_optimization"]
    on_gpu = deepspeed_config(config, 2, device_type="cuda")["zero_optimization"]
    assert (on_cpu["overlap_comm"], on_gpu["overlap_comm"]) == (False, True)
    assert on_gpu["offload_optimizer"] == {
        "device": "nvme",
        "nvme_path": str(tmp_path),
        "pin_memory": True,
    }
    assert on_cpu["offload_optimizer"]["pin_memory"] is False


def test_clipping_is_ours_where_nothing_is_sharded(run_settings: dict[str, Any]) -> None:
    assert deepspeed_config(configuration(run_settings, zero_stage=0), 1)["gradient_clipping"] == 0
    assert deepspeed_config(configuration(run_settings, zero_stage=1), 1)["gradient_clipping"] == 1
