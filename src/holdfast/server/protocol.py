"""HTTP on one connection: what uvicorn and h11 make of it, and a shorter way to the same for calls that come in.

A request that posts a call, has come as a whole, and has nothing about it that asks for more than to be read is found
by one pattern, and answered in one write. All else is h11's: what is only part of a request, or more than one, and
every head with anything out of the ordinary. Both meet between two requests, when h11 waits for the next.

Invariants:
    - What the pattern finds in bytes is what h11 finds in them; bytes that h11 refuses are never found.
    - What is answered is, byte for byte, what h11 would write.
    - Requests of a connection are answered one after the other, whoever reads them.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from holdfast.core.loops import spawn_held
from holdfast.server.routes.ingest import PATH

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent, HTTPScope

    from holdfast.server.bodies import Headers

__all__ = ["Protocol", "plain"]

PLAIN_BYTES_MAX = 64 * 1024
"""What is longer is h11's: it gives a body in pieces, of which none is held here until the answer."""

_NAME, _VALUE = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++", rb"(?:[\x21-\x7e][\x20-\x7e]*+(?<! ))?+"
_HEAD = re.compile(rb"POST %b HTTP/1\.1\r\n((?:%b: ?%b\r\n)++)\r\n" % (re.escape(PATH.encode()), _NAME, _VALUE))
_LINE = re.compile(rb"(%b): ?(%b)\r\n" % (_NAME, _VALUE))
_LENGTH = re.compile(rb"[1-9][0-9]{0,8}")
_UNUSUAL = frozenset((b"transfer-encoding", b"expect", b"upgrade"))
_STAYS = (b"keep-alive", b"Keep-Alive")


def plain(data: bytes) -> tuple[Headers, bytes] | None:
    """Return headers and body of bytes that are one call posted, and nothing out of the ordinary; else None."""
    head = _HEAD.match(data) if len(data) <= PLAIN_BYTES_MAX else None
    if head is None:
        return None
    headers = [(name.lower(), value) for name, value in _LINE.findall(head[1])]
    fields = dict(headers)
    length = fields.get(b"content-length", b"")
    if (
        len(fields) < len(headers)  # what two of a name mean depends on the name
        or b"host" not in fields
        or not _UNUSUAL.isdisjoint(fields)
        or fields.get(b"connection", b"keep-alive") not in _STAYS
        or not _LENGTH.fullmatch(length)
        or len(data) - head.end() != int(length)
    ):
        return None
    return headers, data[head.end() :]


class Protocol(H11Protocol):
    """One connection."""

    _later = b""
    """What came while a plain request was being answered."""
    _idle_at = 0.0
    """When the last answer was written, by the loop's time."""

    def data_received(self, data: bytes) -> None:
        if self._later or (isinstance(self.cycle, _Cycle) and not self.cycle.response_complete):
            self._later += data
            self.flow.pause_reading()
            return
        found = plain(data) if self._waits() else None
        if found is None:
            super().data_received(data)
            return
        self.headers, body = found
        self.conn.their_http_version = b"1.1"  # which is how h11 refuses what may come after
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]  # as uvicorn does
            "method": "POST",
            "root_path": "",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        self.cycle = cycle = _Cycle(self, self.scope, data, body)
        cycle.task = spawn_held(cycle.run_asgi(self.app), "holdfast.server.call")
        self.tasks.add(cycle.task)

    def _waits(self) -> bool:
        """Say whether h11 has had every byte of the requests before, and none of the next."""
        return self.conn.our_state is h11.IDLE and not self.conn.trailing_data[0]

    def answered(self) -> None:
        """Wait for the next request: what `on_response_complete` does, but for a timer of each answer's own."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._idle_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_for_more(self.timeout_keep_alive)
        self.flow.resume_reading()
        self._go_on()

    def on_response_complete(self) -> None:
        self._idle_at = self.loop.time()
        super().on_response_complete()
        self._go_on()

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        left = self._idle_at + self.timeout_keep_alive - self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            return  # the end of the answer sets another
        if left > 0:
            self._wait_for_more(left)
        else:
            super().timeout_keep_alive_handler()

    def _wait_for_more(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _go_on(self) -> None:
        if self._later and not self.transport.is_closing():
            later, self._later = self._later, b""
            self.data_received(later)


class _Cycle(RequestResponseCycle):
    """A plain request and its answer; an answer that is not plain is given through h11, as to any other request."""

    def __init__(self, protocol: Protocol, scope: HTTPScope, data: bytes, body: bytes) -> None:
        super().__init__(
            scope=scope, conn=protocol.conn, transport=protocol.transport, flow=protocol.flow, logger=protocol.logger,
            access_logger=protocol.access_logger, access_log=False,
            default_headers=protocol.server_state.default_headers, message_event=asyncio.Event(),
            on_response=protocol.on_response_complete,
        )  # fmt: skip
        self.more_body = False
        self._data: bytes | None = data
        self._unread: bytes | None = body
        self._start: Any = None
        self._answered, self._tasks = protocol.answered, protocol.tasks
        self.task: asyncio.Task[None] | None = None

    async def run_asgi(self, app: Any) -> None:
        try:
            await super().run_asgi(app)
        finally:
            self._tasks.discard(self.task)
            self._answered = self.on_response  # which uvicorn has let go of

    async def receive(self) -> ASGIReceiveEvent:
        body, self._unread = self._unread, None
        if body is None or self.disconnected or self.response_complete:
            return await super().receive()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: ASGISendEvent) -> None:
        if self._data is None:
            return await super().send(message)
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return None
        if self._start is None and message["type"] == "http.response.start":
            self._start, self.response_started = message, True
            return None
        answer = self._whole(message)
        if answer is None:
            return await self._through_h11(message)
        self.transport.write(answer)
        self._data = None
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self._answered()
        return None

    def _whole(self, message: Any) -> bytes | None:
        """Return an answer as bytes, where it is all there, as long as it says, and leaves the connection open."""
        start, body = self._start, message.get("body", b"")
        if start is None or message.get("more_body", False):
            return None
        headers = self.default_headers + start["headers"]
        if (b"content-length", b"%d" % len(body)) not in headers or CLOSE_HEADER in headers:
            return None
        status = start["status"]
        lines = [b"%b: %b\r\n" % header for header in headers]
        return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, STATUS_PHRASES[status], b"".join(lines), body)

    async def _through_h11(self, message: ASGISendEvent) -> None:
        """Let h11 read the request after all, and write the answer."""
        assert self._data is not None
        self.conn.receive_data(self._data)
        self._data = None
        while not isinstance(event := self.conn.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA
        self.response_started = False
        if self._start is not None:
            await super().send(self._start)
        await super().send(message)
