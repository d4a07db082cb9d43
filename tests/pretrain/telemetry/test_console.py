"""What is said on the terminal: tables that hold what they should, and nothing that it obeys."""

from __future__ import annotations

import os
import pty
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.telemetry.console import ProgressLine, evaluation_table, printable

RECORD = {
    "step": 6,
    "eval/books/text_loss": 2.5,
    "eval/books/loss": 1.25,
    "eval/books/ul2/loss": 3.0,
    "eval/[red]web[/red]/loss": 1.5,
    "eval/[red]web[/red]/bits_per_byte": 0.75,
}


def test_an_evaluation_is_a_table_of_sets_and_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    head, rows = evaluation_table(RECORD)
    assert head == ["held out", "loss", "text loss", "bits per byte"]
    assert rows == [
        ["books", "1.2500", "2.5000", ""],
        ["books/ul2", "3.0000", "", ""],
        ["[red]web[/red]", "1.5000", "", "0.7500"],
    ]
    head, rows = evaluation_table(RECORD, {"eval/books/loss": 1.5})
    assert head[-1] == "change"
    assert [row[-1] for row in rows] == ["-0.2500", "", ""]
    line = ProgressLine(0, 10, silent=False)
    line.table("step 6: \x1b[2J", head, rows)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.splitlines()[0].strip() == "step 6:  [2J"
    for row in rows:
        assert any(all(cell in text for cell in row) for text in shown.splitlines()), row


def test_other_ranks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(0, 1, silent=True)
    line.update(1, 1.0, 1.0)
    line.go_back(0)
    line.say("a word")
    line.table("a", ["b"], [["c"]])
    line.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_a_log_gets_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ProgressLine(4, 10, silent=False)
    for step in range(5, 11):
        line.update(step, 1.5, 1000.0)
    line.say("[bold]as it is[/bold]")
    line.close()
    shown = capsys.readouterr().out
    assert "step 10/10  loss 1.5000  1,000 tokens/s  0 s left" in shown
    assert "[bold]as it is[/bold]" in shown

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        line = ProgressLine(4, 10, silent=False)
        line.update(7, 1.5, 1000.0)
        line.go_back(3)
        line.table("evaluation", *evaluation_table(RECORD))
        line.close()
        terminal.flush()
        shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "4/10" in shown
    assert "3/10" in shown, "counted on from where it went back to"
    assert "[red]web[/red]" in shown


@given(st.text())
def test_nothing_that_is_no_character_reaches_a_terminal(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert printable(shown) == shown
