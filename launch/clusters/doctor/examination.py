"""Examines all machines of a cluster together, and gathers what was found."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.clusters.doctor.comparing import (
    compare_clocks,
    compare_folders,
    compare_ports,
    compare_versions,
    judge_all_reduce,
)
from launch.clusters.doctor.conversation import Conversation, Start
from launch.clusters.doctor.facts import NodeFacts
from launch.clusters.doctor.judging import judge_node
from launch.clusters.doctor.meeting import CONNECT_SECONDS, Contact
from launch.clusters.doctor.sharing import WAIT_SECONDS, leave_note, unseen_notes
from launch.doctor import Finding
from launch.failures import CommandError

# Another folder, a cold interpreter and a network file system take their time.
START_SECONDS = 30.0
# Every connection and every file has a limit of its own; several waves of them follow one another.
_MEET_SECONDS = 6 * CONNECT_SECONDS + WAIT_SECONDS
_REDUCE_SECONDS = 100.0
# How this machine signs its file in the shared folder.
_DOCTOR = "doctor"
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")

_START_BY_HAND = (
    "start a program there by hand in the same way; look at the machine's power, name and firewall,"
    " and at nodes.python, nodes.source and nodes.modules"
)


@dataclass(frozen=True)
class Machines:
    """How the machines of a cluster are reached."""

    names: tuple[str, ...]
    """By number, as the others are to call them; "" where only the machine itself knows."""
    starts: tuple[Start, ...]
    folder: Path
    """Absolute; should be shared by all."""
    port_range: tuple[int, int] | None = None
    """Ports that the launcher uses beside those that the system hands out."""
    gpus_per_node: int | None = None
    network_interface: str | None = None
    start_seconds: float = START_SECONDS


@dataclass(frozen=True)
class Column:
    """All that was found out about one machine."""

    name: str
    findings: tuple[Finding, ...]
    facts: NodeFacts | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "findings": [finding.to_dict() for finding in self.findings],
            "facts": None if self.facts is None else self.facts.to_dict(),
        }


@dataclass(frozen=True)
class Report:
    """The result of an examination."""

    columns: tuple[Column, ...]
    all_reduce: Mapping[str, Any] | None
    """Backend, ranks, and the seconds of each size; none where it was not measured."""

    @property
    def failed(self) -> bool:
        """Whether something essential fails on some machine."""
        return any(item.state == "fail" for column in self.columns for item in column.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "nodes": [column.to_dict() for column in self.columns],
            "all_reduce": self.all_reduce,
        }


def examine_cluster(machines: Machines) -> Report:
    """Examine all machines together. Every wait has a limit.

    Args:
        machines: How they are reached.

    Raises:
        CommandError: If there are no machines to examine, as a scheduler gave none.
        OSError: If the program that reaches them cannot be started.
    """
    with Conversation(machines.starts) as conversation:
        report = _Examination(machines, conversation).run()
        reasons = set(conversation.lost.values())
    # One program for all, and one reason: nothing distinguishes the machines.
    if len(machines.starts) == len(reasons) == 1 and len(conversation.lost) == len(machines.names):
        raise CommandError(reasons.pop())
    return report


class _Examination:
    def __init__(self, machines: Machines, conversation: Conversation) -> None:
        self._machines = machines
        self._conversation = conversation
        self._names = {node: name or f"node {node}" for node, name in enumerate(machines.names)}
        self._word, self._token = secrets.token_hex(8), secrets.token_hex(16)
        self._facts: dict[int, NodeFacts] = {}
        self._hellos: dict[int, dict[str, Any]] = {}
        self._findings: dict[int, list[Finding]] = {node: [] for node in self._names}
        self._measured: Mapping[str, Any] | None = None

    def run(self) -> Report:
        self._begin()
        if self._facts:
            self._add(compare_versions(self._facts))
            contacts = self._meet()
            self._reduce(contacts)
        return Report(
            tuple(
                Column(name, self._findings_of(node), self._facts.get(node))
                for node, name in self._names.items()
            ),
            self._measured,
        )

    def _findings_of(self, node: int) -> tuple[Finding, ...]:
        found = self._findings[node]
        lost = self._conversation.lost.get(node)
        if lost is None:
            return (Finding("reached", "ok", "yes"), *found)
        # Who knows the reason better also knows the remedy.
        reason, _, remedy = lost.removeprefix(f"{self._names[node]}: ").partition("; ")
        return (Finding("reached", "fail", reason, remedy or _START_BY_HAND), *found)

    def _add(self, findings: Mapping[int, Finding]) -> None:
        for node, finding in findings.items():
            self._findings[node].append(finding)

    def _begin(self) -> None:
        ours = self._machines.port_range
        answers = self._conversation.order(
            {
                "do": "begin",
                "folder": str(self._machines.folder),
                "port_ranges": [(0, 0), *([ours] if ours else [])],
                "word": self._word,
                "token": self._token,
            },
            self._machines.start_seconds,
        )
        for node, answer in sorted(answers.items()):
            try:
                self._facts[node] = NodeFacts.of_dict(answer["facts"])
            except ValueError as error:
                remedy = "let all machines use the same code: nodes.python, nodes.working_folder"
                self._findings[node].append(Finding("same versions", "fail", str(error), remedy))
                continue
            self._hellos[node] = answer
            self._names[node] = self._machines.names[node] or answer["name"]
            self._findings[node] += judge_node(self._facts[node], self._machines.gpus_per_node)

    def _meet(self) -> dict[int, list[Contact]]:
        folder = self._machines.folder
        note: Path | None = None
        with contextlib.suppress(OSError):
            note = leave_note(folder, self._word, _DOCTOR)
        try:
            answers = self._conversation.order(
                {
                    "do": "meet",
                    "token": self._token,
                    "nodes": [
                        [node, self._names[node], hello["ports"]]
                        for node, hello in self._hellos.items()
                    ],
                    "writers": {_DOCTOR: "the machine where the doctor runs"},
                },
                _MEET_SECONDS,
            )
        finally:
            if note is not None:
                note.unlink(missing_ok=True)
        names = {node: self._names[node] for node in answers}
        contacts = {
            node: [Contact(**item) for item in answer["contacts"]]
            for node, answer in answers.items()
        }
        unseen = {node: answer["unseen"] for node, answer in answers.items()}
        writers = {str(node): name for node, name in names.items()}
        unseen_here = unseen_notes(folder, self._word, writers, wait_seconds=1.0)
        self._add(compare_clocks(list(names), contacts))
        self._add(compare_ports(names, contacts, self._port_ranges()))
        self._add(compare_folders(str(folder), names, unseen, unseen_here))
        return contacts

    def _reduce(self, contacts: Mapping[int, Sequence[Contact]]) -> None:
        blocked = {
            node
            for observer, found in contacts.items()
            for item in found
            if item.problem
            for node in (observer, item.node)
        }
        nodes = [node for node in contacts if node not in blocked]
        if not nodes or (len(nodes) < 2 and len(self._names) > 1):
            remedy = "let the machines reach one another first"
            finding = Finding("all-reduce", "warn", "not measured", remedy)
            self._add(dict.fromkeys(contacts, finding))
            return
        gpus = min(len(self._facts[node].gpus) for node in nodes)
        answers = self._conversation.order(
            {
                "do": "reduce",
                "nodes": nodes,
                "ranks_per_node": gpus or (2 if len(nodes) == 1 else 1),
                "device": "cuda" if gpus else "cpu",
                "address": self._names[nodes[0]],
                "port": self._hellos[nodes[0]]["meeting_port"],
                "interface": self._machines.network_interface,
            },
            _REDUCE_SECONDS,
        )
        self._measured = answers.get(nodes[0], {}).get("measured")
        self._add({node: self._reduced(node, answers[node], len(nodes)) for node in answers})

    def _reduced(self, node: int, answer: Mapping[str, Any], nodes: int) -> Finding:
        problem = answer.get("problem")
        if problem:
            remedy = (
                "ranks will not meet either: mend the other red cells first, then name the network"
                " in nodes.network_interface"
            )
            return Finding("all-reduce", "fail", problem, remedy)
        if self._measured is None:
            return Finding("all-reduce", "warn", "not measured", "the first machine did not answer")
        return judge_all_reduce(self._measured, nodes)

    def _port_ranges(self) -> str:
        try:
            handed_out = "-".join(_PORT_RANGE.read_text().split())
        except OSError:
            handed_out = "that the system hands out"
        ours = self._machines.port_range
        return handed_out if ours is None else f"{ours[0]}-{ours[1]} and {handed_out}"
