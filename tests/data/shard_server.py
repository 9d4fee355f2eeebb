"""A file server on loopback that can misbehave: the plain `http.server`, with faults on request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class ShardServer(ThreadingHTTPServer):
    """Serves a folder; `fault` may answer a request itself (True) and `requests` lists the paths asked for.

    The server offers no range requests, and refuses them.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.requests: list[str] = []
        self.fault: Callable[[SimpleHTTPRequestHandler], bool] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked_for(self, part: str) -> list[str]:
        """Requests whose path contains `part`."""
        return [path for path in self.requests if part in path]

    def handle_error(self, request: object, client_address: object) -> None:
        """Readers that go away are no news."""


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ShardServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if "Range" in self.headers:
            self.send_error(416)
        elif self.server.fault is None or not self.server.fault(self):
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def cut_short(handler: SimpleHTTPRequestHandler) -> bool:
    """Promise a whole file, send the first bytes, and hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 100)
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.close()
    return True


def unavailable(handler: SimpleHTTPRequestHandler) -> bool:
    """Answer that the server is overloaded."""
    handler.send_error(503)
    return True


@contextmanager
def served(folder: Path) -> Iterator[ShardServer]:
    """Serve a folder while the block lasts."""
    with ShardServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
