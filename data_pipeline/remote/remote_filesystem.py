"""fsspec's file systems: made late, once a process, without retries and caches of their own.

fsspec and its packages are imported only here, and only once a URL is used.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.remote.locations import REMOTE_SCHEMES, scheme_of

_FILESYSTEMS: dict[tuple[int, str, float], Any] = {}
_FILESYSTEMS_LOCK = threading.Lock()


def _renew_lock() -> None:
    global _FILESYSTEMS_LOCK
    _FILESYSTEMS_LOCK = threading.Lock()


# Another thread may hold it at the moment of a fork.
os.register_at_fork(after_in_child=_renew_lock)


def remote_filesystem(url: str, timeout_seconds: float) -> Any:
    """The fsspec file system of a URL's scheme: one a process, for connections outlive no fork.

    Args:
        url: Of a scheme in `REMOTE_SCHEMES`.
        timeout_seconds: Of connecting and of each read, where the package knows such.

    Raises:
        DataError: If the package of the scheme is not installed.
    """
    scheme = scheme_of(url)
    assert scheme in REMOTE_SCHEMES, scheme
    key = (os.getpid(), scheme, timeout_seconds)
    with _FILESYSTEMS_LOCK:
        if key not in _FILESYSTEMS:
            _FILESYSTEMS[key] = _make_filesystem(scheme, timeout_seconds)
        return _FILESYSTEMS[key]


def _make_filesystem(scheme: str, timeout_seconds: float) -> Any:
    try:
        fsspec = import_module("fsspec")
        import_module(REMOTE_SCHEMES[scheme])
    except ImportError as error:
        package = "fsspec" if error.name == "fsspec" else REMOTE_SCHEMES[scheme]
        raise DataError(
            f'{scheme}:// needs the package {package}: pip install "spade-pretrain[remote]"'
        ) from None
    # Retries and listings of their own would only multiply ours and age.
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme in ("http", "https"):
        aiohttp = import_module("aiohttp")
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeout_seconds, sock_read=timeout_seconds
        )
        # With the proxies that the environment names.
        options["client_kwargs"] = {"timeout": timeout, "auto_decompress": False, "trust_env": True}
    elif scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": timeout_seconds,
            "read_timeout": timeout_seconds,
            "retries": {"total_max_attempts": 1},
        }
    filesystem = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        filesystem.retries = 1
    return filesystem
