"""Which of this machine's network interfaces the other machines reach."""

from __future__ import annotations

import socket

_ANY_PORT = 9  # no packet is sent


def interface_towards(host: str) -> str | None:
    """Finds the interface that the kernel uses to reach a host.

    gloo would look up this machine's own name, which many machines give a loopback address.

    Args:
        host: Name or address of the first machine of the run; may be this one.

    Returns:
        Its name, or none where the host is unknown or only reached by loopback, i.e. is this one
        under a name of its own.
    """
    import psutil

    try:
        family, _, _, _, address = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            own = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if name != "lo" and any(item.address.partition("%")[0] == own for item in addresses):
            return str(name)
    return None
