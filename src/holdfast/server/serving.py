"""A server while it runs: from listening to the last answer, on uvicorn.

It stops in order: no request begins, those in flight get their answers, what the server runs is stopped, and whoever
opened the ledger closes it, which writes what was accepted.

Invariants:
    - Nobody can come in without a key from elsewhere, from before the first request on.
    - Stopping is idempotent, and takes as long as `shutdown_ms` at most, but for the ledger's own close.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn

from holdfast.core.errors import ConfigError
from holdfast.core.loops import Loop
from holdfast.server.app import build
from holdfast.server.backend import Backend
from holdfast.server.bodies import Door
from holdfast.server.express import Express
from holdfast.server.gate import Gate, check_bind
from holdfast.server.protocol import Protocol
from holdfast.sessions.admission import Admission
from holdfast.sessions.facade import Archive

if TYPE_CHECKING:
    from holdfast import Holdfast
    from holdfast.core.clock import Clock
    from holdfast.core.keyring import KeyRing
    from holdfast.lifecycle.hooks import Hooks
    from holdfast.sessions.config import SessionsConfig

__all__ = ["Serving", "listen"]

BACKLOG = 2048
HOOKS_EVERY_S = 1.0
"""How late a receipt may be of a call that was only observed."""
TIDY_EVERY_S = 60.0
ANSWERING_SHARE = 0.75
"""Of the time there is to stop, what requests in flight may take."""


class Serving:
    """The server on an open ledger. It belongs to one event loop.

    Attributes:
        backend: What its routes are given.
    """

    def __init__(
        self, hf: Holdfast, config: SessionsConfig, ring: KeyRing | None = None, hooks: Hooks | None = None
    ) -> None:
        """Put a server together.

        Args:
            hf: The ledger, open.
            config: Limits, and who may come.
            ring: The cipher of the application's guard, for answers that operators give.
            hooks: What makes receipts of hook calls that nobody saw to; None: others do.

        Raises:
            ConfigError: The installation's secret or the rate cards cannot be read.
        """
        database = hf.database
        archive = Archive(database, config=config)
        self.backend = Backend(hf, Gate(database, config.allow_hosts, config.trusted_proxies), archive, ring)
        self._config = config
        app = Express(build(self.backend))
        self._door = Door(app, Admission(config, database.clock), config)
        self._server: _Uvicorn | None = None
        self._loops = [] if hooks is None else _loops(hooks, database.clock)

    async def check(self, host: str) -> None:
        """Refuse an address where others could come in without a key.

        Raises:
            ConfigError: It is one (`config.bind`).
        """
        check_bind(host, keyed=await self.backend.gate.keyed())

    async def run(self, listening: socket.socket, ready: Callable[[], None]) -> None:
        """Serve until `stop` is called.

        Args:
            listening: Where, as `listen` made it; closed at the end.
            ready: Called once requests are taken.
        """
        # h11, also where the faster httptools is to be had: with that, trailers of a request come to be headers of it.
        settings = uvicorn.Config(
            self._door, http=Protocol, lifespan="off", ws="none", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, int(self._config.shutdown_ms / 1000 * ANSWERING_SHARE)),
        )  # fmt: skip
        self._server = _Uvicorn(settings, ready)
        try:
            async with self.backend.archive:
                for loop in self._loops:
                    loop.start()
                await self._server.serve(sockets=[listening])
        finally:
            self._door.close()
            for loop in self._loops:
                await loop.stop()
            await self.backend.gate.stop()

    def stop(self) -> None:
        """Begin to stop; called again, stop waiting for requests in flight."""
        self.backend.stopping = True
        self._door.close()
        if self._server is not None:
            self._server.force_exit = self._server.should_exit
            self._server.should_exit = True


def _loops(hooks: Hooks, clock: Clock) -> list[Loop]:
    """What is done for hook calls whose processes have left it to others, as a resident does it."""

    async def derive() -> None:
        while await hooks.derive(call_clients=True):
            pass

    return [
        Loop("holdfast.server.hooks", derive, HOOKS_EVERY_S, clock),
        Loop("holdfast.server.tidy", hooks.tidy, TIDY_EVERY_S, clock),
    ]


class _Uvicorn(uvicorn.Server):
    """uvicorn without signals of its own: who runs the process decides about those."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def listen(host: str, port: int) -> socket.socket:
    """Take an address; port 0 takes a free one.

    Raises:
        ConfigError: It cannot be had (`config.bind`).
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # Of a socket that does not say it is TCP, asyncio does not turn off Nagle's delay: 40 ms an answer.
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise _cannot_listen(host, port, error) from error
    return listening


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot listen on {host}:{port}: {error.strerror}", "give another --host or --port", code="config.bind"
    )
