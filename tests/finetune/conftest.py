"""A small exported folder for all tests of fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_models import write_exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `spade export` writes it, of a model that has learned nothing."""
    pytest.importorskip("transformers")
    return write_exported(tmp_path_factory.mktemp("exported") / "model")
