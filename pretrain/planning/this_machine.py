"""The device that a plan is made for: from the table, or measured here."""

from __future__ import annotations

import psutil
import torch

from pretrain.errors import ConfigError
from pretrain.hardware import peak_flops_per_second
from pretrain.planning.devices import DEVICES, Device


def find_device(name: str) -> Device:
    """The device that a user names.

    Raises:
        ConfigError: If there is no such device.
    """
    if name == "cpu":
        return cpu_device()
    if name not in DEVICES:
        raise ConfigError(f"--device {name} is unknown; use {', '.join(DEVICES)} or cpu")
    return DEVICES[name]


def cpu_device() -> Device:
    """One core of this machine with its share of the memory, measured in well under a second.

    Processes of one machine exchange data through its memory; ten gigabit Ethernet joins machines.
    """
    cores = psutil.cpu_count(logical=False) or 1
    memory_bytes = int(psutil.virtual_memory().total) // cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        rates = {
            name: peak_flops_per_second(torch.device("cpu"), dtype)
            for name, dtype in dtypes.items()
        }
    finally:
        torch.set_num_threads(threads)
    return Device("cpu", memory_bytes, rates, 2e9, 1.25e9, (0.20, 0.60))
