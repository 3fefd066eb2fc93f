"""A pooler of transactions in small: each transaction of a client goes to the next session of the server."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

__all__ = ["Pooler"]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

STARTUP = b"\0\3\0\0"
NO_ENCRYPTION = (struct.pack("!I", 80877103), struct.pack("!I", 80877104))
ENDS_A_ROUND = b"QS"  # a query, or a sync
READY, IDLE, LEAVES = b"Z", b"I", b"X"


class Pooler:
    """Stands before a server that listens on a unix socket and trusts its users.

    It forgets nothing of a session between two clients, and supports no prepared statement but the unnamed one.

    Attributes:
        url: What clients connect to.
        rounds: Transactions so far.
    """

    def __init__(self, url: str, *, sessions: int = 3) -> None:
        parts = urlsplit(url)
        [directory] = parse_qs(parts.query)["host"]
        self._socket = f"{directory}/.s.PGSQL.5432"
        self._user, self._database = parts.username or "", parts.path[1:]
        self._wanted = sessions
        self._sessions: asyncio.Queue[Stream] = asyncio.Queue()
        self._made: list[Stream] = []
        self._greeting = b""
        self.url = ""
        self.rounds = 0

    async def __aenter__(self) -> Self:
        await self.grow(self._wanted)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._user}@127.0.0.1:{port}/{self._database}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for _, writer in self._made:
            writer.close()

    async def grow(self, sessions: int) -> None:
        """Open more sessions. Clients are told of the first one's, whichever they get."""
        for _ in range(sessions):
            reader, writer = await asyncio.open_unix_connection(self._socket)
            body = STARTUP + b"".join(
                part.encode() + b"\0" for part in ("user", self._user, "database", self._database, "")
            )
            writer.write(struct.pack("!I", len(body) + 4) + body)
            greeting = b""
            while (message := await _message(reader))[:1] != READY:
                assert message[:1] != b"E", message
                greeting += message
            self._greeting = self._greeting or greeting
            self._made.append((reader, writer))
            self._sessions.put_nowait((reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while (await _startup(reader))[:4] in NO_ENCRYPTION:
                writer.write(b"N")
            writer.write(self._greeting + READY + struct.pack("!I", 5) + IDLE)
            while (first := await _message(reader))[:1] != LEAVES:
                session = await self._sessions.get()
                self.rounds += 1
                try:
                    await _transaction(first, (reader, writer), session)
                except BaseException:  # the client has left within a transaction, or the server has ended the session
                    session[1].close()
                    await self.grow(1)
                    raise
                self._sessions.put_nowait(session)
        writer.close()


async def _transaction(first: bytes, client: Stream, server: Stream) -> None:
    """Pass messages on until the server says that it is in no transaction any more."""
    states: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def answer() -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await _message(server[0])
                client[1].write(message)
                if message[:1] == READY:
                    states.put_nowait(message[5:6])
        states.put_nowait(None)

    answering = asyncio.ensure_future(answer())
    try:
        message = first
        while True:
            server[1].write(message)  # `LEAVES` ends the session, and what it has begun
            if message[:1] in ENDS_A_ROUND:
                state = await states.get()
                if state == IDLE:
                    return
                if state is None:
                    raise ConnectionError("the server has ended the session")
            message = await _message(client[0])  # who leaves within a transaction says so, or just goes
    finally:
        answering.cancel()


async def _message(reader: asyncio.StreamReader) -> bytes:
    kind = await reader.readexactly(1)
    size = await reader.readexactly(4)
    return kind + size + await reader.readexactly(struct.unpack("!I", size)[0] - 4)


async def _startup(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return await reader.readexactly(struct.unpack("!I", size)[0] - 4)
