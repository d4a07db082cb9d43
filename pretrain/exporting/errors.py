"""The error of this folder."""

from __future__ import annotations


class ExportError(ValueError):
    """A checkpoint that cannot be exported, or an export that is not what it should be."""
