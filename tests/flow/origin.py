"""An HTTP server over a real socket that does, request by request, what a test tells it: answer, wait, break off.

It runs in a thread of its own, so that synchronous and asynchronous clients alike find it awake.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h11

STARTS_WITHIN_S = 10


@dataclass(frozen=True)
class Seen:
    """A request as it came over the wire; names of fields are in lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.values(name)
        assert len(values) < 2, f"{name} came more than once"
        return values[0] if values else None

    @property
    def key(self) -> str | None:
        return self.get("idempotency-key")


@dataclass(frozen=True)
class Reply:
    """An answer, whole."""

    status: int = 200
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Torn:
    """An answer that breaks off in its body, after which something may happen."""

    reply: Reply
    then: Callable[[], object] = bool


@dataclass(frozen=True)
class Reset:
    """No answer: the connection is reset when the request is there."""


@dataclass(frozen=True)
class Hang:
    """No answer, and the connection stays."""


Turn = Reply | Torn | Reset | Hang
Script = Callable[[Seen], Turn | Awaitable[Turn]]


def problem(status: int, code: str, *, base: str = "urn:holdfast:idempotency:", **headers: str) -> Reply:
    """A problem document as a guard answers; a field is named with `_` for `-`."""
    document = {"type": base + code, "title": "Said", "status": status, "code": code}
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"Content-Type": "application/problem+json", **fields}, json.dumps(document).encode())


class Origin:
    """The server. It answers by its turns, then by the last of them for ever; or by a function of the request."""

    def __init__(self, *turns: Turn, script: Script | None = None) -> None:
        self.seen: list[Seen] = []
        self._turns = list(turns)
        self._script = script
        self._port: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port.result(STARTS_WITHIN_S)}"

    @property
    def keys(self) -> list[str | None]:
        return [seen.key for seen in self.seen]

    def say(self, *turns: Turn) -> None:
        """Go on with these turns."""
        self._turns[:] = turns

    def __enter__(self) -> Self:
        self._thread.start()
        self._port.result(STARTS_WITHIN_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(STARTS_WITHIN_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port.set_result(server.sockets[0].getsockname()[1])
        await self._end.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, h11.RemoteProtocolError):
            pass  # clients that give up are part of it
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._connections.discard(task)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            seen = await self._read(connection, reader)
            if seen is None:
                return None
            self.seen.append(seen)
            turn = await self._turn(seen)
            match turn:
                case Reply():
                    writer.write(self._encode(connection, turn))
                    await writer.drain()
                case Torn(reply, then):
                    whole = self._encode(connection, reply)
                    writer.write(whole[: -max(len(reply.body) // 2, 1)])
                    await writer.drain()
                    then()
                    return self._reset(writer)
                case Reset():
                    return self._reset(writer)
                case Hang():
                    await reader.read()
                    return None
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return None
            connection.start_next_cycle()

    async def _turn(self, seen: Seen) -> Turn:
        if self._script is not None:
            turn = self._script(seen)
            return turn if isinstance(turn, Reply | Torn | Reset | Hang) else await turn
        return self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]

    async def _read(self, connection: h11.Connection, reader: asyncio.StreamReader) -> Seen | None:
        request, body = None, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert request is not None
                fields = tuple((name.decode(), value.decode("latin-1")) for name, value in request.headers)
                return Seen(request.method.decode(), request.target.decode(), fields, bytes(body))
            else:
                return None

    def _encode(self, connection: h11.Connection, reply: Reply) -> bytes:
        given = reply.headers.items() if isinstance(reply.headers, Mapping) else reply.headers
        fields = [(name.encode(), value.encode("latin-1")) for name, value in given]
        if reply.status != 204:
            fields.append((b"Content-Length", str(len(reply.body)).encode()))
        events = [h11.Response(status_code=reply.status, headers=fields), h11.Data(reply.body), h11.EndOfMessage()]
        return b"".join(connection.send(event) or b"" for event in events)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        """Close so that the other side is reset instead of told of an end."""
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
