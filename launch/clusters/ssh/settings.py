"""What the description of a rack of ssh hosts says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from launch.clusters.settings import ClusterSettings

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SshCluster(ClusterSettings):
    """Hosts that ssh reaches. Which ones, a hostfile says."""

    config_file: Path | None = None
    """Configuration of ssh (`ssh -F FILE`): user names, keys, ports, jump hosts. None is the
    user's own."""
    connect_seconds: Annotated[int, Field(ge=1, le=600)] = 10
    """Longest wait for a host to answer."""
    wait_for_hosts_seconds: Seconds = 3600.0
    """After a failure, longest wait for the hosts to answer again."""
    end_seconds: Seconds = 120.0
    """Once a host has failed, longest wait for the others' ranks to save or notice; then they are
    killed. The newest complete checkpoint is safe either way."""
