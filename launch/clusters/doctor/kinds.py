"""How the agents are started on each kind of cluster: argument vectors, nothing for a shell."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.clusters.doctor.conversation import Start
from launch.clusters.doctor.examination import START_SECONDS, Machines
from launch.clusters.mpi.flavours import detect_flavour
from launch.clusters.mpi.settings import MpiCluster
from launch.clusters.settings import ClusterSettings, NodeSettings, load_cluster
from launch.clusters.shell import bash_command
from launch.clusters.slurm.controller import expand_hosts
from launch.clusters.slurm.settings import SlurmCluster
from launch.clusters.ssh.connection import LOST, explain_refusal, ssh_command
from launch.clusters.ssh.hostfile import Host, read_hostfile
from launch.clusters.ssh.settings import SshCluster
from launch.failures import CommandError
from launch.mpi import find_mpiexec, mpi_environment

KINDS = ("local", "slurm", "ssh", "mpi")
# Longest wait for free nodes; srun gives up then, and says so.
_QUEUE_SECONDS = 60
_SLURM_PORTS = (10000, 29999)


def machines_of(
    kind: str,
    *,
    description: Path | None,
    hostfile: Path | None,
    nodes: int | None,
    gpus_per_node: int | None,
    folder: Path,
) -> Machines:
    """Find out how to reach the machines.

    Args:
        kind: One of :data:`KINDS`.
        description: The cluster's description as YAML; none leaves everything at its default.
        hostfile: For ssh and mpi.
        nodes: How many machines; none means all of the hostfile or the allocation.
        gpus_per_node: GPUs that each should have; none does not compare.
        folder: That all should share.

    Raises:
        ValueError: Something is missing or contradicts itself; one line a problem.
        OSError: A file cannot be read.
    """
    folder = folder.absolute()
    if kind == "local":
        return _local(load_cluster(description, ClusterSettings).nodes, folder, gpus_per_node)
    if kind == "slurm":
        cluster = load_cluster(description, SlurmCluster)
        return _slurm(cluster, nodes, folder, gpus_per_node)
    if kind not in KINDS:
        raise CommandError(f"--cluster {kind!r} is none of {', '.join(KINDS)}")
    if hostfile is None:
        raise CommandError(f"--cluster {kind} needs --hostfile FILE, one line HOST slots=N a host")
    hosts = read_hostfile(hostfile)
    if nodes is not None and nodes > len(hosts):
        raise CommandError(f"--nodes {nodes} exceeds the {len(hosts)} hosts of {hostfile}")
    if kind == "ssh":
        return _ssh(load_cluster(description, SshCluster), hosts[:nodes], folder, gpus_per_node)
    return _mpi(load_cluster(description, MpiCluster), hosts[:nodes], folder, gpus_per_node)


def _agent(nodes: NodeSettings, *words: str) -> list[str]:
    """What runs on a machine."""
    python = str(nodes.python or sys.executable)
    program = [python, "-m", "launch.clusters.doctor.agent", *words]
    return bash_command(nodes, Path.cwd(), program)


def _local(nodes: NodeSettings, folder: Path, gpus_per_node: int | None) -> Machines:
    start = Start(tuple(_agent(nodes, "--node", "0")), (0,))
    return Machines(("localhost",), (start,), folder, None, gpus_per_node, nodes.network_interface)


def _ssh(
    cluster: SshCluster, hosts: Sequence[Host], folder: Path, gpus_per_node: int | None
) -> Machines:
    starts = []
    for number, host in enumerate(hosts):
        command = ssh_command(cluster, host, _agent(cluster.nodes, "--node", str(number)))

        def explain(code: int, said: str, host: Host = host) -> str:
            return explain_refusal(cluster, host, said).problem if code == LOST else ""

        starts.append(Start(tuple(command), (number,), explain=explain))
    names = tuple(host.machine for host in hosts)
    interface = cluster.nodes.network_interface
    wait_seconds = START_SECONDS + cluster.connect_seconds
    return Machines(names, tuple(starts), folder, None, gpus_per_node, interface, wait_seconds)


def _mpi(
    cluster: MpiCluster, hosts: Sequence[Host], folder: Path, gpus_per_node: int | None
) -> Machines:
    mpiexec = cluster.mpiexec or find_mpiexec()
    if mpiexec is None:
        raise CommandError('no mpiexec found: pip install ".[mpi]" brings one')
    flavour = cluster.flavour or detect_flavour(mpiexec)
    # Otherwise an agent would see the one core that Open MPI binds it to.
    words = [*(["--bind-to", "none"] if flavour == "openmpi" else []), *cluster.extra_arguments]
    starts = [
        Start(
            # One mpiexec a host: it passes its standard input on to its first rank alone.
            (
                *(str(mpiexec), "-n", "1", "-host", host.machine, *words),
                *_agent(cluster.nodes, "--node", str(number)),
            ),
            (number,),
            environment=mpi_environment(),
        )
        for number, host in enumerate(hosts)
    ]
    names = tuple(host.machine for host in hosts)
    interface = cluster.nodes.network_interface
    return Machines(names, tuple(starts), folder, None, gpus_per_node, interface)


def _slurm(
    cluster: SlurmCluster, nodes: int | None, folder: Path, gpus_per_node: int | None
) -> Machines:
    allocated = os.environ.get("SLURM_JOB_NUM_NODES", "")
    if nodes is None and not allocated.isdecimal():
        raise CommandError("--cluster slurm needs --nodes N, or an allocation made by salloc")
    count = int(allocated) if nodes is None else nodes
    hosts = expand_hosts(os.environ.get("SLURM_JOB_NODELIST", "")) if allocated else ()
    # Slurm chooses the nodes where there is a choice; they tell their names themselves.
    names = hosts if len(hosts) == count else ("",) * count
    command = [
        *("srun", f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--mpi=none"),
        *("--kill-on-bad-exit=0", "--wait=0", "--label", "--unbuffered", "--export=ALL"),
        *(_resources(cluster, gpus_per_node)),
        *(["--overlap"] if allocated else _request(cluster)),
        *_agent(cluster.nodes, "--node-variable", "SLURM_NODEID"),
    ]
    start = Start(tuple(command), tuple(range(count)), explain=_explain_srun)
    interface = cluster.nodes.network_interface
    wait_seconds = START_SECONDS + (0 if allocated else _QUEUE_SECONDS)
    return Machines(names, (start,), folder, _SLURM_PORTS, gpus_per_node, interface, wait_seconds)


def _resources(cluster: SlurmCluster, gpus_per_node: int | None) -> list[str]:
    if cluster.gres is not None:
        return [f"--gres={cluster.gres}"]
    return [f"--gpus-per-node={gpus_per_node}"] if gpus_per_node else []


def _request(cluster: SlurmCluster) -> list[str]:
    """Asks for nodes in the same way as a run of this cluster."""
    values = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "reservation": cluster.reservation,
        "mem": cluster.memory,
        "nodelist": ",".join(cluster.nodelist) or None,
        "exclude": ",".join(cluster.exclude) or None,
    }
    words = [f"--{name}={value}" for name, value in values.items() if value is not None]
    words += [
        f"--{name}" if value is None else f"--{name}={value}"
        for name, value in cluster.options.items()
    ]
    return [
        *("--job-name=spade-doctor", "--time=5", f"--immediate={_QUEUE_SECONDS}", *words),
        *(["--exclusive"] if cluster.exclusive else []),
    ]


def _explain_srun(_code: int, said: str) -> str:
    found = re.search(r"Unable to allocate resources: (.*)", said)
    if found is None:
        return ""
    if "busy" in found[1]:
        return (
            f"no nodes within {_QUEUE_SECONDS} s: {found[1]}; start this inside salloc, which waits"
        )
    return f"no nodes: {found[1]}; mend the description of the cluster or --nodes"
