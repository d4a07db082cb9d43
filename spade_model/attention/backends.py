"""One interface to attention in the long stack, and who computes it where."""

from __future__ import annotations

from typing import Protocol, get_args

import torch
from torch import Tensor

from spade_model.attention.blocked import BlockedAttention
from spade_model.attention.flex import FlexAttention
from spade_model.attention.geometry import Geometry
from spade_model.attention.reference import ReferenceAttention
from spade_model.attention.tiled import TiledAttention
from spade_model.attention.traced import TracedAttention
from spade_model.config import AttentionBackend


class AttentionPlan(Protocol):
    """Attention of one batch: prepared once, run by every layer."""

    def attend(
        self, query_key_value: Tensor, scale: float, bias: Tensor | None, dropout: float
    ) -> Tensor:
        """Attend.

        Args:
            query_key_value: [B, L, 3, H, D].
            scale: Multiplies the products of queries and keys.
            bias: Added to them by distance, [H, R] in float32, or None.
            dropout: Probability of dropping an attention weight.

        Returns:
            [B, L, H, D] in the type of the projections. Rows of padded queries are finite and
            without meaning.
        """


def check_backend(name: str) -> AttentionBackend:
    """Return a backend's name.

    Raises:
        ValueError: There is no such backend.
    """
    for known in get_args(AttentionBackend):
        if name == known:
            return known  # type: ignore[no-any-return]
    choices = ", ".join(get_args(AttentionBackend))
    raise ValueError(f"attention backend {name!r} is unknown; use one of {choices}")


def make_plan(backend: AttentionBackend, geometry: Geometry, device: torch.device) -> AttentionPlan:
    """Prepare a batch for the layers.

    Raises:
        ValueError: ``tiled`` is asked for on an accelerator.
    """
    if backend == "auto":
        everything = geometry.sees_everything
        if isinstance(geometry.length_tokens, torch.SymInt) and not everything:
            return TracedAttention.prepare(geometry, device)
        # A graph can hold no loop over tiles that looks at the data.
        in_tiles = device.type == "cpu" and not torch.compiler.is_exporting()
        backend = "tiled" if in_tiles else "blocked"
        backend = "reference" if everything else backend
    if backend == "reference":
        return ReferenceAttention.prepare(geometry, device)
    if backend == "blocked":
        return BlockedAttention.prepare(geometry, device)
    if backend == "flex":
        return FlexAttention.prepare(geometry, device)
    if device.type not in ("cpu", "meta"):
        raise ValueError(
            f"the attention backend 'tiled' runs on CPUs, not on {device.type!r}; use 'auto'"
        )
    return TiledAttention.prepare(geometry, device)
