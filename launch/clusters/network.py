"""Which of this machine's network interfaces the other machines reach."""

from __future__ import annotations

import socket

_ANY_PORT = 9  # no packet is sent
# For documentation, so nobody's (RFC 5737, RFC 3849): the way there is the way to everywhere.
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")


def interfaces() -> list[str]:
    """Names of this machine's interfaces."""
    return [name for _, name in socket.if_nameindex()]


def interface_towards(host: str) -> str | None:
    """Finds the interface that the kernel uses to reach a host.

    gloo would look up this machine's own name, which many machines give a loopback address, such
    as Debian's 127.0.1.1.

    Args:
        host: Name or address of the first machine of the run; may be this one.

    Returns:
        Its name. On the first machine itself, and where the host is unknown: the interface with the
        default route, or the only one there is. None where that does not decide.
    """
    for target in (host, *_ELSEWHERE):
        name = _interface_of(_own_address_towards(target))
        if name is not None:
            return name
    names = _outward_interfaces()
    return names[0] if len(names) == 1 else None


def _own_address_towards(host: str) -> str | None:
    """The address of this machine that packets to a host would come from."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _interface_of(address: str | None) -> str | None:
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address.partition("%")[0] == address for item in addresses):
            return None if name == "lo" else str(name)
    return None


def _outward_interfaces() -> list[str]:
    """Interfaces with an address that are up and no loopback."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return [
        str(name)
        for name, addresses in psutil.net_if_addrs().items()
        if name in up and name != "lo" and any(item.family in families for item in addresses)
    ]
