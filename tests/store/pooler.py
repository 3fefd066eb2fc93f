"""A pooler of transactions in small: each transaction of a client goes to the next session of the server."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

__all__ = ["Pooler"]

STARTUP = b"\0\3\0\0"
NO_ENCRYPTION = (struct.pack("!I", 80877103), struct.pack("!I", 80877104))
ENDS_A_ROUND = b"QS"  # a query, or a sync
READY, IDLE, LEAVES, REFUSES = b"Z", b"I", b"X", b"E"


class Session:
    """A session of the server. It is read from also while nobody has it, so that its end is noticed at once.

    Attributes:
        ended: Whether the server has ended it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._client: asyncio.StreamWriter | None = None
        self._states: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended = False
        self._reading = asyncio.ensure_future(self._read(reader))

    def close(self) -> None:
        """Leave: the server rolls back what has not been committed."""
        self._writer.close()

    async def run(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a client's messages on until the server says that it is in no transaction any more.

        Raises:
            asyncio.IncompleteReadError: The client has left within a transaction.
            ConnectionError: The same, or the server has ended the session.
        """
        self._client = writer
        message = first
        while True:
            self._writer.write(message)  # `LEAVES` ends the session, and what it has begun
            if message[:1] in ENDS_A_ROUND:
                state = await self._states.get()
                if state == IDLE:
                    self._client = None
                    return
                if state is None:
                    raise ConnectionError("the server has ended the session")
            message = await _message(reader)  # who leaves within a transaction says so, or just goes

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Pass answers on. A client whose session ends is cut off: nobody else would ever answer what he asked."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await _message(reader)
                if self._client is not None and not self._client.is_closing():
                    self._client.write(message)
                if message[:1] == READY:
                    self._states.put_nowait(message[5:6])
        self.ended = True
        self._states.put_nowait(None)
        if self._client is not None:
            self._client.close()


class Pooler:
    """Stands before a server that listens on a unix socket and trusts its users.

    It forgets nothing of a session between two clients, and supports no prepared statement but the unnamed one. As
    PgBouncer does, it replaces a session that has ended when somebody wants it, and ends a client's connection
    together with the session he has.

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
        self._places: asyncio.Queue[Session | None] = asyncio.Queue()  # None: a session has yet to be made
        self._made: list[Session] = []
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
        for session in self._made:
            session.close()

    async def grow(self, sessions: int) -> None:
        """Have more sessions. Clients are told of the first one's, whichever they get."""
        for _ in range(sessions):
            self._places.put_nowait(await self._open())

    async def _open(self) -> Session:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        body = STARTUP + b"".join(
            part.encode() + b"\0" for part in ("user", self._user, "database", self._database, "")
        )
        writer.write(struct.pack("!I", len(body) + 4) + body)
        greeting = b""
        while (message := await _message(reader))[:1] != READY:
            if message[:1] == REFUSES:
                raise ConnectionError(message)
            greeting += message
        self._greeting = self._greeting or greeting
        session = Session(reader, writer)
        self._made.append(session)
        return session

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while (await _startup(reader))[:4] in NO_ENCRYPTION:
                writer.write(b"N")
            writer.write(self._greeting + READY + struct.pack("!I", 5) + IDLE)
            while (first := await _message(reader))[:1] != LEAVES:
                session = await self._places.get()
                self.rounds += 1
                try:
                    if session is None or session.ended:
                        session = await self._open()
                    await session.run(first, reader, writer)
                except BaseException:  # the client has left within a transaction, or the server has ended the session
                    if session is not None:
                        session.close()
                    session = None
                    raise
                finally:
                    self._places.put_nowait(session)
        writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    kind = await reader.readexactly(1)
    size = await reader.readexactly(4)
    return kind + size + await reader.readexactly(struct.unpack("!I", size)[0] - 4)


async def _startup(reader: asyncio.StreamReader) -> bytes:
    size = await reader.readexactly(4)
    return await reader.readexactly(struct.unpack("!I", size)[0] - 4)
