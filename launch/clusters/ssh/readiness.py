"""Whether the hosts can run the training now: keys, login, interpreter, package, folders.

All hosts are asked at once, and each says its problem in one line with the remedy. ssh is never
given anything to ask the user: no password, no unknown key.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launch.clusters.ssh.connection import LOST, explain_refusal, last_line
from launch.clusters.ssh.hostfile import Host
from launch.clusters.ssh.plan import SshPlan
from launch.clusters.ssh.probe import Answer, Questions, own_versions, read_answer
from launch.failures import CommandError

_AT_ONCE = 64
# A host that answers may take long to start an interpreter from a file system that wakes up.
_ANSWER_SECONDS = 120.0
_NO_PROGRAM = (126, 127)


@dataclass(frozen=True)
class Report:
    """What came out for one host."""

    host: Host
    problem: str = ""
    """One line; empty where the host can start now."""
    passing: bool = False
    """The problem may pass by itself: the host does not answer, or still ends ranks of this run."""
    busy: bool = False
    """Ranks of this run are still there."""
    port: int = 0
    """Free there at the moment."""


def examine_hosts(plan: SshPlan, folders: Sequence[str]) -> list[Report]:
    """Ask all hosts of a plan.

    Args:
        plan: The run.
        folders: What the ranks read, as the configuration names it.

    Returns:
        A report for each host, in their order.

    Raises:
        CommandError: ssh is not installed here.
        OSError: The run's folder cannot be written.
    """
    token = secrets.token_hex(16)
    # Of a name that no host can have looked for before: it is there, or the folder is another one.
    token_file = plan.config.with_name(f".seen-by-all-{token[:12]}")
    token_file.write_text(token, encoding="utf-8")
    try:
        questions = Questions(
            config=str(plan.config),
            token_file=str(token_file),
            folders=list(folders),
            first_machine=plan.hosts[0].machine,
        )
        versions = own_versions()
        with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(plan.hosts))) as pool:
            return list(
                pool.map(lambda host: _examine(plan, host, questions, versions, token), plan.hosts)
            )
    finally:
        token_file.unlink(missing_ok=True)


def _examine(
    plan: SshPlan, host: Host, questions: Questions, versions: dict[str, str], token: str
) -> Report:
    try:
        asked = subprocess.run(
            plan.probe_command(host, questions),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise CommandError("ssh is not installed here; install OpenSSH's client") from None
    except subprocess.TimeoutExpired:
        problem = (
            f"{host.name}: took longer than {_ANSWER_SECONDS:g} s to answer; is it overloaded?"
        )
        return Report(host, problem, passing=True)
    if asked.returncode == LOST:
        refusal = explain_refusal(plan.cluster, host, asked.stderr)
        return Report(host, refusal.problem, passing=refusal.passing)
    answer = read_answer(asked.stdout)
    if answer is None:
        return Report(host, _explain_failure(plan, host, asked.returncode, asked.stderr))
    problem = _judge(plan, host, answer, versions, token)
    if problem:
        return Report(host, problem)
    if answer.busy:
        numbers = ", ".join(map(str, answer.busy[:4]))
        problem = (
            f"{host.name}: processes of this run are still there ({numbers}); wait for their end, "
            "or end their launcher"
        )
        return Report(host, problem, passing=True, busy=True)
    return Report(host, port=answer.port)


def _explain_failure(plan: SshPlan, host: Host, code: int, said: str) -> str:
    """Why a host let us in and then gave no answer."""
    nodes = plan.cluster.nodes
    reason = last_line(said) or f"exit code {code}"
    problem = f"cannot be made ready ({reason}); look at nodes.source and nodes.modules"
    if code in _NO_PROGRAM:
        problem = f"no interpreter ({reason}); install it there, or name it: nodes.python"
    elif ": cd: " in said:
        folder = nodes.working_folder or plan.working_folder
        problem = f"no folder {folder}; share it, or name another: nodes.working_folder"
    elif "No module named" in said:
        problem = f"{reason}; install this package there, or name its interpreter: nodes.python"
    return f"{host.name}: {problem}"


def _judge(plan: SshPlan, host: Host, answer: Answer, versions: dict[str, str], token: str) -> str:
    """What is wrong with an answer; "" for nothing."""
    for name, ours in versions.items():
        theirs = answer.versions.get(name, "none")
        if theirs != ours:
            return f"{host.name}: {name} {theirs}, but {ours} here; install the same on all hosts"
    if answer.token != token:
        return (
            f"{host.name}: does not see what is written to {plan.config.parent} here; put the run "
            "on a folder that all hosts share: run_dir"
        )
    if answer.missing:
        return f"{host.name}: {answer.missing[0]} is not there; share it with all hosts"
    if answer.first_address is None:
        return (
            f"{host.name}: does not know the name {plan.hosts[0].machine}; write names into the "
            "hostfile that all hosts know"
        )
    return ""
