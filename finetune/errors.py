"""What ends fine-tuning early."""

from __future__ import annotations


class FinetuneError(ValueError):
    """Something the user can cause and mend; the message says what, where and the remedy."""


class StoppedOnRequest(Exception):
    """A signal asked the run to stop; a checkpoint is saved and the same command goes on."""
