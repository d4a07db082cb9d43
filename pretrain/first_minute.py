"""The largest batch of a run, tried before the first step: what does not fit fails at once."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.config import RunConfig
from pretrain.engine.training_engine import TrainingEngine
from pretrain.errors import RunError
from pretrain.hardware import available_memory_bytes
from pretrain.sample_groups import SampleGroup


def largest_inputs(config: RunConfig, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch as large as one can be, with every mask that can occur.

    Args:
        config: The run.
        device: Where the model is.

    Returns:
        What `pretrain.model_inputs` makes of a batch of that size; the ids are arbitrary.
    """
    objective = config.data.make_objective()
    rows = config.train.micro_batch_size
    source = (rows, objective.input_length_tokens)
    target = (rows, objective.target_length_tokens)
    size = config.model.vocab_size
    # Spread over the vocabulary, as ids are.
    inputs = {
        "input_ids": (torch.arange(rows * source[1], device=device) % size).view(source),
        "labels": (torch.arange(rows * target[1], device=device) % size).view(target),
    }
    ragged = config.data.windows == "document" or config.data.objective.kind != "span_corruption"
    if ragged:
        inputs["attention_mask"] = torch.ones(source, dtype=torch.bool, device=device)
    if config.data.document_boundaries:
        half = torch.arange(source[1], device=device) * 2 // source[1]
        inputs["segment_ids"] = (half + 1).expand(source).contiguous()
    return inputs


def rehearse(
    engine: TrainingEngine,
    config: RunConfig,
    world_size: int,
    group: SampleGroup,
    device: torch.device,
) -> None:
    """Run the largest micro-batch through forward, backward and update, changing nothing.

    Every rank must call this.

    Raises:
        RunError: If the memory does not suffice, with the settings to change.
    """
    try:
        engine.rehearse(group.share(largest_inputs(config, device)))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        from pretrain.planning.advice import out_of_memory_advice

        available = available_memory_bytes(device)
        advice = out_of_memory_advice(config, world_size, available, device_type=device.type)
        raise RunError(
            "\n".join(["out of memory in a trial of the largest batch", *advice])
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was asked for in vain; the CPU has no class for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "not enough memory" in text
