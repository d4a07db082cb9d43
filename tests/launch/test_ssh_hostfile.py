"""Hostfiles: what DeepSpeed reads we read in the same way, and nothing in one reaches a shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.clusters.ssh.hostfile import Host, parse_lines, pick_hosts, read_hostfile
from launch.failures import CommandError

MACHINES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
USERS = st.one_of(st.just(""), st.from_regex(r"[a-z_][a-z0-9_.-]{0,6}@", fullmatch=True))
BLANKS = st.text(" \t", max_size=3)
COMMENTS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12)


@st.composite
def valid_files(draw: st.DrawFn) -> str:
    machines = draw(st.lists(MACHINES, min_size=1, max_size=6, unique_by=str.lower))
    lines = []
    for machine in machines:
        for _ in range(draw(st.integers(0, 1))):
            lines.append(draw(st.one_of(BLANKS, COMMENTS.map(lambda text: f" # {text}"))))
        gap = draw(st.text(" \t", min_size=1, max_size=3))
        end = draw(st.one_of(BLANKS, COMMENTS.map(lambda text: f"  # {text}")))
        name = draw(USERS) + machine
        lines.append(f"{draw(BLANKS)}{name}{gap}slots={draw(st.integers(1, 9999))}{end}")
    return "\n".join(lines) + draw(st.sampled_from(["", "\n", "\n\n"]))


@given(valid_files())
def test_a_valid_file_means_what_it_means_to_deepspeed(text: str) -> None:
    from deepspeed.launcher.runner import _parse_hostfile

    theirs = _parse_hostfile(text.split("\n"))
    ours = [item for _, item in parse_lines(text.split("\n"))]
    assert all(isinstance(item, Host) for item in ours), ours
    assert [(item.name, item.slots) for item in ours] == list(theirs.items())  # type: ignore


@given(st.text(max_size=40))
def test_whatever_a_line_says_a_name_is_no_option_and_no_second_word(line: str) -> None:
    for _, item in parse_lines([line]):
        if isinstance(item, Host):
            assert not item.name.startswith("-")
            assert all(letter.isalnum() or letter in "_.-@" for letter in item.name)
            assert item.name.isascii()
            assert item.slots > 0
        else:
            assert "\n" not in item


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("node3", "'node3' is not of the form HOST slots=N"),
        ("node3 slots=", "is not of the form"),
        ("node3 slots=-1", "is not of the form"),
        ("node3 slots=two", "is not of the form"),
        ("node3 slots=٣", "is not of the form"),
        ("node3 slots=2 slots=3", "is not of the form"),
        ("node3 slots=0", "slots=0; give it ranks or leave it out"),
        ("node3 extra slots=2", "is not of the form"),
        ("NODE1 slots=2", "NODE1 twice"),
        ("else@node1 slots=2", "node1 twice"),
        ("-oProxyCommand=reboot slots=2", "is no host; use letters"),
        ("root@-oProxyCommand=x slots=2", "is no host"),
        ("-l@node3 slots=2", "is no host"),
        ("$(reboot) slots=2", "is no host"),
        ("node3;reboot slots=2", "is no host"),
        ("a@b@node3 slots=2", "is no host"),
        ("nöde slots=2", "is no host"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text(f"# rack 1\nnode1 slots=2\n\n{line}\nnode9 slots=2\n", encoding="utf-8")
    with pytest.raises(CommandError) as caught:
        read_hostfile(path)
    (problem,) = str(caught.value).split("\n")
    assert problem.startswith(f"{path}, line 4: ")
    assert complaint in problem


def test_a_file_without_hosts_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text("# none yet\n")
    with pytest.raises(CommandError, match="names no host"):
        read_hostfile(path)
    path.write_bytes(b"node1 slots=2\n\xff\xfe")
    with pytest.raises(CommandError, match="no text in UTF-8"):
        read_hostfile(path)


def test_the_top_of_the_file_is_taken_and_slots_bound_the_ranks() -> None:
    hosts = [Host("node1", 4), Host("me@node2", 4), Host("node3", 2)]
    assert [host.machine for host in hosts] == ["node1", "node2", "node3"]
    assert pick_hosts(hosts, nodes=2, processes=None) == (hosts[:2], 4)
    assert pick_hosts(hosts, nodes=None, processes=2) == (hosts, 2)
    with pytest.raises(CommandError, match=r"node3 has 2 slots and node1 4, .* --processes 2"):
        pick_hosts(hosts, nodes=None, processes=None)
    with pytest.raises(CommandError, match="--processes 3 exceeds the 2 slots of node3"):
        pick_hosts(hosts, nodes=3, processes=3)
    with pytest.raises(CommandError, match="--nodes 4 exceeds the 3 hosts"):
        pick_hosts(hosts, nodes=4, processes=1)
