"""``spade launch slurm``: checks a run, writes its script, submits it."""

from __future__ import annotations

import shlex
from pathlib import Path

from launch.clusters.job import Job, freeze_config
from launch.clusters.preflight import check_before_launch
from launch.clusters.record import append_event
from launch.clusters.settings import load_cluster
from launch.clusters.slurm.controller import submit
from launch.clusters.slurm.excluded import excluded_hosts
from launch.clusters.slurm.script import SlurmJob, script_text
from launch.clusters.slurm.settings import SlurmCluster
from launch.console import say, warn
from pretrain.run_folder import write_atomically


def launch_slurm(job: Job, description: Path | None, *, dry_run: bool) -> None:
    """Submit a run.

    Args:
        job: What is to run.
        description: The cluster's YAML file.
        dry_run: Print the script instead; nothing is written.

    Raises:
        ValueError: One line a problem: the description, the configuration, or Slurm's refusal.
        OSError: If the run's folder cannot be written.
    """
    cluster = load_cluster(description, SlurmCluster)
    config = check_before_launch(job, cluster.nodes)
    run = config.run_path.resolve()
    slurm_job = SlurmJob(
        job=job,
        cluster=cluster,
        run=run,
        working_folder=cluster.nodes.working_folder or Path.cwd(),
        excluded=tuple(excluded_hosts(run)),
    )
    text = script_text(slurm_job)
    if dry_run:
        say(text.rstrip("\n"))
        say(f"# submitted by: {shlex.join(['sbatch', '--parsable', str(slurm_job.script_path)])}")
        return
    for host, reason in excluded_hosts(run).items():
        warn(f"{host} is left out for a day since it failed ({reason}); see launch/excluded.json")
    freeze_config(config)
    write_atomically(slurm_job.script_path, text)
    number = submit(slurm_job.script_path)
    append_event(run, "slurm", "submitted", job=number, nodes=job.nodes)
    _tell(slurm_job, number)


def _tell(slurm_job: SlurmJob, number: str) -> None:
    """What to do with the job now."""
    run, name = slurm_job.run, slurm_job.name
    output = run / "launch" / f"slurm-{number}.out"
    say(f"submitted job {number}, {name}")
    say(f"  in the queue   squeue --name={name}")
    say(f"  its output     tail -F {shlex.quote(str(output))}")
    say(f"  progress       spade jobs {shlex.quote(str(run.parent))}")
    say(f"  save and stop  touch {shlex.quote(str(run / 'STOP'))}")
    say(f"  cancel         scancel --name={name}")
