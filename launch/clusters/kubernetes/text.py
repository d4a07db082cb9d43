"""A user's words inside a manifest: names, and text that Kubernetes must not expand."""

from __future__ import annotations

import hashlib
import re

_LONGEST_NAME = 40  # operators add "-node-0-123", "-worker-123" and more, to 63 in all


def object_name(run: str) -> str:
    """Make a name for the run's objects, one and the same whenever the run is launched.

    Two launches of a run are then one job, never two that write the same folder.

    Args:
        run: The run's name, any text.

    Returns:
        Lower-case letters, digits and dashes, beginning with a letter, at most 40. Where that
        loses something of the run's name, a few digits of its hash keep runs apart.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if plain == run and plain[:1].isalpha() and len(plain) <= _LONGEST_NAME:
        return plain
    digits = hashlib.sha256(run.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"run-{plain[:20].strip('-')}-{digits}".replace("--", "-")


def literal(text: str) -> str:
    """Text of a command, an argument or a variable that Kubernetes leaves as it is.

    It expands ``$(NAME)`` there, and reads ``$$`` as one dollar.
    """
    return text.replace("$", "$$")
