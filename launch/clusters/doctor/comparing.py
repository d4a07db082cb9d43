"""From what several machines say of themselves and of one another to findings; pure.

Every function takes the machines by number and gives one finding for each.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from launch.clusters.doctor.facts import NodeFacts
from launch.clusters.doctor.meeting import Contact
from launch.doctor import Finding

# From here on the order of lines in several machines' logs misleads.
LATE_CLOCK_SECONDS = 0.1
# From here on files from other machines lie in the future, and the first error is not the first.
WRONG_CLOCK_SECONDS = 1.0
# Less than one gigabit a second.
SLOW_BYTES_PER_SECOND = 0.1e9
_ESSENTIAL = ("Python", "torch", "deepspeed", "our code")


def compare_versions(facts: Mapping[int, NodeFacts]) -> dict[int, Finding]:
    """Find the machines that differ from most others; on a tie from the first."""
    versions = {node: _versions(item) for node, item in facts.items()}
    usual: dict[str, str] = {}
    for name in {name: None for item in versions.values() for name in item}:
        # Counter keeps the order of first sight among equals.
        usual[name] = Counter(item.get(name, "") for item in versions.values()).most_common(1)[0][0]
    return {node: _same_versions(item, usual) for node, item in versions.items()}


def _versions(facts: NodeFacts) -> dict[str, str]:
    minor = ".".join(facts.python.split(".")[:2])
    return {"Python": minor, "our code": facts.code, **facts.packages}


def _same_versions(own: Mapping[str, str], usual: Mapping[str, str]) -> Finding:
    others = [name for name in usual if own.get(name, "") != usual[name]]
    if not others:
        return Finding("same versions", "ok", "as all")
    value = ", ".join(
        f"{name} {own.get(name) or 'missing'}, elsewhere {usual[name] or 'missing'}"
        for name in others
    )
    remedy = (
        "use one environment on a folder that all machines share (nodes.python names its"
        " interpreter), or install the same versions: pip install -e . -c constraints.txt"
    )
    essential = any(name in _ESSENTIAL for name in others)
    return Finding("same versions", "fail" if essential else "warn", value, remedy)


def compare_clocks(
    nodes: Sequence[int], contacts: Mapping[int, Sequence[Contact]]
) -> dict[int, Finding]:
    """Find the machines whose clock is off the median, beyond what the measurement may err.

    Args:
        nodes: All that answered; the first is what the others are compared with.
        contacts: What each machine measured of the others.
    """
    if len(nodes) < 2:
        return {node: Finding("clock", "ok", "one machine: nothing to compare") for node in nodes}
    first = nodes[0]
    ahead = {first: (0.0, 0.0)}
    for node in nodes[1:]:
        direct = [
            (item.round_trip_seconds, item.offset_seconds) for item in _to(contacts, first, node)
        ]
        back = [
            (item.round_trip_seconds, -item.offset_seconds) for item in _to(contacts, node, first)
        ]
        if direct or back:
            round_trip, offset = min(direct + back)
            ahead[node] = (offset, round_trip / 2)
    middle = statistics.median_low(offset for offset, _ in ahead.values())
    return {
        node: _clock(ahead[node][0] - middle, ahead[node][1])
        if node in ahead and len(ahead) > 1
        else Finding("clock", "warn", "not measured", "let the machines reach one another first")
        for node in nodes
    }


def _to(contacts: Mapping[int, Sequence[Contact]], start: int, end: int) -> list[Contact]:
    return [item for item in contacts.get(start, ()) if item.node == end and not item.problem]


def _clock(offset_seconds: float, error_seconds: float) -> Finding:
    certain_seconds = max(0.0, abs(offset_seconds) - error_seconds)
    value = f"{offset_seconds:+.3f} s"
    remedy = (
        "let chrony, ntpd or systemd-timesyncd set the clock there: timedatectl tells its state"
    )
    if certain_seconds > WRONG_CLOCK_SECONDS:
        return Finding("clock", "fail", value, remedy)
    if certain_seconds > LATE_CLOCK_SECONDS:
        return Finding("clock", "warn", value, remedy)
    return Finding("clock", "ok", value)


def compare_ports(
    names: Mapping[int, str], contacts: Mapping[int, Sequence[Contact]], port_range: str
) -> dict[int, Finding]:
    """Find the machines that others cannot connect to.

    Args:
        names: All that answered.
        contacts: What each machine tried.
        port_range: What the ranks' own connections use, e.g. ``32768-60999``.
    """
    return {node: _ports(node, names, contacts, port_range) for node in names}


def _ports(
    node: int,
    names: Mapping[int, str],
    contacts: Mapping[int, Sequence[Contact]],
    port_range: str,
) -> Finding:
    towards = [
        (names[observer], item)
        for observer, found in contacts.items()
        for item in found
        if item.node == node
    ]
    if not towards:
        return Finding("ports", "ok", "one machine: nothing to reach")
    failed = [(observer, item) for observer, item in towards if item.problem]
    if not failed:
        slowest_seconds = max(item.round_trip_seconds for _, item in towards)
        return Finding("ports", "ok", f"reached by all, {1000 * slowest_seconds:.2f} ms")
    observers: dict[str, dict[str, None]] = {}
    for observer, item in failed:
        observers.setdefault(item.problem, {})[observer] = None
    value = "; ".join(f"{', '.join(who)}: {problem}" for problem, who in observers.items())
    remedy = (
        f"let all machines reach {names[node]}, by this name, at the ports {port_range}: look at"
        " /etc/hosts or DNS, firewalls, and which network the name stands for"
    )
    return Finding("ports", "fail", f"not reached by {value}", remedy)


def compare_folders(
    folder: str,
    names: Mapping[int, str],
    unseen: Mapping[int, Sequence[str]],
    unseen_here: Sequence[str],
) -> dict[int, Finding]:
    """Find the machines that do not see what others write.

    Args:
        folder: Its path.
        names: All that answered.
        unseen: Names of those whose file each machine does not see.
        unseen_here: The same for the machine that runs the doctor.
    """
    found = {}
    for node, name in names.items():
        problems = []
        if unseen.get(node):
            problems.append(f"does not see the files of {', '.join(unseen[node])}")
        if name in unseen_here:
            problems.append("its file is not seen where the doctor runs")
        remedy = (
            f"mount one file system of the network at {folder} on all machines and where runs are"
            " launched, or choose a folder that is shared: --folder, run_dir"
        )
        found[node] = (
            Finding("shared folder", "fail", "; ".join(problems), remedy)
            if problems
            else Finding("shared folder", "ok", "written and read by all")
        )
    return found


def bus_bytes_per_second(measured: Mapping[str, Any]) -> float:
    """What each rank sends and receives a second in the largest all-reduce: 2 (n - 1) / n of it."""
    largest = measured["sizes"][-1]
    ranks = measured["ranks"]
    return float(2 * (ranks - 1) / ranks * largest["bytes"] / largest["seconds"])


def judge_all_reduce(measured: Mapping[str, Any], nodes: int) -> Finding:
    """Judge the network by what ranks do with it.

    Args:
        measured: What the first rank told.
        nodes: Machines that took part.
    """
    rate = bus_bytes_per_second(measured)
    latency_seconds = measured["sizes"][0]["seconds"]
    value = f"{rate / 1e9:.2f} GB/s, {1000 * latency_seconds:.2f} ms"
    if nodes > 1 and rate < SLOW_BYTES_PER_SECOND:
        remedy = (
            "below 1 Gbit/s: name the fast network's interface in nodes.network_interface"
            " (ip -br link), look at its cables and at who else uses it"
        )
        return Finding("all-reduce", "warn", value, remedy)
    return Finding("all-reduce", "ok", value)
