"""One worker process of a run, from its first signal handler to its exit code.

What is heavy is imported inside, after the signal handlers stand.
"""

from __future__ import annotations

import logging
import os
import time
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING

from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.ranks import Ranks, export_rendezvous, find_ranks
from pretrain.resilience.collectives import CollectiveRecorder
from pretrain.resilience.failures import forget_failure, log_name, recorded_errors
from pretrain.resilience.stop import STOPPED_EXIT_CODE, StopRequest
from pretrain.resilience.watchdog import Watchdog
from pretrain.run_folder import RunFolder, write_json
from pretrain.telemetry.settings import TelemetrySettings

if TYPE_CHECKING:
    import torch

    from pretrain.loop import Trainer


def main(config: RunConfig, *, fresh: bool = False) -> int:
    """Train, resuming from the run folder's newest sound checkpoint.

    Args:
        config: The resolved configuration.
        fresh: Refuse to resume: the run folder must hold no checkpoint.

    Returns:
        0 when the last step is done, 75 when stopped on request with the state saved.

    Raises:
        ConfigError: If the batch cannot be cut over the processes.
        RunError: If the run cannot start or go on.
        CheckpointError: If a checkpoint cannot be written, or belongs to another run.
        DataError: If the data are damaged.
    """
    stop = StopRequest().install()
    ranks = find_ranks(os.environ)
    config.most_accumulation_steps(ranks.world_size)
    export_rendezvous(ranks, os.environ)
    folder = RunFolder(config.run_path)
    logger = _prepare(folder, ranks, config.telemetry)
    stop.watch(
        file=folder.stop_request if ranks.rank == 0 else None,
        wall_clock_seconds=config.resilience.stop.wall_clock_seconds,
    )
    logger.info("rank %d of %d starts (%s)", ranks.rank, ranks.world_size, ranks.launcher)
    try:
        with recorded_errors(ranks.rank, folder.logs):
            code = _train(config, ranks, folder, stop, fresh=fresh, logger=logger)
    except BaseException:
        logger.exception("rank %d fails", ranks.rank)
        raise
    logger.info("rank %d leaves with code %d", ranks.rank, code)
    return code


def _train(
    config: RunConfig,
    ranks: Ranks,
    folder: RunFolder,
    stop: StopRequest,
    *,
    fresh: bool,
    logger: logging.Logger,
) -> int:
    recorder = CollectiveRecorder()
    settings = config.resilience
    with Watchdog(
        settings.watchdog, rank=ranks.rank, log_folder=folder.logs, recorder=recorder
    ) as watchdog:
        from torch import distributed

        from pretrain.engine.start import start_processes
        from pretrain.hardware import pick_device
        from pretrain.resilience.collective_timeout import carry_timeout
        from pretrain.telemetry.writer import check_trackers

        check_trackers(config.telemetry)
        device = pick_device(ranks.local_rank)
        start_processes(
            device,
            deterministic=config.train.deterministic,
            matrix_product_precision=config.train.matrix_product_precision,
        )
        carry_timeout(settings.collective_timeout_seconds)
        recorder.attach()
        try:
            return _train_together(config, ranks, folder, stop, device, watchdog, recorder, fresh)
        finally:
            recorder.detach()
            distributed.destroy_process_group()


def _train_together(
    config: RunConfig,
    ranks: Ranks,
    folder: RunFolder,
    stop: StopRequest,
    device: torch.device,
    watchdog: Watchdog,
    recorder: CollectiveRecorder,
    fresh: bool,
) -> int:
    """Once all ranks have met."""
    from torch import distributed

    from pretrain.assembly import Rank, assemble_trainer
    from pretrain.resilience.liveness import Liveness

    rank = Rank(
        ranks=ranks,
        device=device,
        stop=stop,
        watchdog=watchdog,
        control_group=distributed.new_group(backend="gloo"),
        saving_group=distributed.new_group(backend="gloo"),
        logger=logging.getLogger("spade"),
    )
    with Liveness(
        config.resilience.liveness,
        rank=ranks.rank,
        world_size=ranks.world_size,
        host=os.environ["MASTER_ADDR"],
        group=rank.control_group,
        log_folder=folder.logs,
        recorder=recorder,
    ) as liveness:
        watchdog.announce = liveness.abort
        trainer = assemble_trainer(config, rank, fresh=fresh)
        try:
            # Before anything is closed, which may wait for the other ranks.
            with recorded_errors(ranks.rank, folder.logs):
                finished = trainer.run()
            code = _leave(trainer, folder, stop, first=ranks.rank == 0, finished=finished)
        finally:
            trainer.close()
        # All leave together: launchers end within seconds whoever stays behind the first, and rank
        # 0 may have trackers to close.
        distributed.barrier(group=rank.control_group)
        return code


def _leave(
    trainer: Trainer, folder: RunFolder, stop: StopRequest, *, first: bool, finished: bool
) -> int:
    """Say how the run ended, to people and to launchers."""
    step = trainer.position.step
    if finished:
        trainer.observer.progress.say(f"done: {step} steps in {folder.path}")
        return 0
    reason = trainer.control.stop_reason()
    if first:
        write_json(
            folder.stop_marker, {"step": step, "reason": reason, "unix_seconds": time.time()}
        )
        stop.honoured()
    trainer.observer.progress.say(f"stopped on request ({reason}) after step {step}, state saved")
    return STOPPED_EXIT_CODE


def _prepare(folder: RunFolder, ranks: Ranks, settings: TelemetrySettings) -> logging.Logger:
    """Make the run's folder and open this rank's log; DeepSpeed's messages go there too."""
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        forget_failure(folder.logs, ranks.rank)
        if ranks.rank == 0:
            folder.stop_marker.unlink(missing_ok=True)
        handler = RotatingFileHandler(
            folder.logs / log_name(ranks.rank),
            maxBytes=max(1, int(settings.log_megabytes * 1e6)),
            backupCount=settings.log_files - 1,
            encoding="utf-8",
        )
    except OSError as error:
        raise RunError(
            f"{folder.path}: cannot be written ({error.strerror}); choose another run_dir"
        ) from None
    # A worker of the loader, forked from this process, must not put the file aside a second time.
    os.register_at_fork(after_in_child=lambda: setattr(handler, "maxBytes", 0))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("spade")
    logger.setLevel(logging.INFO)
    for name in ("spade", "DeepSpeed", "py.warnings"):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False
    logging.captureWarnings(True)
    return logger
