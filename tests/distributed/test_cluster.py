"""Ray is asked only where it answers, and only where it can work; all of it known within seconds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest

from cosa_dist.config.errors import ConfigError
from cosa_dist.distributed import cluster
from cosa_dist.distributed.cluster import CHECK_ALIVE, check_start, free_port


class Head(grpc.GenericRpcHandler):
    """Answers the question whether Ray's head is alive, as the head does."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code

    def service(self, details):
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self.code is not grpc.StatusCode.OK:
                context.abort(self.code, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if details.method == CHECK_ALIVE else None


@contextmanager
def grpc_server(code: grpc.StatusCode | None) -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[] if code is None else [Head(code)])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port
    server.stop(None)


@contextmanager
def web_server() -> Iterator[int]:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("0.0.0.0", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def deaf_server() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen(5)
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "server", "reason"),
    [
        ("127.0.0.1:{}", nullcontext, "refused"),
        ("ray://127.0.0.1:{}", nullcontext, "refused"),
        ("no-such-host.invalid:{}", nullcontext, "Name or service|name resolution"),
        ("ray://no-such-host.invalid:{}", nullcontext, "Name or service|name resolution"),
        ("http://127.0.0.1:{}", nullcontext, "form for `ray job submit`"),
        ("tcp://127.0.0.1:{}", nullcontext, "HOST:PORT"),
        ("127.0.0.1", nullcontext, "HOST:PORT"),
        ("ray://127.0.0.1", nullcontext, "HOST:PORT"),
        (":{}", nullcontext, "HOST:PORT"),
        ("127.0.0.1:port", nullcontext, "HOST:PORT"),
        ("127.0.0.1:{}", web_server, "something else listens"),
        ("ray://127.0.0.1:{}", web_server, "something else listens"),
        ("127.0.0.1:{}", deaf_server, "or it hangs"),
        ("127.0.0.1:{}", lambda: grpc_server(None), "no head of Ray"),
        ("127.0.0.1:{}", lambda: grpc_server(grpc.StatusCode.UNAUTHENTICATED), "RAY_AUTH_MODE=token"),
    ],
)
def test_an_address_without_a_cluster_is_refused_in_one_line(address, server, reason, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with server() as port:
        monkeypatch.setenv("RAY_ADDRESS", address.format(port or free_port()))
        with pytest.raises(
            ConnectionError, match=f"no Ray cluster answers at RAY_ADDRESS=.*({reason})"
        ) as caught:
            check_start(0.5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("127.0.0.1:{}", grpc.StatusCode.OK),
        ("localhost:{}", grpc.StatusCode.OK),
        ("127.0.0.1:{}", grpc.StatusCode.UNAUTHENTICATED),
        ("ray://127.0.0.1:{}", None),
    ],
)
def test_what_answers_as_ray_does_is_let_pass(address, code, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with grpc_server(code) as port:
        monkeypatch.setenv("RAY_ADDRESS", address.format(port))
        check_start(5)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"TMPDIR": "/tmp/" + "x" * 84}, "TMPDIR is too long by 5"),
        ({"TMPDIR": "/tmp/" + "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 30}, "TMPDIR is too long"),
        ({"TMPDIR": "/tmp", "RAY_TMPDIR": "/tmp/" + "x" * 84}, "RAY_TMPDIR is too long"),
        ({"TMPDIR": "/tmp/" + "x" * 84, "RAY_ADDRESS": "local"}, "TMPDIR is too long"),
        ({"TMPDIR": "/tmp/" + "x" * 84, "RAY_TMPDIR": "/tmp"}, None),
        ({"TMPDIR": "/scratch/local/1234567"}, None),
        ({}, None),
    ],
)
def test_a_folder_too_long_for_rays_sockets_is_named(variables, named, monkeypatch):
    for name in ("TMPDIR", "RAY_TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{named}.*set RAY_TMPDIR") if named else nullcontext():
        check_start()


def test_the_longest_name_of_a_socket_is_that_of_rays_dashboard():
    from ray.dashboard.subprocesses.module import SubprocessModule
    from ray.dashboard.utils import get_all_modules

    names = {f"dash_{module.__name__}" for module in get_all_modules(SubprocessModule)}
    assert max(map(len, names)) == len(cluster.LONGEST_SOCKET.rpartition("/")[2])
