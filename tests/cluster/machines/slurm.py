"""A real Slurm over hosts: a controller on `login`, a daemon on every node, pretend GPUs.

Short time-outs everywhere: a node counts as down after 10 s, a requeued job waits 6 s.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from machines.hosts import LOGIN, Hosts, find_program, wait_for

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo")
_CONTROLLER_PORT, _NODE_PORT = 16817, 16818
# config_overrides: nodes claim more CPUs than they have. cred_expire is also how long a requeued
# job has to wait. Nothing uses cgroups, but the daemon loads a plugin for them: v1 needs none.
_CONFIG = """\
ClusterName=tests
SlurmctldHost={login}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SlurmctldTimeout=20
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
GresTypes=gpu
NodeName={nodes} CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def why_no_slurm() -> str:
    """Why this machine cannot have a Slurm, beside why it may not have hosts; "" where it can."""
    missing = [program for program in _PROGRAMS if find_program(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


class Slurm:
    """Talks to it as a user on `login` would; that host's commands find it by SLURM_CONF."""

    def __init__(self, hosts: Hosts, *, cpus_per_node: int = 2, gpus_per_node: int = 2) -> None:
        """Start it.

        Args:
            hosts: Where.
            cpus_per_node: Claimed.
            gpus_per_node: Pretended: device files that swallow what they get.
        """
        self.hosts = hosts
        self.folder = hosts.folder / "slurm"
        (self.folder / "state").mkdir(parents=True)
        config = self.folder / "slurm.conf"
        names = ",".join(hosts.nodes)
        config.write_text(
            _CONFIG.format(
                login=LOGIN,
                controller_port=_CONTROLLER_PORT,
                node_port=_NODE_PORT,
                folder=self.folder,
                nodes=names,
                cpus=cpus_per_node,
                gpus=gpus_per_node,
            )
        )
        devices = [self.folder / f"gpu{number}" for number in range(gpus_per_node)]
        for device in devices:
            os.mknod(device, 0o20666, os.makedev(1, 3))
        lines = [f"NodeName={names} Name=gpu File={device}\n" for device in devices]
        (self.folder / "gres.conf").write_text("".join(lines))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        hosts.environment["SLURM_CONF"] = str(config)
        for host in hosts.names:
            hosts.add_service(host, "munged", self._munged(host), None)
        controller = [str(find_program("slurmctld")), "-D", "-f", str(config)]
        hosts.add_service(LOGIN, "slurmctld", controller, _CONTROLLER_PORT)
        for node in hosts.nodes:
            (self.folder / f"spool-{node}").mkdir()
            command = [str(find_program("slurmd")), "-D", "-N", node, "-f", str(config)]
            hosts.add_service(node, "slurmd", command, _NODE_PORT)
        self.wait_until_idle()

    def run(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on `login` to its end: see :meth:`machines.hosts.Hosts.run`."""
        return self.hosts.run(
            LOGIN, *command, environment=environment, timeout_seconds=timeout_seconds, check=check
        )

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Reason, Restarts, NodeList, ExitCode …"""
        words = self.run("scontrol", "show", "job", "--oneliner", job).stdout.split()
        return dict(word.partition("=")[::2] for word in words)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED …"""
        return self.facts(job)["JobState"]

    def wait(self, job: str, *states: str, seconds: float = 60) -> str:
        """Wait until a job is in one of some states, and give that."""
        seen = ""

        def there() -> bool:
            nonlocal seen
            seen = self.state(job)
            return seen in states

        try:
            wait_for(there, seconds, f"job {job} to be {' or '.join(states)}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {seen}: {self.facts(job)}") from None
        return seen

    def restore(self) -> None:
        """Cancel all jobs and wait until all nodes are free: ready for the next test."""
        self.hosts.restore()
        self.run("scancel", "--user", "root")
        self.run("scancel", "--user", "root", "--signal=KILL", "--full")
        for node in self.hosts.nodes:
            changes = (f"nodename={node}", "state=resume")
            self.run("scontrol", "update", *changes, check=False)  # refused where it is up
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Return as soon as all nodes are up and free."""
        wanted = [f"{node} idle" for node in self.hosts.nodes]
        show = ("sinfo", "--noheader", "--Node", "--partition", "low", "--format", "%n %T")
        seen: list[str] = []

        def idle() -> bool:
            seen[:] = sorted(self.run(*show, check=False).stdout.splitlines())
            return seen == wanted

        try:
            wait_for(idle, 90, "all nodes to be idle")
        except AssertionError as error:
            raise AssertionError(f"{error}; they are: {seen}") from None

    def _munged(self, host: str) -> list[str]:
        own = self.folder / f"munge-{host}"
        own.mkdir(mode=0o700)
        return [
            *(str(find_program("munged")), "--foreground", f"--key-file={self.folder}/munge.key"),
            *(f"--seed-file={own}/seed", f"--log-file={own}/log", "--pid-file=/run/munge/pid"),
        ]
