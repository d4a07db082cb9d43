"""The golden data: what the published modules compute, and how close ours has to come.

The golden folder states its own rule: float32 within 3x of the larger of 2e-6 and what the
published float32 run deviates from float64; float64 within 1e-9, or 1e-6 where the reference is
stored as float32.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from spade_model.state_space.s4_kernel import discretize

SHARED = Path(os.environ.get("SPADE_SHARED", Path(__file__).parents[3] / "shared"))
GOLDEN = SHARED / "reference" / "golden"
NEEDS_GOLDEN = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no golden data in {GOLDEN}; set SPADE_SHARED"
)
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


class Case:
    """One golden case in one precision."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        facts = json.loads((GOLDEN / f"{name}.json").read_text())
        self.name, self.dtype = name, dtype
        self.config: dict[str, Any] = facts["config"]
        self.deviation = facts.get("official_float32_deviation_from_float64", {})
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.leaves: dict[str, Tensor] = {}
        self.worst = 0.0

    def __getitem__(self, name: str) -> Tensor:
        x = self.tensors[name]
        return x.to(self.dtype) if x.is_floating_point() else x

    def weights(self, prefix: str = "w.") -> dict[str, Tensor]:
        """The published weights as leaves whose gradients can be compared."""
        for name in self.tensors:
            if name.startswith(prefix):
                leaf = self[name].clone()
                self.leaves[name[len(prefix) :]] = leaf.requires_grad_(leaf.is_floating_point())
        return self.leaves

    def rounded(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep conversions, which are exact in float64, from raising the precision tested."""
        return {name: x.to(self.dtype) for name, x in state.items()}

    def check(self, name: str, actual: Tensor, rows: Tensor | None = None) -> None:
        reference = self.tensors[name]
        if self.dtype == torch.float64:
            tolerance = 1e-9 if reference.dtype == torch.float64 else 1e-6
        else:
            facts = self.deviation.get(name) or self.deviation.get(f"{name}(valid)")
            facts = facts or self.deviation.get(name.removeprefix("mid."), {"rel_l2": 0.0})
            tolerance = 3 * max(facts["rel_l2"], 2e-6)
        actual, reference = actual.detach().double(), reference.double()
        if rows is not None:
            actual, reference = actual[rows], reference[rows]
        assert actual.shape == reference.shape
        size = reference.norm()
        if size < 1e-12:  # Analytically zero.
            assert actual.norm() < (1e-4 if self.dtype == torch.float32 else 1e-12)
            return
        error = float((actual - reference).norm() / size)
        self.worst = max(self.worst, error / tolerance)
        assert error <= tolerance, f"{self.name} {name}: {error:.2e} above {tolerance:.2e}"

    def check_gradients(self) -> None:
        """Compare every gradient that the case has with that of the published weight."""
        compared = 0
        for name in self.tensors:
            leaf = self.leaves.get(name.removeprefix("grad."))
            if name.startswith("grad.") and leaf is not None:
                assert leaf.grad is not None, name
                self.check(name, leaf.grad)
                compared += 1
        assert compared > 0


def convert_outputs(case: Case, prefix: str, length: int) -> None:
    """Replace C by what the published code trains, ``C (I - Ad^L)``: gradients belong to that."""
    weights = case.leaves
    with torch.no_grad():
        parts = [weights[f"{prefix}{name}"] for name in ("inv_w_real", "w_imag")]
        P, B = weights[f"{prefix}P"][0], weights[f"{prefix}B"][0]
        Ad, _ = discretize(*parts, P, B, weights[f"{prefix}log_dt"])
        C = torch.view_as_complex(weights[f"{prefix}C"].double())
        rows = torch.cat([C.real, -C.imag], dim=-1).transpose(0, 1)
        rows = (rows - rows @ torch.linalg.matrix_power(Ad, length)).transpose(0, 1)
        real, imaginary = rows.chunk(2, dim=-1)
    weights[f"{prefix}C"] = torch.stack([real, -imaginary], dim=-1).requires_grad_()
    weights[f"{prefix}L"] = torch.tensor(length)


def cases(*names: str) -> pytest.MarkDecorator:
    """Parametrise the fixture `case` with these cases."""
    return pytest.mark.parametrize("case", names, indirect=True)
