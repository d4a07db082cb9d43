"""A real HTTP server over a folder that misbehaves as it is told."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit


class FaultyServer:
    """Serves files; each answer to a GET of a file takes the next fault planned for it.

    Faults: an integer is an HTTP status; ("cut", n) ends the connection after n bytes of the
    answer; ("hang", s) waits s seconds before the first byte; ("trickle", s) sends a byte every s
    seconds; "flip" changes a byte; "short" and "long" send a wrong length in good order; "endless"
    sends without end; "gzip" claims an encoding; "ok" does nothing.

    Attributes:
        url: Of the folder.
        requests: (name of the file, first byte asked for) of each GET, in order.
        always: Faults of files that take effect once the planned ones are used up.
        has_ranges: Whether ranges are understood.
        bytes_per_second: Speed of each answer, or None for as fast as it goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: defaultdict[str, deque[object]] = defaultdict(deque)
        self.always: dict[str, object] = {}
        self.requests: list[tuple[str, int]] = []
        self.has_ranges = True
        self.bytes_per_second: float | None = None
        self.closing = threading.Event()
        owner = self

        class Handler(_Handler):
            server_of_faults = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def plan(self, file: str, *faults: object) -> None:
        """Appends faults for the next GETs of a file."""
        self.faults[file].extend(faults)

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_of_faults: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _data(self) -> bytes | None:
        path = self.server_of_faults.folder / unquote(urlsplit(self.path).path).lstrip("/")
        return path.read_bytes() if path.is_file() else None

    def do_HEAD(self) -> None:
        data = self._data()
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()

    def do_GET(self) -> None:
        server = self.server_of_faults
        file = Path(urlsplit(self.path).path).name
        match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(match[1]) if match and server.has_ranges else 0
        server.requests.append((file, start))
        planned = server.faults[file]
        fault = planned.popleft() if planned else server.always.get(file, "ok")
        data = self._data()
        if data is None or isinstance(fault, int):
            self._end(fault if isinstance(fault, int) else 404)
            return
        end = int(match[2]) + 1 if match and server.has_ranges and match[2] else len(data)
        self._send(data[start:end], len(data), start, fault)

    def _end(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, body: bytes, total: int, start: int, fault: object) -> None:
        server = self.server_of_faults
        kind, value = fault if isinstance(fault, tuple) else (fault, 0)
        if kind == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        elif kind == "short":
            body = body[: len(body) // 2]
        elif kind == "long":
            body += b"x" * 1000
        elif kind == "hang":
            server.closing.wait(value)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        if kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if kind == "endless":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self._write(body, kind, value)
        except OSError:
            self.close_connection = True

    def _write(self, body: bytes, kind: object, value: float) -> None:
        server = self.server_of_faults
        if kind == "cut":
            self.wfile.write(body[: int(value)])
            # aiohttp throws away what it holds when the connection ends: let it be read before.
            server.closing.wait(0.1)
            self.close_connection = True
        elif kind == "trickle":
            for position in range(len(body)):
                self.wfile.write(body[position : position + 1])
                if server.closing.wait(value):
                    return
        elif kind == "endless":
            while not server.closing.is_set():
                self.wfile.write(b"x" * 2**16)
        elif server.bytes_per_second is not None:
            piece = 2**16
            for position in range(0, len(body), piece):
                self.wfile.write(body[position : position + piece])
                time.sleep(piece / server.bytes_per_second)
        else:
            self.wfile.write(body)
