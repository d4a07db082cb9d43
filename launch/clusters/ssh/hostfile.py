"""Hostfiles in DeepSpeed's format: ``HOST slots=N`` a line, ``#`` begins a comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.failures import CommandError

_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[0-9]{1,4})(?:\s+#.*)?")
# What ssh takes for a host and nothing else: no option, no other word, no user of another form.
_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?P<machine>[A-Za-z0-9][A-Za-z0-9_.-]*)")
_FORM = "write HOST slots=N"


@dataclass(frozen=True)
class Host:
    """A machine of the hostfile."""

    name: str
    """What ssh gets: `node1` or `user@node1`."""
    slots: int
    """Ranks it has room for: its GPUs, or a share of its cores."""

    @property
    def machine(self) -> str:
        """The name without the user."""
        return self.name.rpartition("@")[2]


def read_hostfile(path: Path) -> list[Host]:
    """Read a hostfile.

    Raises:
        CommandError: One line a problem, with the number of the line.
        OSError: It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CommandError(f"{path}: no text in UTF-8; {_FORM}") from None
    hosts: dict[str, Host] = {}
    problems = []
    for number, item in parse_lines(text.split("\n")):
        if isinstance(item, str):
            problems.append(f"{path}, line {number}: {item}")
        elif item.machine.lower() in hosts:
            problems.append(f"{path}, line {number}: {item.machine} twice; give it one line")
        else:
            hosts[item.machine.lower()] = item
    if not hosts and not problems:
        problems = [f"{path}: names no host; {_FORM}, one line a machine"]
    if problems:
        raise CommandError("\n".join(problems))
    return list(hosts.values())


def parse_lines(lines: Iterable[str]) -> Iterator[tuple[int, Host | str]]:
    """Take a hostfile apart: the number of each line with a host, and the host or what is wrong."""
    for number, line in enumerate(lines, start=1):
        words = line.strip()
        if not words or words.startswith("#"):
            continue
        found = _LINE.fullmatch(words)
        if found is None:
            yield number, f"{words!r} is not of the form HOST slots=N; {_FORM}"
        elif _NAME.fullmatch(found["name"]) is None:
            yield number, f"{found['name']!r} is no host; use letters, digits, dots and dashes"
        elif int(found["slots"]) == 0:
            yield number, f"{found['name']} has slots=0; give it ranks or leave it out"
        else:
            yield number, Host(found["name"], int(found["slots"]))


def pick_hosts(
    hosts: list[Host], *, nodes: int | None, processes: int | None
) -> tuple[list[Host], int]:
    """Choose the machines of a run, and the ranks of each.

    Args:
        hosts: Of the hostfile.
        nodes: So many from the top; none means all.
        processes: Ranks of each; none means their slots.

    Raises:
        CommandError: There are too few hosts or slots.
    """
    if nodes is not None and nodes > len(hosts):
        raise CommandError(f"--nodes {nodes} exceeds the {len(hosts)} hosts of the hostfile")
    chosen = hosts[:nodes]
    fewest = min(chosen, key=lambda host: host.slots)
    most = max(chosen, key=lambda host: host.slots)
    if processes is None and fewest.slots != most.slots:
        raise CommandError(
            f"{fewest.name} has {fewest.slots} slots and {most.name} {most.slots}, but every "
            f"machine runs the same number of ranks; give --processes {fewest.slots}"
        )
    ranks = fewest.slots if processes is None else processes
    if ranks > fewest.slots:
        raise CommandError(
            f"--processes {ranks} exceeds the {fewest.slots} slots of {fewest.name}; lower it, or "
            "leave the host out"
        )
    return chosen, ranks
