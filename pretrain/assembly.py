"""Everything one rank needs to train, put together in the order in which it can fail cheaply."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.quarantine import QuarantineEntry
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import target_unigram
from pretrain.checkpoints.checkpoint import Position, find_resumable, load_checkpoint
from pretrain.checkpoints.checkpoint_format import folder_name, load_run_config, read_manifest
from pretrain.checkpoints.resume import differences, fingerprints
from pretrain.config import RunConfig
from pretrain.engine.engine import build_engine
from pretrain.errors import CheckpointError, RunError
from pretrain.evaluation.heldout import HeldoutEvaluation
from pretrain.hardware import describe_environment, peak_flops_per_second
from pretrain.loop import Trainer
from pretrain.ranks import Ranks
from pretrain.resilience.stop import StopRequest
from pretrain.run_folder import RunFolder, write_atomically, write_json
from pretrain.telemetry.metrics import MetricsWriter, ProgressLine
from spade_model import SpadeForSeq2Seq
from spade_model.cost import training_flops_per_sample

UNIGRAM_SAMPLES = 2000
"""Training samples from which the unigram baseline is counted."""


def assemble_trainer(
    config: RunConfig,
    ranks: Ranks,
    device: torch.device,
    stop: StopRequest,
    *,
    fresh: bool,
    logger: logging.Logger,
) -> Trainer:
    """Open the data, find the checkpoint to go on from, build the model, fill it.

    The process group must have been started; every rank calls this.

    Args:
        config: The resolved configuration.
        ranks: This process's place.
        device: Where it computes.
        stop: Its request to stop.
        fresh: Refuse to resume.
        logger: This rank's log.

    Raises:
        DataError: If the data are missing or damaged.
        CheckpointError: If the checkpoint belongs to another run.
        RunError: If ``fresh`` and there is a checkpoint.
    """
    first = ranks.rank == 0
    folder = RunFolder(config.run_path)
    data_fingerprints = fingerprints(config)
    checkpoint = _agreed_checkpoint(folder, ranks, device, logger)
    quarantined: list[dict[str, Any]] = []
    if checkpoint is not None:
        _check_resumable(config, folder, checkpoint, data_fingerprints, fresh=fresh)
        path = folder.checkpoints / folder_name(checkpoint)
        quarantined = list(read_manifest(path)["quarantined"])
    settings = config.data.stream_settings(
        config.train.seed, tuple(QuarantineEntry.from_json(entry) for entry in quarantined)
    )
    objective = settings.objective
    stream = PretrainingStream(settings)
    if ranks.rank == 0:
        stream.check_files()
    evaluation = _evaluation(config, stream, ranks, device)
    stream.close()

    torch.manual_seed(config.train.seed)  # the same initial weights on every rank
    model = SpadeForSeq2Seq(config.model)
    model.set_activation_checkpointing(config.train.activation_checkpointing)
    model.set_attention_backend(config.train.attention_backend)
    engine = build_engine(model, config, ranks.world_size, device)
    position = Position()
    if checkpoint is not None:
        position = load_checkpoint(engine, folder.checkpoints / folder_name(checkpoint))

    metrics = None
    if first:
        write_atomically(folder.config_path, config.to_yaml())
        write_json(folder.environment_path, describe_environment(ranks, device))
        metrics = MetricsWriter(folder, position.step)
    progress = ProgressLine(position.step, config.train.max_steps, silent=not first)
    if position.step:
        progress.say(f"resuming after step {position.step} of {config.train.max_steps}")
        if metrics is not None:
            record = {"event": "resume", "step": position.step, "processes": ranks.world_size}
            metrics.write(record)

    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    flops_per_sample = training_flops_per_sample(
        config.model, objective.input_length_tokens, objective.target_length_tokens
    )
    return Trainer(
        config=config,
        engine=engine,
        loader=BatchLoader(
            settings,
            Stripes(
                global_batch_size=config.train.global_batch_size,
                micro_batch_size=config.train.micro_batch_size,
                rank=ranks.rank,
                world_size=ranks.world_size,
                start_sample=position.sample_index,
            ),
            workers=config.data.workers,
        ),
        evaluation=evaluation,
        metrics=metrics,
        progress=progress,
        ranks=ranks,
        device=device,
        stop=stop,
        position=position,
        fingerprints=data_fingerprints,
        flops_per_step=flops_per_sample * config.train.global_batch_size,
        peak_flops_per_second=peak_flops_per_second(device, dtype) * ranks.world_size,
        epochs=stream.epochs,
        quarantined=quarantined,
        logger=logger,
    )


def _evaluation(
    config: RunConfig, stream: PretrainingStream, ranks: Ranks, device: torch.device
) -> HeldoutEvaluation:
    baseline = target_unigram(stream, UNIGRAM_SAMPLES)
    return HeldoutEvaluation(
        PretrainingStream(config.data.heldout_settings(config.train.seed)),
        samples=config.evaluation.samples,
        micro_batch_size=config.train.micro_batch_size,
        baseline=baseline,
        ranks=ranks,
        device=device,
    )


def _agreed_checkpoint(
    folder: RunFolder, ranks: Ranks, device: torch.device, logger: logging.Logger
) -> int | None:
    """The step of the newest sound checkpoint: rank 0 looks, all go by what it found."""
    step = -1
    if ranks.rank == 0:
        checkpoint, passed_over = find_resumable(folder.path)
        for problem in passed_over:
            logger.warning("passed over: %s", problem)
            print(f"passed over a damaged checkpoint: {problem}", flush=True)
        if checkpoint is not None:
            step = read_manifest(checkpoint)["step"]
    shared = torch.tensor([step], dtype=torch.int64, device=device)
    dist.broadcast(shared, src=0)
    found = int(shared.item())
    return found if found >= 0 else None


def _check_resumable(
    config: RunConfig, folder: RunFolder, step: int, now: dict[str, str], *, fresh: bool
) -> None:
    path = folder.checkpoints / folder_name(step)
    if fresh:
        raise RunError(
            f"{config.run_path} already holds {path.name} and --fresh refuses to resume; "
            "choose another name= or remove the folder"
        )
    manifest = read_manifest(path)
    found = differences(
        load_run_config(path), manifest["fingerprints"], config, now, manifest["sample_index"]
    )
    if found:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(found)}; restore these or choose "
            "another name="
        )
