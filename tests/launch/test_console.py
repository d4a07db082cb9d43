"""What the command says fits its reader: plain lines in a file, safe text on a terminal."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.console import human_bytes, human_seconds, print_json, printable, rule, table


@given(st.text(), st.none() | st.integers(2, 50))
def test_printable_text_is_one_safe_line(text: str, limit: int | None) -> None:
    line = printable(text, limit=limit)
    assert line.isprintable()
    assert limit is None or len(line) <= limit


def test_escape_sequences_of_a_document_become_visible() -> None:
    assert printable("\x1b[31mred\n\ttab") == "\\x1b[31mred↵\\ttab"


def test_plain_output_has_no_frames(capsys: pytest.CaptureFixture[str]) -> None:
    rule("A stage")
    table("Title", ("name", "value"), [("[bold]x[/]", "1"), ("y", "")])
    assert capsys.readouterr().out.splitlines() == [
        "== A stage ==",
        "== Title ==",
        "name        value",
        "[bold]x[/]  1",
        "y",
    ]


def test_a_terminal_gets_frames_and_literal_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    rule("Stage [1]")
    table("", ("name",), [("[bold]x[/]",)])
    assert "──" in terminal.getvalue()
    assert "Stage [1]" in terminal.getvalue()
    assert "[bold]x[/]" in terminal.getvalue()


def test_json_is_readable_by_any_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "é \U0001f40d"})
    output = capsys.readouterr().out
    assert output.isascii()
    assert json.loads(output) == {"name": "é \U0001f40d"}


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (75, "1 min 15 s"), (7260, "2 h 01 min")]
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
