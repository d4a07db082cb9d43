"""The ssh program: how it is called, and what its complaints mean."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from launch.clusters.ssh.hostfile import Host
from launch.clusters.ssh.settings import SshCluster

LOST = 255
"""ssh ends so when it cannot connect, or loses the connection, or the remote program was killed."""

# A host that falls silent is given up after 5 s x 4.
_OPTIONS = {
    "BatchMode": "yes",  # never asks for anything
    "StrictHostKeyChecking": "yes",  # never believes an unknown host
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "4",
    "TCPKeepAlive": "yes",
    # A connection of its own, which nobody else ends.
    "ControlMaster": "no",
    "ControlPath": "none",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "LogLevel": "ERROR",
}
_WRONG_CALL = ("Bad configuration option", "bad configuration options", "Can't open user config")


def ssh_command(cluster: SshCluster, host: Host, remote: Sequence[str]) -> list[str]:
    """Arguments that run a program on a host.

    ssh hands the remote shell one line of text; every word of the program is quoted in it.

    Args:
        cluster: How ssh is to be called.
        host: Where.
        remote: Program and arguments.
    """
    options = _OPTIONS | {"ConnectTimeout": str(cluster.connect_seconds)}
    words = ["ssh", "-T"]
    if cluster.config_file is not None:
        words += ["-F", str(cluster.config_file)]
    for name, value in options.items():
        words += ["-o", f"{name}={value}"]
    return [*words, "--", host.name, shlex.join(remote)]


@dataclass(frozen=True)
class Refusal:
    """Why ssh has ended with 255."""

    problem: str
    """One line: host, what is wrong, remedy."""
    passing: bool
    """It may pass by itself: the host does not answer."""


def explain_refusal(cluster: SshCluster, host: Host, said: str) -> Refusal:
    """Tell what it means that ssh could not connect.

    Args:
        cluster: How ssh was called.
        host: Where to.
        said: What it wrote on standard error.
    """
    by_hand = ["ssh", "-o", "StrictHostKeyChecking=ask"]
    if cluster.config_file is not None:
        by_hand += ["-F", str(cluster.config_file)]
    by_hand += [host.name, "true"]
    reason = last_line(said) or "the connection was closed"
    problem = f"does not answer ({reason}); is it up? try: {shlex.join(by_hand)}"
    passing = False
    if "HOST IDENTIFICATION HAS CHANGED" in said:
        problem = (
            "its key is not the one known here: it was set up anew, or another machine pretends "
            f"to be it; ask who runs it, then: ssh-keygen -R {host.machine}"
        )
    elif "host key is known" in said or "Host key verification failed" in said:
        problem = (
            "its key is not known here; this shows the key, and adds it when you say yes: "
            f"{shlex.join(by_hand)}"
        )
    elif "Permission denied" in said:
        problem = f"no login without a password; add your key once: ssh-copy-id {host.name}"
    elif any(words in said for words in _WRONG_CALL):
        problem = f"{reason}; mend the configuration of ssh"
    else:
        passing = True
    return Refusal(f"{host.name}: {problem}", passing)


def last_line(text: str) -> str:
    """The last line of a text that is not blank; "" without one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
