"""The golden case that a test asks for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from golden import Case


@pytest.fixture
def case(request: pytest.FixtureRequest, dtype: torch.dtype) -> Iterator[Case]:
    loaded = Case(request.param, dtype)
    yield loaded
    print(f"GOLDEN {loaded.name} {dtype} worst error / tolerance {loaded.worst:.3f}")
