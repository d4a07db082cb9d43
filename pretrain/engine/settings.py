"""What is left to DeepSpeed, as a part of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pretrain.engine.raw_keys import check_raw
from pretrain.section import Section


class DeepSpeedSettings(Section):
    """How weights, gradients and optimizer state are spread over ranks and memories."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """0 keeps all on every rank, 1 shards the optimizer's state over the ranks, 2 the gradients as
    well, 3 the weights as well."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where the optimizer's state lies and is updated; needs a stage above 0, `nvme` stage 3."""
    offload_parameters: Literal["none", "cpu"] = "none"
    """Where weights lie while they are not used; needs stage 3. On a disk DeepSpeed would keep them
    in the precision of the products, which the state-space parameters do not survive."""
    nvme_folder: Path | None = None
    """Folder on a fast local disk, for `offload_optimizer: nvme`."""
    overlap_communication: bool = True
    """On GPUs, reduce gradients while the backward pass still goes on."""
    raw: dict[str, Any] = Field(default_factory=dict)
    """More of DeepSpeed's own keys, such as `{zero_optimization: {reduce_bucket_size: 50000000}}`.
    What another setting decides cannot be given here."""

    @model_validator(mode="after")
    def _places_fit_the_stage(self) -> DeepSpeedSettings:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise ValueError(
                f"deepspeed.offload_optimizer {self.offload_optimizer} needs shards to offload; "
                "set deepspeed.zero_stage to 1, 2 or 3"
            )
        if self.offload_optimizer == "nvme" and self.zero_stage != 3:
            raise ValueError(
                f"deepspeed.offload_optimizer nvme does not work with zero_stage {self.zero_stage};"
                " set deepspeed.zero_stage to 3, or offload to cpu"
            )
        if self.offload_parameters != "none" and self.zero_stage != 3:
            raise ValueError(
                f"deepspeed.offload_parameters {self.offload_parameters} does not work with "
                f"zero_stage {self.zero_stage}, which keeps all weights on every rank; set "
                "deepspeed.zero_stage to 3"
            )
        uses_disk = self.offload_optimizer == "nvme"
        if uses_disk and self.nvme_folder is None:
            raise ValueError("deepspeed.nvme_folder is missing; name a folder on a fast local disk")
        if self.nvme_folder is not None and not uses_disk:
            raise ValueError(
                f"deepspeed.nvme_folder {self.nvme_folder} is used by nothing; remove it, or "
                "offload to nvme"
            )
        check_raw(self.raw)
        return self
