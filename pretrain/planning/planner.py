"""What a run will be, before it is started: shown by ``spade pretrain CONFIG --dry-run``."""

from __future__ import annotations

from typing import Any

from pretrain.config import RunConfig
from pretrain.engine.engine import deepspeed_config
from spade_model.cost import count_parameters, training_flops_per_sample
from spade_model.memory_cost import activation_bytes


def describe(config: RunConfig, world_size: int = 1) -> dict[str, Any]:
    """The resolved configuration with what follows from it.

    Memory is an estimate for one rank: float32 weights and gradients, the optimizer's float32
    weights and two moments cut over the ranks (with stage 2 the gradients as well), and the
    activations of one micro-batch. Buffers of communication and of the allocator come on top.

    Args:
        config: The run.
        world_size: Number of processes it will have.

    Raises:
        ConfigError: If the batch cannot be cut evenly over the processes.
    """
    objective = config.data.make_objective()
    parameters = count_parameters(config.model)
    train = config.train
    lengths = (objective.input_length_tokens, objective.target_length_tokens)
    weights_bytes = 4 * parameters.total
    gradient_ranks = world_size if config.deepspeed.zero_stage == 2 else 1
    memory = {
        "weights": weights_bytes,
        "gradients": weights_bytes // gradient_ranks,
        "optimizer": 12 * parameters.total // world_size,
        "activations": activation_bytes(
            config.model,
            train.micro_batch_size,
            *lengths,
            bytes_per_element=2 if train.precision == "bf16" else 4,
            activation_checkpointing=train.activation_checkpointing,
        ),
    }
    tokens_per_step = train.global_batch_size * objective.window_tokens
    flops_per_step = train.global_batch_size * training_flops_per_sample(config.model, *lengths)
    return {
        "configuration": config.to_dict(),
        "deepspeed": deepspeed_config(config, world_size),
        "processes": world_size,
        "parameters": parameters.total,
        "window_tokens": objective.window_tokens,
        "target_length_tokens": objective.target_length_tokens,
        "tokens_per_step": tokens_per_step,
        "tokens_in_run": tokens_per_step * train.max_steps,
        "flops_per_step": flops_per_step,
        "estimated_memory_bytes": {**memory, "total": sum(memory.values())},
    }
