"""Everything one rank needs to train, put together in the order in which it can fail cheaply."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_pipeline.reading.batch_loader import BatchLoader, Stripes
from data_pipeline.reading.quarantine import QuarantineEntry
from data_pipeline.reading.stream import PretrainingStream
from pretrain.accumulation import Accumulation
from pretrain.checkpoints.checkpoint_format import load_run_config, read_manifest
from pretrain.checkpoints.finding import agree_on_resumable
from pretrain.checkpoints.position import Position
from pretrain.checkpoints.resume import differences, fingerprints
from pretrain.checkpoints.retention import clean_up
from pretrain.checkpoints.saver import CheckpointSaver
from pretrain.config import RunConfig, Stage
from pretrain.control import Control
from pretrain.engine.training_engine import TrainingEngine
from pretrain.errors import CheckpointError, RunError
from pretrain.evaluation.evaluation import build_evaluation
from pretrain.first_minute import rehearse
from pretrain.hardware import describe_environment, peak_flops_per_second
from pretrain.initial_weights import INITIAL_WEIGHTS, load_initial_weights
from pretrain.loop import Trainer
from pretrain.observer import Observer
from pretrain.optimization.decisions import FILE_NAME, DecisionLog, read_decisions
from pretrain.ranks import Ranks
from pretrain.resilience.stop import StopRequest
from pretrain.resilience.watchdog import Watchdog
from pretrain.run_folder import RunFolder, write_atomically, write_json
from pretrain.run_state import RunState
from pretrain.sample_groups import SampleGroup, make_sample_group
from pretrain.telemetry.communication import CommunicationMeter
from pretrain.telemetry.console import ProgressLine
from pretrain.telemetry.step_timer import StepTimer
from pretrain.telemetry.writer import open_metrics
from spade_model import SpadeForSeq2Seq
from spade_model.activation_checkpointing import ActivationCheckpointing

BASELINES_FILE = "unigram.json"


@dataclass(frozen=True)
class Rank:
    """This process among the others: what :mod:`pretrain.worker` has started before."""

    ranks: Ranks
    device: torch.device
    stop: StopRequest
    watchdog: Watchdog
    control_group: Any
    """Of gloo: for votes."""
    saving_group: Any
    """Of gloo: for the thread that writes checkpoints, alone."""
    logger: logging.Logger


def assemble_trainer(config: RunConfig, rank: Rank, *, fresh: bool) -> Trainer:
    """Open the data, find the checkpoint to go on from, build the model, fill it.

    Every rank calls this.

    Args:
        config: The resolved configuration.
        rank: This process.
        fresh: Refuse to resume.

    Raises:
        DataError: If the data are missing or damaged.
        CheckpointError: If the checkpoint belongs to another run.
        RunError: If ``fresh`` and there is a checkpoint, or the memory does not suffice.
    """
    ranks, device, logger = rank.ranks, rank.device, rank.logger
    first = ranks.rank == 0
    folder = RunFolder(config.run_path)
    data_fingerprints = fingerprints(config)
    checkpoint = _resumable(folder, rank)
    if checkpoint is not None:
        _check_resumable(config, checkpoint, data_fingerprints, fresh=fresh)
    settings = config.data.stream_settings(config.train.seed)
    with_stream = PretrainingStream(settings)
    if first:
        with_stream.check_files()
    with_stream.close()
    group = make_sample_group(ranks, config.parallel.context)
    rank.watchdog.beat("counting what the held-out data ask for")
    evaluation = build_evaluation(
        config.data,
        config.evaluation,
        settings,
        micro_batch_size=config.train.micro_batch_size,
        baselines_file=folder.path / BASELINES_FILE,
        ranks=ranks,
        group=group,
        device=device,
    )

    rank.watchdog.beat("building the model")
    model = _model(config)
    if config.initial_weights is not None:
        began_from = _initial_weights(model, config, checkpoint, rank)
        data_fingerprints[INITIAL_WEIGHTS] = began_from
    engine = TrainingEngine(model, config, ranks.world_size, device)
    for line in engine.check_precision():
        logger.info("%s, products in %s", line, config.train.precision)
    rank.watchdog.beat("trial of the largest batch")
    rehearse(engine, config, ranks.world_size, group, device)

    saver = CheckpointSaver(
        folder,
        config.checkpoint,
        rank=ranks.rank,
        world_size=ranks.world_size,
        group=rank.saving_group,
        logger=logger,
        beat=lambda: rank.watchdog.beat("waiting for a checkpoint to be written"),
    )
    control = Control(rank.control_group, ranks, rank.stop, rank.watchdog, saver)
    path = folder.path / FILE_NAME
    decisions = DecisionLog(_decisions(path, control, first), path if first else None)
    state = RunState(engine, config, control, saver, decisions, ranks, data_fingerprints)
    if checkpoint is not None:
        rank.watchdog.beat(f"loading {checkpoint}")
        state.load(checkpoint)

    timer = StepTimer(device)
    position = None if checkpoint is None else state.progress.position
    observer = _observer(config, rank, group, engine, control, timer, position, with_stream)
    return Trainer(
        config=config,
        engine=engine,
        accumulation=Accumulation(engine, control, timer, group, device, seed=config.train.seed),
        control=control,
        state=state,
        saver=saver,
        evaluation=evaluation,
        observer=observer,
        watchdog=rank.watchdog,
        open_loader=lambda position, stage: _open_loader(
            config, group, position, stage, state.quarantined
        ),
    )


def _model(config: RunConfig) -> SpadeForSeq2Seq:
    train = config.train
    torch.manual_seed(train.seed)  # the same initial weights on every rank
    model = SpadeForSeq2Seq(config.model)
    model.set_activation_checkpointing(
        ActivationCheckpointing(
            train.activation_checkpointing, train.activation_checkpointing_every_layers
        )
    )
    model.set_attention_backend(train.attention_backend)
    if train.compile:
        model.compile_layers()
    return model


def _initial_weights(
    model: SpadeForSeq2Seq, config: RunConfig, checkpoint: Path | None, rank: Rank
) -> str:
    """Have the configured weights in the model of every rank; return their fingerprint.

    Rank 0 alone reads the folder. Where a checkpoint is gone on from, it knows the fingerprint, and
    nobody reads.
    """
    if checkpoint is not None:
        return str(read_manifest(checkpoint)["fingerprints"][INITIAL_WEIGHTS])
    assert config.initial_weights is not None, "the caller looks"
    rank.watchdog.beat("reading the initial weights")
    found = torch.zeros(32, dtype=torch.uint8)
    if rank.ranks.rank == 0:
        config.check_initial_weights()
        fingerprint = load_initial_weights(config.initial_weights, model)
        found = torch.tensor(list(bytes.fromhex(fingerprint)), dtype=torch.uint8)
    if rank.ranks.world_size > 1:
        for tensor in (found, *model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0, group=rank.control_group)
            rank.watchdog.beat("sending the initial weights to all ranks")
    fingerprint = bytes(found.tolist()).hex()
    rank.logger.info("weights from %s, SHA-256 %s", config.initial_weights, fingerprint)
    return fingerprint


def _open_loader(
    config: RunConfig,
    group: SampleGroup,
    position: Position,
    stage: Stage,
    quarantined: list[dict[str, Any]],
) -> BatchLoader:
    known = tuple(QuarantineEntry.from_json(entry) for entry in quarantined)
    return BatchLoader(
        dataclasses.replace(
            config.data_of(stage).stream_settings(config.train.seed, known), part=group.part
        ),
        Stripes(
            global_batch_size=stage.global_batch_size,
            micro_batch_size=config.train.micro_batch_size,
            rank=group.number,
            world_size=group.count,
            start_sample=position.sample_index,
        ),
        workers=config.data.workers,
    )


def _observer(
    config: RunConfig,
    rank: Rank,
    group: SampleGroup,
    engine: TrainingEngine,
    control: Control,
    timer: StepTimer,
    resumed: Position | None,
    stream: PretrainingStream,
) -> Observer:
    from deepspeed.comm import comm

    ranks, device = rank.ranks, rank.device
    folder = RunFolder(config.run_path)
    metrics = None
    if ranks.rank == 0:
        write_atomically(folder.config_path, config.to_yaml())
        write_json(folder.environment_path, describe_environment(ranks, device))
        metrics = open_metrics(
            folder,
            config.telemetry,
            name=config.name,
            configuration=config.to_dict(),
            configuration_yaml=config.to_yaml(),
            # Without a checkpoint even what was told of step 0 is told again.
            start_step=-1 if resumed is None else resumed.step,
            logger=rank.logger,
        )
    steps = 0 if resumed is None else resumed.step
    progress = ProgressLine(steps, config.train.max_steps, silent=ranks.rank != 0)
    dtype = torch.float32 if config.train.precision == "fp32" else torch.bfloat16
    heldout = next(iter(config.data.heldout_locations()))
    observer = Observer(
        config=config,
        engine=engine,
        control=control,
        timer=timer,
        meter=CommunicationMeter(timer, comm.cdb).install(),
        metrics=metrics,
        progress=progress,
        heldout=PretrainingStream(config.data.heldout_settings(config.train.seed, heldout)),
        epochs=stream.epochs,
        ranks=ranks,
        group=group,
        device=device,
        peak_flops_per_second=peak_flops_per_second(device, dtype) * ranks.world_size,
        logger=rank.logger,
    )
    if steps:
        text = f"resuming after step {steps} of {config.train.max_steps}"
        observer.event("resume", steps, text, processes=ranks.world_size)
    return observer


def _decisions(path: Path, control: Control, first: bool) -> list[Any]:
    """As rank 0 reads them: two hosts may see a shared file at different moments."""
    found: list[Any] = control.gather(read_decisions(path) if first else None)[0]
    return found


def _resumable(folder: RunFolder, rank: Rank) -> Path | None:
    """The newest sound checkpoint, the same on every rank; tells what is wrong with newer ones."""
    rank.watchdog.beat("looking for a checkpoint")
    if rank.ranks.rank == 0:
        for line in clean_up(folder.path):
            rank.logger.warning("%s", line)
    if rank.ranks.world_size > 1:
        dist.barrier(group=rank.control_group)
    found, passed_over = agree_on_resumable(
        folder.path,
        rank=rank.ranks.rank,
        world_size=rank.ranks.world_size,
        group=rank.control_group,
    )
    for problem in passed_over:
        rank.logger.warning("passed over: %s", problem)
        print(f"passed over a damaged checkpoint: {problem}", flush=True)
    return found


def _check_resumable(config: RunConfig, path: Path, now: dict[str, str], *, fresh: bool) -> None:
    if fresh:
        raise RunError(
            f"{config.run_path} already holds {path.name} and --fresh refuses to resume; "
            "choose another name= or remove the folder"
        )
    manifest = read_manifest(path)
    found = differences(
        load_run_config(path),
        manifest["fingerprints"],
        config,
        now,
        manifest["sample_index"],
        manifest["tokens_seen"],
    )
    if found:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(found)}; restore these or choose "
            "another name="
        )
