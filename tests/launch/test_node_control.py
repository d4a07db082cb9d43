"""A launcher's words on standard input, and output that neither breaks nor fills: real pipes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.clusters.control import ALIVE, KILL, STOP, Words

# Writes each signal it gets, and ends with the second SIGINT.
OBEDIENT = """
import os, signal, sys, time
from launch.clusters.control import obey_standard_input

def note(number, frame):
    os.write(1, b"%d\\n" % number)
    if number == signal.SIGINT:
        interrupts.append(number)

interrupts = []
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
obey_standard_input(float(sys.argv[1]))
os.write(1, b"ready\\n")
while len(interrupts) < 2:
    time.sleep(0.05)
"""
TERM, INT = f"{int(signal.SIGTERM)}\n".encode(), f"{int(signal.SIGINT)}\n".encode()


class Obedient:
    def __init__(self, silence_seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OBEDIENT, str(silence_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.hear() == b"ready\n"

    def say(self, words: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words)

    def hear(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def is_quiet(self, seconds: float) -> bool:
        return not select.select([self.process.stdout], [], [], seconds)[0]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


@given(
    st.lists(
        st.one_of(
            st.sampled_from([ALIVE, STOP, KILL, b"xstop\n", b"stop \n", b"\n", b"stopstop\n"]),
            st.binary(max_size=200).map(lambda line: line.replace(b"\n", b"") + b"\n"),
        ),
        max_size=12,
    ),
    st.binary(max_size=5).map(lambda rest: rest.replace(b"\n", b"")),
    st.data(),
)
def test_words_do_not_depend_on_where_the_stream_is_cut(
    lines: list[bytes], rest: bytes, data: st.DataObject
) -> None:
    stream = b"".join(lines) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    words, heard = Words(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        heard += words.feed(stream[start:end])
    for word in (ALIVE, STOP, KILL):
        assert heard.count(word) == lines.count(word)
    assert len(heard) == len(lines)


def test_a_line_without_an_end_takes_no_memory() -> None:
    words = Words()
    for _ in range(100):
        assert words.feed(b"x" * 4096) == []
    assert len(words._rest) <= 64
    assert STOP not in words.feed(STOP)
    assert words.feed(STOP) == [STOP]


def test_stop_in_pieces_is_one_request_and_the_end_of_the_line_no_second() -> None:
    program = Obedient(30)
    for piece in (b"ali", b"ve\nxstop\nst", b"o", b"p"):
        program.say(piece)
        time.sleep(0.02)
    assert program.is_quiet(0.2)
    program.say(b"\n")
    assert program.hear() == TERM
    program.say(STOP)
    program.process.stdin.close()  # type: ignore[union-attr]
    assert program.is_quiet(0.3)
    program.end()


def test_the_end_of_the_line_stops() -> None:
    program = Obedient(30)
    program.process.stdin.close()  # type: ignore[union-attr]
    assert program.hear() == TERM
    program.end()


def test_silence_stops_and_a_word_in_time_does_not() -> None:
    program = Obedient(1.0)
    for _ in range(4):
        time.sleep(0.4)
        program.say(ALIVE)
    assert program.is_quiet(0.2)
    began = time.monotonic()
    assert program.hear() == TERM
    assert time.monotonic() - began < 5
    program.end()


@pytest.mark.parametrize("before", [b"", STOP])
def test_kill_interrupts_until_the_program_is_gone(before: bytes) -> None:
    program = Obedient(30)
    program.say(before + KILL)
    program.process.stdin.close()  # type: ignore[union-attr]
    assert program.process.wait(10) == 0
    heard = program.process.stdout.read().splitlines(keepends=True)  # type: ignore[union-attr]
    assert heard.count(INT) == 2
    program.end()


# Says so much through the relay, as a child process of it, and leaves word that it came to its end.
TALKATIVE = """
import subprocess, sys
from launch.clusters.control import relayed_output

with relayed_output():
    print("first", flush=True)
    child = "import sys; [print(number, 'x' * 100) for number in range(int(sys.argv[1]))]"
    subprocess.run([sys.executable, "-c", child, sys.argv[1]], check=True)
    print("trouble", file=sys.stderr)
    print("last")
open(sys.argv[2], "w").write("done")
"""


def test_output_comes_through_whole_and_in_order(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", TALKATIVE, "5000", str(tmp_path / "mark")],
        capture_output=True,
        timeout=60,
        check=True,
    )
    lines = result.stdout.decode().splitlines()
    assert lines[0] == "first"
    assert lines[-1] == "last"
    assert [int(line.split()[0]) for line in lines[1:-1]] == list(range(5000))
    assert result.stderr == b"trouble\n"


@pytest.mark.parametrize("gone", [True, False], ids=["closed", "not-read"])
def test_nobody_is_held_up_by_a_reader_that_is_gone_or_asleep(tmp_path: Path, gone: bool) -> None:
    source, sink = os.pipe()
    mark = tmp_path / "mark"
    with subprocess.Popen(
        [sys.executable, "-c", TALKATIVE, "5000", str(mark)], stdout=sink, stderr=sink
    ) as program:
        os.close(sink)
        if gone:
            os.close(source)
        assert program.wait(40) == 0
    assert mark.read_text() == "done"
    if not gone:
        os.close(source)
