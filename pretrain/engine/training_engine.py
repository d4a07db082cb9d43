"""One interface to DeepSpeed at every ZeRO stage: forward, backward, update or discard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.config import RunConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.engine.loss_scale import LossScale
from pretrain.engine.training_state import clear_optimizer_states, inner_optimizer, zero_stage
from pretrain.optimization.optimizers import make_optimizer
from spade_model import SpadeForSeq2Seq


class Update(NamedTuple):
    """What became of one step's gradients; the same on every rank."""

    applied: bool
    """Whether the weights were changed."""
    gradient_norm: float
    """Global norm before clipping; not finite where the gradients were not."""
    group_norms: dict[str, float]
    """Norm by parameter group; empty unless asked for."""


class TrainingEngine:
    """A model under DeepSpeed.

    Micro-batches are accumulated until `update`; the caller says which is the last. Gradients that
    are not finite, or whose norm is beyond what the caller allows, change nothing: DeepSpeed
    discards them on the path it has for overflows. The check reads the norm that DeepSpeed reads
    itself, so it costs no further wait for the device.

    Args:
        model: Float32 module with the same weights on every rank.
        config: The run.
        world_size: Number of ranks.
        device: This rank's device.
    """

    def __init__(
        self, model: SpadeForSeq2Seq, config: RunConfig, world_size: int, device: torch.device
    ) -> None:
        import deepspeed

        self._clipping = config.train.gradient_clipping
        self._norm_limit: Callable[[], float] = lambda: math.inf
        self._norm = math.nan
        self._wants_group_norms = False
        self._group_norms: dict[str, float] = {}
        self.loss_scale = LossScale.for_precision(config.train.precision)
        optimizer = make_optimizer(
            model.to(device), config.optimizer, zero_stage=config.deepspeed.zero_stage
        )
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, world_size, device_type=device.type),
        )
        self._stage = zero_stage(self.deepspeed)
        if self._stage == 0:
            self.deepspeed.torch_autocast_z0_gradscaler = None  # see LossScale
        else:
            self.deepspeed.optimizer.torch_autocast_gradscaler = None
            self._watch_norm()
        self._set_loss_scale()

    @property
    def module(self) -> SpadeForSeq2Seq:
        """The model itself."""
        module: SpadeForSeq2Seq = self.deepspeed.module
        return module

    def forward(self, inputs: Mapping[str, Any], *, last: bool) -> Any:
        """The model's output; `last` tells whether this is the step's last micro-batch."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        return self.deepspeed(**inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; over the ranks they are averaged."""
        if self._stage == 0:
            loss = loss * self.loss_scale.scale
        self.deepspeed.backward(loss, scale_wrt_gas=False)

    def update(
        self,
        rate_factor: float,
        *,
        norm_limit: Callable[[], float] = lambda: math.inf,
        group_norms: bool = False,
    ) -> Update:
        """Change the weights by what was accumulated, unless it is not fit for that.

        Args:
            rate_factor: Of every group's base learning rate.
            norm_limit: Gives the largest global gradient norm that is allowed; below 0 discards in
                any case. Asked once the norm is on the host, so whatever was sent there before the
                call has arrived as well.
            group_norms: Whether to find the norm of each group; not with states on a disk.
        """
        for group in inner_optimizer(self.deepspeed).param_groups:
            group["lr"] = group["base_learning_rate"] * rate_factor
        self._norm_limit, self._wants_group_norms = norm_limit, group_norms
        self._group_norms = {}
        applied = self._update_whole() if self._stage == 0 else self._update_sharded()
        self.loss_scale.note(overflow=not math.isfinite(self._norm))
        self._set_loss_scale()
        return Update(applied, self._norm, self._group_norms)

    def rates(self) -> dict[str, float]:
        """The learning rates of the last update, by group."""
        return {
            group["name"]: group["lr"] for group in inner_optimizer(self.deepspeed).param_groups
        }

    def rehearse(self, inputs: Mapping[str, Any]) -> None:
        """Run forward, backward and an update that changes nothing, then forget all about it.

        The gradients are zero and so are the rates. What is made at the first step is there
        afterwards: the optimizer's states, compiled code, the memory for all of it.
        """
        loss = self.forward(inputs, last=True).loss
        self.backward(loss * 0)
        self.update(0.0)
        clear_optimizer_states(self.deepspeed)
        self.deepspeed.global_steps = 0
        self.deepspeed.skipped_steps = 0
        self.deepspeed.global_samples = 0

    def set_loss_scale(self, scale: LossScale) -> None:
        """Go on with the scale of a checkpoint."""
        self.loss_scale = scale
        self._set_loss_scale()

    def check_precision(self) -> list[str]:
        """Make sure that every learned number is kept in float32, whatever computes with it.

        Returns:
            A line a parameter group: its name, numbers, dtype and base rate.
        """
        lines = []
        for group, parameters in self.groups():
            dtypes = {parameter.dtype for parameter in parameters}
            assert dtypes == {torch.float32}, f"group {group['name']} holds {dtypes}, not float32"
            numbers = sum(getattr(value, "ds_numel", value.numel()) for value in parameters)
            lines.append(
                f"group {group['name']}: {numbers:,} numbers in float32, rate "
                f"{group['base_learning_rate']:g}, decay {group['weight_decay']:g}"
            )
        return lines

    @contextmanager
    def whole_parameters(self, name_part: str = "") -> Iterator[None]:
        """Have parameters whole to look at, also where each rank holds a part of them.

        Every rank must enter; what is changed inside is lost.

        Args:
            name_part: Of the names of the parameters; by default all.
        """
        if self._stage != 3:
            yield
            return
        import deepspeed

        found = [value for name, value in self.module.named_parameters() if name_part in name]
        with deepspeed.zero.GatheredParameters(found):
            yield

    def groups(self) -> Iterator[tuple[dict[str, Any], list[nn.Parameter]]]:
        """Each parameter group with the model's parameters in it."""
        optimizer = self.deepspeed.optimizer
        if self._stage == 0:
            members = [group["params"] for group in optimizer.param_groups]
        elif self._stage == 3:
            members = [[] for _ in inner_optimizer(self.deepspeed).param_groups]
            for number, group in enumerate(optimizer.fp16_groups):
                members[optimizer.sub_group_to_group_id[number]] += group
        else:
            members = optimizer.bit16_groups
        groups = inner_optimizer(self.deepspeed).param_groups
        yield from zip(groups, members, strict=True)

    def _update_sharded(self) -> bool:
        self.deepspeed.step()
        return bool(self.deepspeed.was_step_applied())

    def _update_whole(self) -> bool:
        """Stage 0: clipping and discarding are ours, and so is the loss's scale."""
        gradients = [gradient for _, gradient in self._own_gradients()]
        if self.loss_scale.scale != 1.0:
            for gradient in gradients:
                gradient.div_(self.loss_scale.scale)
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        self._norm = float(norm)
        self._note_group_norms()
        if not math.isfinite(self._norm) or self._norm > self._norm_limit():
            self.deepspeed.zero_grad()
            return False
        if self._norm > self._clipping:
            torch._foreach_mul_(gradients, self._clipping / (self._norm + 1e-6))
        self.deepspeed.step()
        return True

    def _watch_norm(self) -> None:
        """Look at the norm where DeepSpeed has it, and make it infinite to have a step discarded.

        Stages 1 and 2 ask one method for the norm, stage 3 another for the norms of its groups;
        all of them discard the step where the norm is not finite.
        """
        optimizer = self.deepspeed.optimizer
        if self._stage == 3:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            norms_of_groups = optimizer._get_norm_groups

            def watched_norms() -> list[Any]:
                norms: list[Any] = norms_of_groups()
                if self._is_fit(combine_grad_norm_groups(norms)):
                    return norms
                return [torch.tensor(math.inf, device=norms[0].device)]

            optimizer._get_norm_groups = watched_norms
            return
        global_norm = optimizer.scaled_global_norm

        def watched_norm(norm_type: int = 2) -> Any:
            norm = global_norm(norm_type)
            return norm if self._is_fit(norm) else torch.full_like(norm, math.inf)

        optimizer.scaled_global_norm = watched_norm

    def _is_fit(self, scaled_norm: Tensor) -> bool:
        norm = float(scaled_norm) / self.loss_scale.scale
        self._norm = norm if norm >= 0 else math.inf  # DeepSpeed writes -1 for not finite
        self._note_group_norms()
        return math.isfinite(self._norm) and self._norm <= self._norm_limit()

    def _note_group_norms(self) -> None:
        if not self._wants_group_norms or self._is_on_disk:
            return
        groups = inner_optimizer(self.deepspeed).param_groups
        squares = torch.zeros(len(groups), dtype=torch.float64, device=self.deepspeed.device)
        for number, gradient in self._own_gradients():
            squares[number] += gradient.detach().double().square().sum().to(squares.device)
        if self._stage > 0:
            dist.all_reduce(squares)
            squares /= self.loss_scale.scale**2
        norms = squares.sqrt().tolist()
        self._group_norms = {group["name"]: norm for group, norm in zip(groups, norms, strict=True)}

    @property
    def _is_on_disk(self) -> bool:
        """Whether the gradients have left for a disk when their norm is known."""
        return self._stage == 3 and bool(self.deepspeed.optimizer.swap_optimizer)

    def _own_gradients(self) -> Iterator[tuple[int, Tensor]]:
        """The number of the group and the values, of all gradients that this rank answers for."""
        optimizer = self.deepspeed.optimizer
        if self._stage == 0:
            for number, group in enumerate(optimizer.param_groups):
                yield from ((number, p.grad) for p in group["params"] if p.grad is not None)
        elif self._stage == 3:
            for number in range(len(optimizer.fp16_groups)):
                group = optimizer.sub_group_to_group_id[number]
                if optimizer.offload_optimizer:
                    flat = optimizer.fp32_partitioned_groups_flat[number]
                    if flat.grad is not None:
                        yield group, flat.grad
                else:
                    yield from ((group, values) for values in optimizer.averaged_gradients[number])
        elif optimizer.cpu_offload:
            for number, flat in enumerate(optimizer.single_partition_of_fp32_groups):
                yield number, flat.grad
        else:
            for number, gradients in optimizer.averaged_gradients.items():
                yield from ((number, values) for values in gradients)

    def _set_loss_scale(self) -> None:
        if self._stage > 0 and self.loss_scale.dynamic:
            self.deepspeed.optimizer.override_loss_scale(self.loss_scale.scale)
