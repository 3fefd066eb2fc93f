"""Bodies of httpx that are read twice: requests that are sent again, responses that somebody looked into.

Invariants:
    - What was read ahead is read again, and everything after it, by whoever reads the response.
    - No more of a response than a problem document may have is held, encoded or decoded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import httpx

from holdfast.idempotency.retry import PROBLEM_BYTES_MAX
from holdfast.idempotency.values import Headers

__all__ = [
    "AsyncBody",
    "Body",
    "copied",
    "copied_with",
    "decoded",
    "is_loaded",
    "is_resendable",
    "read_ahead",
    "read_ahead_async",
]

DECODED_AT_ONCE = 1024
"""Encoded bytes decoded at a time: what they can grow to between two looks is about a thousand times that."""


# Requests


def copied(request: httpx.Request) -> httpx.Request:
    """Return a request with the same body, whose fields are its own."""
    made = httpx.Request(
        request.method, request.url, headers=request.headers, stream=request.stream, extensions=request.extensions
    )
    if isinstance(made.stream, httpx.ByteStream):
        made.read()  # whoever signs it looks at its content
    return made


def copied_with(request: httpx.Request, body: bytes, kept: Headers) -> httpx.Request:
    """Return a request with a body that was kept, and the content type that was kept with it."""
    headers = httpx.Headers(request.headers)
    for name, value in kept:
        if name == b"content-type":
            headers["Content-Type"] = value.decode("latin-1")
    headers.pop("Transfer-Encoding", None)
    headers["Content-Length"] = str(len(body))
    return httpx.Request(request.method, request.url, headers=headers, content=body, extensions=request.extensions)


def is_resendable(stream: object) -> bool:
    """Whether a body gives the same bytes again: it is bytes, or multipart whose files can be rewound."""
    if isinstance(stream, httpx.ByteStream):
        return True
    files = [getattr(part, "file", b"") for part in getattr(stream, "fields", ())]
    return bool(files) and all(isinstance(file, str | bytes) or _is_seekable(file) for file in files)


def _is_seekable(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if seekable is not None else hasattr(file, "seek")


# Responses


class Body(httpx.SyncByteStream):
    """A body that somebody has begun to read, or whose end matters."""

    def __init__(
        self,
        inner: Any,
        head: Iterable[bytes] = (),
        rest: Iterator[bytes] | None = None,
        ended: Callable[[], object] | None = None,
    ) -> None:
        """Put a body together.

        Args:
            inner: The stream it comes from, which is closed with it.
            head: What was read of it.
            rest: Its iterator, where reading has stopped; None: reading has not begun.
            ended: Called when the last byte has been read.
        """
        self._inner: httpx.SyncByteStream = inner
        self._head = head
        self._rest = rest
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        yield from self._head
        yield from self._inner if self._rest is None else self._rest
        if self._ended is not None:
            self._ended()

    def close(self) -> None:
        self._inner.close()


class AsyncBody(httpx.AsyncByteStream):
    """`Body`, awaited."""

    def __init__(
        self,
        inner: Any,
        head: Iterable[bytes] = (),
        rest: AsyncIterator[bytes] | None = None,
        ended: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._inner: httpx.AsyncByteStream = inner
        self._head = head
        self._rest = rest
        self._ended = ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._head:
            yield chunk
        async for chunk in self._inner if self._rest is None else self._rest:
            yield chunk
        if self._ended is not None:
            await self._ended()

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_loaded(response: httpx.Response) -> bool:
    """Whether a response came with its body read, as those of test doubles and caches do."""
    try:
        return response.content is not None
    except httpx.ResponseNotRead:
        return False


def read_ahead(response: httpx.Response) -> bytes | None:
    """Return the body as it came, if it is smaller than a problem document may be; it can still be read.

    A response that fails meanwhile is closed.
    """
    stream: Any = response.stream
    rest = iter(stream)
    head, size = [], 0
    try:
        for chunk in rest:
            head.append(chunk)
            size += len(chunk)
            if size >= PROBLEM_BYTES_MAX:
                break
    except BaseException:
        response.close()
        raise
    response.stream = Body(stream, head, rest)
    return b"".join(head) if size < PROBLEM_BYTES_MAX else None


async def read_ahead_async(response: httpx.Response) -> bytes | None:
    """`read_ahead`, awaited."""
    stream: Any = response.stream
    rest = aiter(stream)
    head, size = [], 0
    try:
        async for chunk in rest:
            head.append(chunk)
            size += len(chunk)
            if size >= PROBLEM_BYTES_MAX:
                break
    except BaseException:
        await response.aclose()
        raise
    response.stream = AsyncBody(stream, head, rest)
    return b"".join(head) if size < PROBLEM_BYTES_MAX else None


def decoded(raw: bytes, headers: httpx.Headers) -> bytes:
    """Undo the content coding of a small body; nothing is returned for what does not decode, or grows too large."""
    pieces = [raw[at : at + DECODED_AT_ONCE] for at in range(0, len(raw), DECODED_AT_ONCE)]
    whole = httpx.Response(200, headers=headers, stream=Body(httpx.ByteStream(b""), pieces))
    text = bytearray()
    try:
        for chunk in whole.iter_bytes():
            text += chunk
            if len(text) > PROBLEM_BYTES_MAX:
                return b""
    except httpx.DecodingError:
        return b""
    return bytes(text)
