"""What one rank writes into a checkpoint: copies in host memory, by name and place."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

WEIGHT = "weight"
"""The kind of tensor that is the parameter itself; other kinds belong to the optimizer."""
OPTIMIZER = "optimizer/"
"""Begins the names of an optimizer's states among the whole tensors."""


@dataclass
class Snapshot:
    """Host copies of what this rank must write.

    Together the ranks hold each element of each trained parameter once: what several of them hold
    alike is written by one.
    """

    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Parameter to (first element in the flattened parameter, number of elements) on this rank."""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """``KIND/NAME`` to a float32 vector on the host, as long as the place of NAME says. KIND is
    ``weight``, ``exp_avg``, ``exp_avg_sq``, ``momentum_buffer`` …"""
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    """On rank 0 alone: buffers and frozen parameters by name, and as ``optimizer/KIND/NAME`` the
    states that are no slices; of any type and shape."""

    def check(self) -> None:
        """Assert that places and tensors belong together."""
        for key, tensor in self.tensors.items():
            _, _, name = key.partition("/")
            assert name in self.places, f"{key}: no place"
            assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu"), key
            assert tuple(tensor.shape) == (self.places[name][1],), f"{key}: {tuple(tensor.shape)}"
