"""What accelerators can do by their makers' data sheets: the rates a plan is made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.errors import ConfigError

_GB = 10**9
_GIB = 2**30

PRECISIONS = ("bf16", "fp16", "fp32", "tf32")


@dataclass(frozen=True)
class Device:
    """One accelerator and what joins it to the others."""

    name: str
    """As users write it."""
    memory_bytes: int
    """Of one device."""
    peak_flops_per_second: Mapping[str, float]
    """Dense matrix products by precision; a precision that it lacks is missing."""
    link_bytes_per_second: float
    """To the devices of the same node, in one direction."""
    network_bytes_per_second: float
    """To other nodes, one device's share of its node's adapters, in one direction."""
    utilisation: tuple[float, float] = (0.15, 0.40)
    """Share of the peak that training reaches, from a careful to a hopeful guess."""

    def peak(self, precision: str) -> float:
        """The rate in FLOP/s.

        Raises:
            ConfigError: If the device lacks the precision.
        """
        if precision not in self.peak_flops_per_second:
            raise ConfigError(
                f"train.precision {precision} is not computed by {self.name}; use "
                f"{' or '.join(sorted(self.peak_flops_per_second))}"
            )
        return self.peak_flops_per_second[precision]


def _gpu(
    name: str, memory_gib: float, rates: tuple[float, ...], links: tuple[float, float]
) -> Device:
    """A GPU from its data sheet: TFLOP/s in the order of `PRECISIONS`, links in GB/s."""
    known = {key: 1e12 * rate for key, rate in zip(PRECISIONS, rates, strict=True) if rate}
    return Device(name, int(memory_gib * _GIB), known, links[0] * _GB, links[1] * _GB)


# Dense rates (without sparsity) and one direction of the links. Networks are those of the makers'
# own nodes with eight devices, such as one 400 Gbit/s adapter for each H100.
DEVICES = {
    device.name: device
    for device in (
        _gpu("b200", 180, (2250, 2250, 80, 1125), (900, 50)),
        _gpu("h200", 139, (989, 989, 67, 494), (450, 50)),
        _gpu("h100", 79, (989, 989, 67, 494), (450, 50)),
        _gpu("a100", 79, (312, 312, 19.5, 156), (300, 25)),
        _gpu("a100-40gb", 39, (312, 312, 19.5, 156), (300, 25)),
        _gpu("l40s", 44, (362, 362, 91.6, 183), (32, 12.5)),
        _gpu("a10", 22, (125, 125, 31.2, 62.5), (32, 6.25)),
        _gpu("v100", 31, (0, 125, 15.7, 0), (150, 6.25)),
        _gpu("mi300x", 191, (1307, 1307, 163, 653), (448, 50)),
    )
}


def device_of_gpu(name: str) -> Device | None:
    """The device of a driver's name, such as ``NVIDIA H100 80GB HBM3``; None if unknown."""
    words = name.lower().replace("-", " ").split()
    for key, device in DEVICES.items():
        if key in words:
            return device
    return None
