"""The door of the server: what every request passes before any route, and how bodies come in.

A body is read when its route asks for it, so nothing is read of who is refused. From its first byte to the answer
it has a place, and it weighs what it is without its content coding.

Invariants:
    - Nobody's body grows beyond its limits in memory, and one at a time is unfolded that was not weighed yet.
    - Once the server stops, no request begins, except those that ask whether it lives.
    - A route sees a path as it was sent: what is percent-encoded separates no segments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from holdfast.server.problems import MEDIA_TYPE, problem_of
from holdfast.sessions import jcs
from holdfast.sessions.codings import CodingError, Decoded, decode
from holdfast.sessions.errors import (
    MalformedJson,
    Stopping,
    TooLarge,
    UndecodableBody,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from holdfast.sessions.metrics import METRICS

if TYPE_CHECKING:
    from holdfast.server.backend import Backend
    from holdfast.sessions.admission import Admission, Place
    from holdfast.sessions.config import SessionsConfig
    from holdfast.sessions.values import Principal

__all__ = ["BODY", "WITH_BODY", "Door", "admit"]

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

HERE_BYTES_MAX = 64 * 1024
"""What is unfolded, or looked through, in the event loop: some hundred microseconds' worth."""

BODY = "holdfast.body"
"""Where in a request's scope its body is."""

WITH_BODY = ("POST", "PUT", "PATCH")

_ALIVE = "/live"


class Door:
    """An ASGI application round another one."""

    def __init__(self, app: App, admission: Admission, config: SessionsConfig) -> None:
        self._app = app
        self._admission = admission
        self._config = config
        self._unfolding = asyncio.Semaphore(1)
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self.stopping and scope["path"] != _ALIVE:
            return await _refuse(send, Stopping("the server is stopping", "send it again, to whoever takes over"))
        sent = {**scope, "path": scope["raw_path"].partition(b"?")[0].decode("latin-1")}
        body = sent[BODY] = _Body(self, sent, receive)
        try:
            return await self._app(sent, body.receive, send)
        finally:
            body.leave()

    def close(self) -> None:
        """Let no more requests in."""
        self.stopping = True
        self._admission.close()

    async def take(self, body: _Body) -> bytes:
        """Read a body to its end, and undo its content coding.

        Raises:
            SessionError: It is beyond a limit, damaged, or there is no room for it.
        """
        most = self._config.body_bytes_max
        if body.length is not None and body.length > most:
            raise _too_large(most, "body_bytes_max")
        place = body.place = await self._admission.enter()
        whole = BytesIO()  # gives what it holds without another copy of it
        size, more = 0, True
        while more:
            part, more = await body.part()
            if part:
                size += len(part)
                if size > most:
                    raise _too_large(most, "body_bytes_max")
                await place.grow(len(part))
                whole.write(part)
        data = whole.getvalue()
        return await self._unfolded(data, body.coding, place) if body.coding and data else data

    async def _unfolded(self, data: bytes, coding: str, place: Place) -> bytes:
        most = self._config.decoded_bytes_max
        try:
            async with self._unfolding:
                decoded = await self._decoded(data, coding)
                await place.grow(max(0, len(decoded.data) - len(data)))
        except CodingError as error:
            if error.fault == "oversize":
                raise _too_large(most, "decoded_bytes_max") from None
            kind = UnsupportedEncoding if error.fault == "unsupported" else UndecodableBody
            raise kind(str(error), "gzip and zstd are read, one within the other if need be") from None
        if decoded.salvaged:
            raise UndecodableBody("the body ends within its content coding", "send all of it")
        return decoded.data

    async def _decoded(self, data: bytes, coding: str) -> Decoded:
        """Decode where it is cheapest: here what is small and stays so, else in a thread."""
        if len(data) <= HERE_BYTES_MAX:
            try:
                return decode(data, coding, limit=HERE_BYTES_MAX)
            except CodingError as error:
                if error.fault != "oversize":
                    raise
        return await asyncio.to_thread(decode, data, coding, limit=self._config.decoded_bytes_max)

    async def check_depth(self, data: bytes) -> None:
        """Refuse JSON that nests deeper than anybody may."""
        check, most = jcs.check_depth, self._config.json_depth_max
        if len(data) > HERE_BYTES_MAX:
            await asyncio.to_thread(check, data, most)
        else:
            check(data, most)


class _Body:
    """The body of one request, until it is asked for.

    Attributes:
        headers: The request's, of several of a name the last.
        place: The one it has; None until its first byte is asked for.
    """

    def __init__(self, door: Door, scope: Scope, receive: Receive) -> None:
        self._door = door
        self._receive = receive
        self._read = False
        self.place: Place | None = None
        self.headers = headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self.length = int(length) if length.isdigit() else None
        self.coding = headers.get(b"content-encoding", b"").decode("latin-1")
        self._there = bool(self.length) or b"transfer-encoding" in headers

    async def receive(self) -> Message:
        """Give the route the whole body in one message; after it, what the server says."""
        if self._read or not self._there:
            return await self._receive()
        data = await self.read()
        await self._door.check_depth(data)
        return {"type": "http.request", "body": data, "more_body": False}

    async def read(self) -> bytes:
        """Return the body as it is, once, to a route that looks into it by itself: the framework would copy it.

        Raises:
            SessionError: It is beyond a limit, damaged, or there is no room for it.
        """
        self._read = True
        return await self._door.take(self) if self._there else b""

    async def part(self) -> tuple[bytes, bool]:
        """Return what the client has sent since, and whether there is more to come."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise MalformedJson("the body ends before it is all there")
        return message.get("body", b""), message.get("more_body", False)

    def leave(self) -> None:
        """Give back the place: the request is answered."""
        if self.place is not None:
            self.place.leave()


async def admit(backend: Backend, scope: Scope, wants: Mapping[str, Any]) -> Principal:
    """Let a request in, or not.

    Args:
        backend: The server's parts.
        scope: The request's.
        wants: What its route says of itself: the scope it needs, and the types of body that it reads.

    Raises:
        SessionError: It comes from the wrong place, without a good key, or with a body of another type.
    """
    headers = scope["headers"]
    peer, _ = scope["client"] or ("", 0)
    principal = await backend.gate.admit(headers, wants.get("scope", "read"), peer)
    if scope.get("method") in WITH_BODY:
        _check_type(scope[BODY].headers, wants.get("accepts", ("application/json",)))
    return principal


def _check_type(headers: Mapping[bytes, bytes], accepted: tuple[str, ...]) -> None:
    if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return
    given = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if given not in accepted:
        raise UnsupportedMediaType("the body is not of a type that is read here", f"send {' or '.join(accepted)}")


def _too_large(most: int, limit: str) -> TooLarge:
    return TooLarge(f"the body has more than {most} bytes", "send less at a time", limit=limit)


async def _refuse(send: Send, error: Stopping) -> None:
    problem = problem_of(error)
    METRICS.rejected.add(1, problem.code)
    body = msgspec.json.encode(problem)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store"),
        (b"retry-after", b"1"), (b"connection", b"close"),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
