"""Where everything of a run lies."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part.

    Raises:
        OSError: If the folder cannot be written or the disk is full; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(path: Path) -> None:
    """Force a folder's entries to the disk.

    Raises:
        OSError: If it cannot be opened or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class RunFolder:
    """Names inside ``runs/NAME``."""

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        """Versions, machine and number of processes of the newest start."""
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        """One log a rank."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, and ``latest``."""
        return self.path / "checkpoints"

    @property
    def stop_marker(self) -> Path:
        """Written by rank 0 when the run stopped on request and can be resumed."""
        return self.path / "stopped.json"

    @property
    def stop_request(self) -> Path:
        """Whoever makes this file asks the run to save and stop."""
        return self.path / "STOP"

    @property
    def quarantine_path(self) -> Path:
        """Damaged data that the run goes around, one JSON object a line."""
        return self.path / "quarantine.jsonl"

    @property
    def report_path(self) -> Path:
        """The report of the run, one self-contained page."""
        return self.path / "report.html"

    @property
    def loss_plot_path(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def launch(self) -> Path:
        """What launchers keep: the configuration they checked, scripts, and a log of events."""
        return self.path / "launch"

    @property
    def export_path(self) -> Path:
        """The Hugging Face directory, where `spade export` puts it by default."""
        return self.path / "export"
