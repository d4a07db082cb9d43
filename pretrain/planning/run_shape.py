"""A run's configuration in the terms of the plan's arithmetic."""

from __future__ import annotations

import math

from pretrain.config import RunConfig
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.planning.memory import (
    FLOAT32_BYTES,
    MemoryPlan,
    ModelMemory,
    Sharding,
    plan_memory,
)
from spade_model.context_parallel.cost import training_traffic
from spade_model.cost import AttentionWork, count_parameters
from spade_model.memory_cost import activation_bytes, logits_bytes

# DeepSpeed's defaults, in elements.
_BUCKET_ELEMENTS = 500_000_000
_LIVE_ELEMENTS = 1_000_000_000


def run_memory(config: RunConfig, world_size: int, device_type: str) -> MemoryPlan:
    """Memory of one rank of a run.

    Args:
        config: The run.
        world_size: Number of ranks.
        device_type: ``cuda`` or ``cpu``.

    Raises:
        ConfigError: If the batch cannot be cut evenly over the ranks.
    """
    return plan_memory(model_memory(config, device_type), sharding(config, world_size, device_type))


def model_memory(config: RunConfig, device_type: str) -> ModelMemory:
    """Sizes of the model and of one micro-batch.

    Args:
        config: The run.
        device_type: ``cuda`` or ``cpu``: by it ``auto`` chooses who computes attention.
    """
    train, model = config.train, config.model
    lengths = rank_lengths(config)
    element = 4 if train.precision == "fp32" else 2
    parameters = count_parameters(model)
    kept_logits = train.micro_batch_size * logits_bytes(model, *lengths, bytes_per_element=element)
    activations = activation_bytes(
        model,
        train.micro_batch_size,
        *lengths,
        bytes_per_element=element,
        activation_checkpointing=train.activation_checkpointing,
        every_layers=train.activation_checkpointing_every_layers,
        work=_attention_work(config, device_type),
    )
    # The loss holds the logits, in low precision a float32 copy of them, and their log-softmax.
    predictions = train.micro_batch_size * lengths[1] * model.vocab_size
    casts = 0 if element == 4 else 2 * (parameters.total - parameters.state_space)
    return ModelMemory(
        parameters=parameters.total,
        embedding_parameters=parameters.embedding,
        optimizer_bytes=optimizer_bytes(config),
        activations_bytes=activations - kept_logits,
        logits_bytes=predictions * (8 if element == 4 else 10),
        cast_weights_bytes=casts,
        kept_casts=train.activation_checkpointing != "full",
    )


def rank_lengths(config: RunConfig) -> tuple[int, int]:
    """Tokens of a sample that one rank has: the largest part of the input, and the whole target."""
    objective = config.data.make_objective()
    part = math.ceil(objective.input_length_tokens / config.parallel.context)
    return part, objective.target_length_tokens


def context_bytes(config: RunConfig) -> int:
    """Bytes that a rank sends to those of the same inputs for one micro-batch, at most.

    Whether rows are padded depends on the samples; they are counted as if they were.
    """
    train, objective = config.train, config.data.make_objective()
    every = train.activation_checkpointing_every_layers
    return training_traffic(
        config.model,
        config.parallel.context,
        batch_size=train.micro_batch_size,
        input_tokens=objective.input_length_tokens,
        target_tokens=objective.target_length_tokens,
        activation_bytes=FLOAT32_BYTES if train.precision == "fp32" else 2,
        masked=True,
        recomputed_every_layers=None if train.activation_checkpointing == "none" else every,
    )


def optimizer_bytes(config: RunConfig) -> int:
    """Bytes of the optimizer's float32 states over all ranks."""
    parameters = count_parameters(config.model)
    if config.optimizer.kind == "adafactor":
        return 2 * FLOAT32_BYTES * parameters.total // config.model.d_model  # rows and columns
    if config.optimizer.kind == "muon":
        matrices = parameters.total - parameters.embedding - parameters.state_space
        return FLOAT32_BYTES * (2 * parameters.total - matrices)
    return 2 * FLOAT32_BYTES * parameters.total


def sharding(config: RunConfig, world_size: int, device_type: str) -> Sharding:
    """Stage, buckets and places, as DeepSpeed is told them.

    Raises:
        ConfigError: If the batch cannot be cut evenly over the ranks.
    """
    told = deepspeed_config(config, world_size, device_type=device_type)
    zero = told["zero_optimization"]
    # DeepSpeed knows these by two names each.
    live = min(
        int(zero.get(prefix + name, _LIVE_ELEMENTS))
        for prefix in ("", "stage3_")
        for name in ("max_live_parameters", "max_reuse_distance")
    )
    return Sharding(
        zero_stage=config.deepspeed.zero_stage,
        world_size=world_size,
        accumulates=told["gradient_accumulation_steps"] > 1,
        overlaps=bool(zero.get("overlap_comm", False)),
        bucket_elements=int(zero.get("reduce_bucket_size", _BUCKET_ELEMENTS)),
        live_elements=live,
        offload_optimizer=config.deepspeed.offload_optimizer,
        offload_parameters=config.deepspeed.offload_parameters,
    )


def _attention_work(config: RunConfig, device_type: str) -> AttentionWork:
    backend = config.train.attention_backend
    if backend == "auto":
        return "tiled" if device_type == "cpu" else "blocked"
    if backend == "flex":
        return "tiled"  # it keeps as little
    return backend
