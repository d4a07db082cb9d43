"""One worker process of a run, from its first signal handler to its exit code.

What is heavy is imported inside, after the signal handlers stand.
"""

from __future__ import annotations

import logging
import os
import time

from pretrain.config import RunConfig
from pretrain.errors import RunError
from pretrain.ranks import Ranks, export_rendezvous, find_ranks
from pretrain.resilience.stop import STOPPED_EXIT_CODE, StopRequest
from pretrain.run_folder import RunFolder, write_json


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
    config.accumulation_steps(ranks.world_size)
    export_rendezvous(ranks, os.environ)
    folder = RunFolder(config.run_path)
    logger = _prepare(folder, ranks)
    logger.info("rank %d of %d starts (%s)", ranks.rank, ranks.world_size, ranks.launcher)
    try:
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
    from torch import distributed

    from pretrain.assembly import assemble_trainer
    from pretrain.engine.engine import start_processes
    from pretrain.hardware import pick_device

    device = pick_device(ranks.local_rank)
    start_processes(device, deterministic=config.train.deterministic)
    try:
        trainer = assemble_trainer(config, ranks, device, stop, fresh=fresh, logger=logger)
        try:
            finished = trainer.run()
        finally:
            trainer.close()
        if finished:
            trainer.progress.say(f"done: {config.train.max_steps} steps in {folder.path}")
            return 0
        step = trainer.position.step
        if ranks.rank == 0:
            write_json(
                folder.stop_marker,
                {"step": step, "signal": stop.signal_name, "unix_seconds": time.time()},
            )
        trainer.progress.say(f"stopped on request after step {step}, state saved")
        return STOPPED_EXIT_CODE
    finally:
        distributed.destroy_process_group()


def _prepare(folder: RunFolder, ranks: Ranks) -> logging.Logger:
    """Make the run's folder and open this rank's log; DeepSpeed's messages go there too."""
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
        if ranks.rank == 0:
            folder.stop_marker.unlink(missing_ok=True)
        handler = logging.FileHandler(folder.logs / f"rank-{ranks.rank:05d}.log", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{folder.path}: cannot be written ({error.strerror}); choose another run_dir"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("spade")
    logger.setLevel(logging.INFO)
    for name in ("spade", "DeepSpeed", "py.warnings"):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False
    logging.captureWarnings(True)
    return logger
