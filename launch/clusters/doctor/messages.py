"""How the doctor and its agents talk: JSON over standard input and output, whoever carries it.

srun and mpiexec merge what all tasks print and cut long lines in pieces; sites greet every login
with a message of the day. So an agent's message is sent as short lines, each marked and numbered,
and all other lines are left alone.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any, TextIO

# srun forwards at most 1024 bytes of a line at once.
_PIECE_CHARACTERS = 700
_LINE = re.compile(r"spade-doctor:(\d+):(more|last):(.*)")


def send_lines(stream: TextIO, node: int, message: dict[str, Any]) -> None:
    """Send what an agent has to say.

    Raises:
        OSError: If nobody listens any more.
    """
    text = json.dumps(message)
    pieces = [text[i : i + _PIECE_CHARACTERS] for i in range(0, len(text), _PIECE_CHARACTERS)]
    for number, piece in enumerate(pieces, start=1):
        word = "last" if number == len(pieces) else "more"
        # One call a line: two calls could be torn apart by another task's output.
        stream.write(f"spade-doctor:{node}:{word}:{piece}\n")
        stream.flush()


class Assembler:
    """Puts the lines of all agents together again."""

    def __init__(self) -> None:
        self._pieces: defaultdict[int, list[str]] = defaultdict(list)

    def feed(self, line: str) -> tuple[int, dict[str, Any]] | None:
        """Take a line.

        Returns:
            The agent's number and its message when this line completes one.
        """
        found = _LINE.search(line.rstrip("\r\n"))
        if found is None:
            return None
        node = int(found[1])
        self._pieces[node].append(found[3])
        if found[2] == "more":
            return None
        text = "".join(self._pieces.pop(node))
        try:
            message = json.loads(text)
        except ValueError:
            return None
        return (node, message) if isinstance(message, dict) else None
