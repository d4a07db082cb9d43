"""What runs on the hosts of an ssh launch: the programs, word by word."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.clusters.node import Place, node_program
from launch.clusters.shell import bash_command
from launch.clusters.ssh.connection import ssh_command
from launch.clusters.ssh.hostfile import Host
from launch.clusters.ssh.probe import Questions
from launch.clusters.ssh.settings import SshCluster


@dataclass(frozen=True)
class SshPlan:
    """One run on some hosts."""

    cluster: SshCluster
    hosts: tuple[Host, ...]
    """All that are wanted, in the order of the hostfile."""
    processes: int
    """Ranks of each."""
    config: Path
    """The configuration that was checked, as an absolute path that all hosts see."""
    working_folder: Path
    """Where the run's relative paths begin."""

    def agent_commands(self, hosts: Sequence[Host], port: int) -> list[list[str]]:
        """Arguments of ssh for each host that takes part; the first one is where all meet.

        Args:
            hosts: Those that take part.
            port: Free on the first of them.
        """
        return [
            self._on(
                host,
                node_program(
                    Place(
                        nodes=len(hosts),
                        node_rank=rank,
                        processes=self.processes,
                        master_address=hosts[0].machine,
                        master_port=port,
                        network_interface=self.cluster.nodes.network_interface,
                    ),
                    self.config,
                    obey=True,
                ),
            )
            for rank, host in enumerate(hosts)
        ]

    def probe_command(self, host: Host, questions: Questions) -> list[str]:
        """Arguments of ssh that ask a host what it is like."""
        words = json.dumps(asdict(questions))
        return self._on(host, ["-m", "launch.clusters.ssh.probe", words])

    def _on(self, host: Host, program: Sequence[str]) -> list[str]:
        python = self.cluster.nodes.python or Path(sys.executable)
        remote = [str(python), *program]
        return ssh_command(
            self.cluster, host, bash_command(self.cluster.nodes, self.working_folder, remote)
        )
