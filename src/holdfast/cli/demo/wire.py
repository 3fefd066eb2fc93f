"""Just enough HTTP/1.1 for the demo: one request per connection, JSON bodies, event streams.

Both ends live here, so that neither the agent nor the doubles of other people's services need anything
but the standard library. The client's one duty is to tell apart what a caller must not confuse: a
request that was never sent, and a request whose fate is unknown.

Invariants:
    - `Refused` means no byte of the request left this process.
    - Every other end without a whole answer is `AnswerLost`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["HOST", "AnswerLost", "Refused", "Reply", "Request", "call", "die_with_parent", "events", "serve"]

HOST = "127.0.0.1"
_REASONS = {200: "OK", 201: "Created", 404: "Not Found", 422: "Unprocessable Content"}
_BROKEN = (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError)
_ARRIVAL_SECONDS = 2.0

_Headers = dict[str, str]


class Refused(Exception):
    """Nobody listens there: nothing was sent, so nothing happened."""


class AnswerLost(Exception):
    """The connection broke before the whole answer came: the other side may have acted or not."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a service sees it.

    Attributes:
        earlier: One future per connection accepted before this one's whose request had not arrived yet.
    """

    method: str
    path: str
    headers: _Headers
    body: Any
    earlier: frozenset[asyncio.Future[None]]

    async def all_earlier_have_arrived(self) -> None:
        """Wait until whatever was sent before this request has been read, or has broken off.

        A client killed right after it sent a request leaves the bytes in this machine's socket buffers.
        A service that is then asked "did you get it?" must look there before it says no.
        """
        if self.earlier:
            await asyncio.wait(self.earlier, timeout=_ARRIVAL_SECONDS)


class Reply:
    """The answer being written. A client that has gone away is no error: the work goes on."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def _send(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    def json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a JSON document."""
        body = json.dumps(value).encode()
        fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        self._send(_head(f"HTTP/1.1 {status} {_REASONS[status]}", fields) + body)

    def start_events(self) -> None:
        """Begin an answer that is a stream of server-sent events."""
        self._send(_head("HTTP/1.1 200 OK", {"content-type": "text/event-stream", "cache-control": "no-cache"}))

    def event(self, name: str, value: Mapping[str, object]) -> None:
        """Send one event of the stream."""
        self._send(f"event: {name}\ndata: {json.dumps(value)}\n\n".encode())

    async def abandoned(self, within: float) -> bool:
        """Wait that many seconds for the client to go away; say whether it did."""
        try:
            async with asyncio.timeout(within):
                await self._reader.read()
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True


Handler = Callable[[Request, Reply], Awaitable[None]]


def _head(first: str, fields: Mapping[str, str]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in fields.items()), "connection: close", "", ""]
    return "\r\n".join(lines).encode()


async def _read_head(reader: asyncio.StreamReader) -> tuple[list[str], _Headers]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first.split(" ", 2), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: _Headers) -> Any:
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return json.loads(body) if body else None


class _Service:
    """The server's side of every connection."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._arriving: set[asyncio.Future[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        earlier = frozenset(self._arriving)
        arrived = asyncio.get_running_loop().create_future()
        self._arriving.add(arrived)
        try:
            (method, path, _), headers = await _read_head(reader)
            body = await _read_body(reader, headers)
        except _BROKEN:
            writer.close()
            return
        else:
            # No await until the handler has looked at the request: who waits for it finds it noted.
            request = Request(method, path, headers, body, earlier)
        finally:
            self._arriving.discard(arrived)
            arrived.set_result(None)
        try:
            await self._handler(request, Reply(reader, writer))
            await writer.drain()
        except ConnectionError:
            pass  # the client went away; what was done is in the service's book
        finally:
            writer.close()


async def serve(handler: Handler, port: int) -> None:
    """Serve on a loopback port (0: the kernel's choice), say which on standard output, and never return."""
    server = await asyncio.start_server(_Service(handler), HOST, port)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    die_with_parent()
    await server.serve_forever()


def die_with_parent() -> asyncio.Future[None]:
    """End this process the moment its parent does: standard input is a pipe only the parent holds.

    Returns:
        A future that is done when the parent sends a word: this process may go home.
    """
    loop = asyncio.get_running_loop()
    dismissed: asyncio.Future[None] = loop.create_future()

    def on_input() -> None:
        if not os.read(0, 1):
            os._exit(0)
        if not dismissed.done():
            dismissed.set_result(None)

    loop.add_reader(0, on_input)
    return dismissed


@asynccontextmanager
async def _sent(
    port: int, method: str, path: str, key: str | None, value: object
) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request and give the stream its answer comes on."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError as error:
        raise Refused(f"nobody listens on port {port}") from error
    body = b"" if value is None else json.dumps(value).encode()
    fields = {"host": f"{HOST}:{port}", "content-type": "application/json", "content-length": str(len(body))}
    if key is not None:
        fields["idempotency-key"] = key
    try:
        writer.write(_head(f"{method} {path} HTTP/1.1", fields) + body)
        yield reader
    except _BROKEN as error:
        raise AnswerLost(f"{method} {path} broke off before its answer was complete") from error
    finally:
        writer.close()


async def call(port: int, method: str, path: str, *, key: str | None = None, value: object = None) -> tuple[int, Any]:
    """Send a request and return status and document of its answer.

    Raises:
        Refused: Nothing was sent.
        AnswerLost: The request may have been acted on.
    """
    async with _sent(port, method, path, key, value) as reader:
        (_, status, _), headers = await _read_head(reader)
        return int(status), await _read_body(reader, headers)


async def events(port: int, path: str, *, key: str, value: object) -> AsyncIterator[Any]:
    """Post a request and yield the document of each event of its answer until the stream ends.

    Raises:
        Refused: Nothing was sent.
        AnswerLost: The request may have been acted on.
    """
    async with _sent(port, "POST", path, key, value) as reader:
        (_, status, _), _ = await _read_head(reader)
        if status != "200":
            raise AnswerLost(f"POST {path} was answered with status {status}")
        while line := await reader.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[len(b"data: ") :])
