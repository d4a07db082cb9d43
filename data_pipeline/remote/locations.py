"""Names of places that data comes from: which URLs are allowed, and how messages may show them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from data_pipeline.errors import DataError

# What each needs beside fsspec. Anything else is refused: fsspec and webdataset both know schemes
# that run programs or that reach into other machines.
REMOTE_SCHEMES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "memory": "fsspec",
}
LOCAL_SCHEME = "file"

# One letter before the colon would be a drive of another system; "//" is no condition ("pipe:ls").
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_PLAIN_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\Z")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def scheme_of(location: Path | str) -> str | None:
    """Scheme of a URL in lower case, or None for a path (a `Path` object is always a path)."""
    match = _SCHEME.match(location) if isinstance(location, str) else None
    return match[1].lower() if match else None


def check_location(location: Path | str) -> Path | str:
    """Decides whether a location is a path or a URL that may be used.

    Args:
        location: Path of a folder or file, or a URL of one.

    Returns:
        A `Path` for paths and `file:` URLs, else the URL without a slash at its end.

    Raises:
        DataError: If the URL is of another scheme than `REMOTE_SCHEMES`, or chained.
    """
    scheme = scheme_of(location)
    if scheme is None:
        return Path(location)
    url = str(location)
    shown = show_url(url)
    # fsspec takes a::b as "a inside b", which brings its other schemes back in.
    if "::" in url or (scheme != LOCAL_SCHEME and scheme not in REMOTE_SCHEMES):
        known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES if name != "memory")
        raise DataError(f"{shown} is no URL this program reads; name a path or one of {known}")
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise DataError(f"{shown} is no URL ({error}); correct it") from None
    if scheme == LOCAL_SCHEME:
        if host not in (None, "", "localhost") or not parts.path.startswith("/"):
            raise DataError(f"{shown} names no file of this machine; write file:///path")
        return Path(parts.path)
    if not url[len(scheme) :].startswith("://") or not parts.netloc:
        raise DataError(f"{shown} names no host or bucket; write {scheme}://HOST/PATH")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/"), fragment=""))


def check_plain_file(file: str) -> str:
    """Returns the name of a file that lies directly in a folder, or refuses anything else.

    Raises:
        DataError: If it holds a separator, begins with a dot, or is not made of plain characters.
    """
    if not _PLAIN_FILE.match(file):
        raise DataError(
            f"{file[:100]!r} is no name of a file in a data set: letters, digits, dots, dashes and "
            "underscores are allowed"
        )
    return file


def join_url(url: str, file: str) -> str:
    """URL of a file in a folder; a query string (the signature of a signed URL) stays at the end.

    Args:
        url: A folder, as `check_location` returns it.
        file: Name of the file.
    """
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path}/{check_plain_file(file)}"))


def show_url(url: str) -> str:
    """A URL as messages may show it: no user, no password, no query string, no fragment."""
    before, separator, rest = url.partition("://")
    if not separator:
        # "pipe:..." and the like: the scheme says enough.
        return f"{url.partition(':')[0]}:..."
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = place.partition("/")
    host = authority.rpartition("@")[2]
    # A password with an unescaped slash ends up in the path, or in the place of the port.
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "0"
    if not port.isdigit() or ("@" in path and ":" in authority + path):
        return f"{before}://..."
    return f"{before}://{host}{slash}{path}"


def show_text(text: str) -> str:
    """A text of others, such as an error of a library, with every URL in it shown safely."""
    return _URL_IN_TEXT.sub(lambda match: show_url(match[0]), " ".join(text.split()))
