"""HTTP/1.1 as it comes over a line: uvicorn's protocol on httptools, less what that lets through.

Invariants:
    - What follows a body is no header: trailers count for nothing.
    - A request that would rather speak another protocol is answered in this one, its body read like any other's.
    - Of what is no body, no line makes the server hold more than `HEAD_BYTES_MAX`, and one read.
    - An answer's head waits for its body no longer than until the event loop comes round.
"""

from __future__ import annotations

import asyncio
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Wire"]

HEAD_BYTES_MAX = 64 * 1024


class Wire(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._in_head = True
        self._unused = 0  # bytes since the last that ended a head, or were of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Somebody is there."""
        super().connection_made(_Joining(transport, self.loop))

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._unset_keepalive_if_required()
        self._unused += len(data)
        try:
            self._feed(data)
        except HttpParserError:
            self._refuse("Invalid HTTP request received.")
        if self._unused > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._refuse("The request has too many bytes that are no body.")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as asked:
            if self.scope["method"] == "CONNECT":
                raise HttpParserError from None
            # The parser leaves the body to the other protocol: it is given the request again, without that wish.
            version = self.scope["http_version"].encode()
            head = [b"%b %b HTTP/%b" % (self.scope["method"].encode(), self.url, version)]
            head += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            self._feed(b"\r\n".join((*head, b"", data[asked.args[0] :])))

    def _refuse(self, why: str) -> None:
        cycle = self.cycle
        if self.pipeline or (cycle is not None and cycle.response_started and not cycle.response_complete):
            self.transport.close()  # in the middle of an answer there is no room for another
        else:
            self.send_400_response(why)

    def _should_upgrade(self) -> bool:
        return True  # so that nobody begins to answer before `_feed` gave the request again

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came, or a trailer."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is all there."""
        self._in_head, self._unused = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body came."""
        self._unused = 0
        super().on_body(body)


class _Joining(asyncio.Transport):
    """A transport that sends the head of an answer together with what follows: one call of the system, not two."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._head = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._inner.write(b"".join((head, data)))
        elif data[:5] == b"HTTP/":
            self._head = bytes(data)
            self._loop.call_soon(self._flush)
        else:
            self._inner.write(data)

    def close(self) -> None:
        self._flush()
        self._inner.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()
