"""Starts the ranks of a run on this machine, passes a stop on to them, leaves none behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.attempts import Attempts
from launch.failures import CommandError
from launch.keep_running import RunResult, keep_running, newest_checkpoint
from launch.processes import ProcessResult, run_supervised
from launch.rank_output import OUTPUT_VARIABLE

if TYPE_CHECKING:
    from launch.clusters.job import Job


def number_of_cores() -> int:
    """Counts the cores this process may use, which a container or a scheduler can limit."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_nvidia_gpu() -> bool:
    """Tells whether this machine has an NVIDIA GPU with a driver, without importing torch."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listing = subprocess.run([program, "-L"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and b"GPU" in listing.stdout


def worker_environment(
    processes: int,
    base: Mapping[str, str] | None = None,
    *,
    gloo_interface: str | None = "lo",
    run: Path | None = None,
) -> dict[str, str]:
    """Builds the environment of the ranks; what the user has set stays.

    Args:
        processes: Ranks that share this machine.
        base: Environment to start from (default: ours).
        gloo_interface: Network interface for gloo, which looks its own host name up otherwise and
            fails where nobody has registered it; none leaves it to gloo.
        run: The run's folder, where a rank that fails leaves word.

    Returns:
        The whole environment, with the interpreter's folder first in PATH, threads shared out
        among the ranks, and the settings that DeepSpeed and torchrun need. Ranks behind the first
        print into files.
    """
    environment = dict(os.environ if base is None else base)
    programs = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([programs, environment.get("PATH", os.defpath)])
    environment.setdefault("OMP_NUM_THREADS", str(max(1, number_of_cores() // processes)))
    # `python -m launch.cli` must not take a folder named launch in the user's own for ours (3.11+).
    environment.setdefault("PYTHONSAFEPATH", "1")
    # Restarted ranks would otherwise read the addresses of dead ones (torch 2.13, gloo).
    environment.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    if not has_nvidia_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    if gloo_interface is not None and Path("/sys/class/net", gloo_interface).exists():
        environment.setdefault("GLOO_SOCKET_IFNAME", gloo_interface)
    environment.setdefault(OUTPUT_VARIABLE, "file")
    if run is not None:
        from pretrain.resilience.failures import LOG_FOLDER_VARIABLE
        from pretrain.run_folder import RunFolder

        environment[LOG_FOLDER_VARIABLE] = str(RunFolder(run).logs.absolute())
    return environment


def ask_workers(launcher: subprocess.Popen[Any], asked: set[int]) -> None:
    """Sends SIGTERM to the ranks, once to each.

    They get it directly: torchrun would kill them 30 s after passing it on, and a large checkpoint
    takes longer. Before there are ranks, torchrun itself is asked.
    """
    import psutil

    try:
        parent = psutil.Process(launcher.pid)
        ranks, own_command = parent.children(), parent.cmdline()
    except psutil.Error:
        return
    if not ranks and not asked:
        asked.add(launcher.pid)
        launcher.terminate()
    for rank in ranks:
        with contextlib.suppress(psutil.Error):
            # A child that has not become a rank yet would lose the signal while it does.
            if rank.pid not in asked and rank.cmdline() != own_command:
                asked.add(rank.pid)
                rank.terminate()


def run_workers(
    worker: Sequence[str],
    *,
    processes: int,
    stop_marker: Path,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
    max_restarts: int = 0,
    step_of_checkpoint: Callable[[], int] | None = None,
    run: Path | None = None,
) -> RunResult:
    """Runs ``worker`` as ``processes`` ranks under torchrun and waits for their end.

    SIGINT, SIGTERM and SIGHUP reach every rank as one SIGTERM; a second Ctrl-C kills. After a
    failure the ranks are started again, as :class:`launch.restarts.Restarts` decides.

    Args:
        worker: A script, or ``-m`` and a module, with its arguments.
        processes: Number of ranks.
        stop_marker: File that rank 0 writes when the run stopped on request; removed first.
        environment: Environment to start from (default: ours).
        watch: Called about ten times a second while the ranks run.
        max_restarts: Restarts in a row without a newer checkpoint.
        step_of_checkpoint: Gives the step of the newest complete checkpoint, -1 without one.
        run: The run's folder, where starts, ends and failures are written down; none for workers
            that are no run.

    Raises:
        CommandError: ``processes`` or ``max_restarts`` is too small.
        OSError: A file cannot be removed or a process not started.
    """
    if processes < 1:
        raise CommandError(f"processes: {processes} is too few; give 1 or more")
    ranks = worker_environment(processes, environment, run=run)
    attempts = None if run is None else Attempts(run, "local", {"processes": processes})
    return keep_running(
        lambda: _run_once(local_command(worker, processes), ranks, watch),
        stop_marker=stop_marker,
        max_restarts=max_restarts,
        step_of_checkpoint=step_of_checkpoint,
        attempts=attempts,
    )


def local_command(worker: Sequence[str], processes: int) -> list[str]:
    """The program that starts so many ranks of ``worker``, with its arguments."""
    return [
        *(sys.executable, "-m", "launch.torchrun"),
        *("--standalone", "--nproc-per-node", str(processes)),
        *worker,
    ]


def _run_once(
    command: Sequence[str], environment: Mapping[str, str], watch: Callable[[], None] | None
) -> ProcessResult:
    asked: set[int] = set()
    return run_supervised(
        command,
        environment=environment,
        ask_to_stop=lambda launcher: ask_workers(launcher, asked),
        watch=watch,
        grace_seconds=None,
    )


def pretrain_worker(config: Path) -> list[str]:
    """The worker of a run, for `local_command`."""
    return ["-m", "launch.cli", "pretrain", str(config)]


def run_job(
    job: Job,
    *,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
) -> RunResult:
    """Checks a job, and runs it as ranks of this machine.

    Args:
        job: What is to run.
        environment: Environment to start from (default: ours).
        watch: Called about ten times a second while the ranks run.

    Raises:
        CommandError: Something would keep the run from starting; one line a problem.
        OSError: A file cannot be read or written, or a process not started.
    """
    from launch.clusters.job import freeze_config
    from launch.clusters.preflight import check_before_launch
    from launch.clusters.settings import NodeSettings
    from pretrain.run_folder import RunFolder

    config = check_before_launch(job, NodeSettings())
    run = config.run_path
    return run_workers(
        pretrain_worker(freeze_config(config)),
        processes=job.processes_per_node,
        stop_marker=RunFolder(run).stop_marker,
        environment=environment,
        watch=watch,
        max_restarts=job.max_restarts,
        step_of_checkpoint=lambda: newest_checkpoint(run),
        run=run,
    )


def run_local(
    arguments: Sequence[str],
    *,
    processes: int,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
    max_restarts: int = 0,
) -> RunResult:
    """Runs ``spade pretrain ARGUMENTS`` as ``processes`` ranks on this machine; see `run_job`.

    Args:
        arguments: The configuration file, then overrides ``a.b=c``.
        processes: Number of ranks.
        environment: Environment to start from (default: ours).
        watch: Called about ten times a second while the ranks run.
        max_restarts: After a failure go on from the newest checkpoint, at most so often in a row
            without a newer one.

    Raises:
        CommandError: Something would keep the run from starting; one line a problem.
        OSError: A file cannot be read or written, or a process not started.
    """
    from launch.clusters.job import Job

    path, *overrides = arguments
    job = Job.of(Path(path), overrides, processes=processes, max_restarts=max_restarts)
    return run_job(job, environment=environment, watch=watch)
