"""Errors a user can cause, each with a one-line message that names the remedy."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration that cannot be run: one line a problem, each naming field, value, remedy."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or trusted."""


class RunError(ValueError):
    """A run that cannot start or go on as asked."""
