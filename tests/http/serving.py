"""Real servers over real sockets, in threads of their own, and clients that speak to them byte by byte."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypercorn.asyncio
import uvicorn
from hypercorn.config import Config

from holdfast.idempotency import Idempotency

STARTS_WITHIN_S = 20
ANSWERS_WITHIN_S = 20


class Served:
    """An application being served.

    Attributes:
        port: Where.
        url: The same as a URL.
        loop: The server's event loop, where the application's events are set.
    """

    def __init__(self, app: Any, guard: Idempotency | None, run: Callable[[Served], Any]) -> None:
        self.app = app
        self.guard = guard
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.loop: asyncio.AbstractEventLoop
        self.ready = threading.Event()
        self.stopping: Callable[[], None] = lambda: None
        self._run = run
        self._thread = threading.Thread(target=self._serve, name="a server of a test", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self.ready.wait(STARTS_WITHIN_S)

    def stop(self) -> None:
        if self.guard is not None:
            asyncio.run_coroutine_threadsafe(self.guard.stop(), self.loop).result(ANSWERS_WITHIN_S)
        self.loop.call_soon_threadsafe(self.stopping)
        self._thread.join(ANSWERS_WITHIN_S)
        assert not self._thread.is_alive()
        self.listening.close()

    def do(self, what: Callable[..., object], *arguments: object) -> None:
        """Call something in the server's loop."""
        self.loop.call_soon_threadsafe(what, *arguments)

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port))
        made.settimeout(ANSWERS_WITHIN_S)
        return made

    def raw(self, request: bytes) -> bytes:
        """Send bytes over a connection of their own, and return all that comes back until the server closes."""
        with self.connect() as connection:
            connection.sendall(request)
            return drain(connection)

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self._run(self)


async def _uvicorn(served: Served) -> None:
    # httptools, where uvicorn finds it, makes headers of trailers that come with the head.
    settings = uvicorn.Config(
        served.app, http="h11", log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(settings)

    def stop() -> None:
        server.should_exit = True

    served.stopping = stop
    begin = server.startup

    async def startup(sockets: Any = None) -> None:
        await begin(sockets)
        served.ready.set()

    server.startup = startup
    await server.serve(sockets=[served.listening])


async def _hypercorn(served: Served) -> None:
    settings = Config()
    settings.bind = [f"fd://{os.dup(served.listening.fileno())}"]  # it closes what it is given
    settings.errorlog = settings.accesslog = None
    settings.graceful_timeout = settings.shutdown_timeout = 0.1
    stop = asyncio.Event()
    served.stopping = stop.set
    serving = asyncio.ensure_future(hypercorn.asyncio.serve(served.app, settings, shutdown_trigger=stop.wait))
    served.ready.set()
    await serving


@contextmanager
def served(app: Any, guard: Idempotency | None = None, *, server: str = "uvicorn") -> Iterator[Served]:
    """Serve an application, and stop its guard and the server at the end."""
    made = Served(app, guard, {"uvicorn": _uvicorn, "hypercorn": _hypercorn}[server])
    made.start()
    try:
        yield made
    finally:
        made.stop()


def drain(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def until(connection: socket.socket, mark: bytes) -> bytes:
    """Read until what has come ends with, or holds, some bytes."""
    read = b""
    while mark not in read:
        part = connection.recv(65536)
        assert part, f"the server closed after {read!r}"
        read += part
    return read


def request_bytes(
    key: bytes, body: bytes = b'{"amount":5}', *lines: bytes, version: bytes = b"1.1", path: bytes = b"/orders"
) -> bytes:
    """A POST as it goes over the wire, after which the server closes."""
    head = [
        b"POST " + path + b" HTTP/" + version, b"host: test", b"connection: close", b"idempotency-key: " + key,
        b"content-length: %d" % len(body), *lines,
    ]  # fmt: skip
    return b"\r\n".join(head) + b"\r\n\r\n" + body
