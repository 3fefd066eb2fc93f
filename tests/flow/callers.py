"""Clients of both kinds as one, so that a test says once what both must do."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from holdfast.idempotency.client import AsyncIdempotentTransport, IdempotentTransport
from holdfast.testing import ManualClock

Kind = Literal["sync", "async"]
KINDS: tuple[Kind, ...] = ("sync", "async")


_tls = httpx.create_ssl_context()  # slow to make, and never used


def inner_of(kind: Kind, **options: Any) -> Any:
    """A transport of httpx's own."""
    return (httpx.HTTPTransport if kind == "sync" else httpx.AsyncHTTPTransport)(verify=_tls, **options)


class Patient(ManualClock):
    """A clock on which pauses are over at once, and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.naps: list[float] = []

    async def sleep(self, seconds: float, /) -> None:
        self._nap(seconds)

    def pause(self, seconds: float, /) -> None:
        self._nap(seconds)

    def _nap(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.advance(timedelta(seconds=seconds))


class Caller:
    """A client with an idempotent transport. Calls of a synchronous one are made in a thread."""

    def __init__(self, kind: Kind, url: str, *, client: dict[str, Any] | None = None, **settings: Any) -> None:
        self.kind = kind
        self.clock = settings.setdefault("clock", Patient())
        settings.setdefault("inner", inner_of(kind))
        settings.setdefault("rng", Random(7))  # noqa: S311 - jitter
        options = {"base_url": url, "timeout": 5.0, "trust_env": False, **(client or {})}
        self.client: Any
        if kind == "sync":
            self.client = httpx.Client(transport=IdempotentTransport(**settings), **options)
        else:
            self.client = httpx.AsyncClient(transport=AsyncIdempotentTransport(**settings), **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._do("close" if self.kind == "sync" else "aclose")

    async def request(self, method: str, target: str, **options: Any) -> httpx.Response:
        return await self._do("request", method, target, **options)

    async def post(self, target: str = "/orders", **options: Any) -> httpx.Response:
        return await self.request("POST", target, **options)

    def build(self, method: str = "POST", target: str = "/orders", **options: Any) -> httpx.Request:
        request: httpx.Request = self.client.build_request(method, target, **options)
        return request

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        return await self._do("send", request, **options)

    async def read(self, response: httpx.Response) -> bytes:
        """Read a streamed response to its end."""
        return await asyncio.to_thread(response.read) if self.kind == "sync" else await response.aread()

    async def close(self, response: httpx.Response) -> None:
        """Close a streamed response."""
        await (asyncio.to_thread(response.close) if self.kind == "sync" else response.aclose())

    async def _do(self, name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(self.client, name)
        if self.kind == "sync":
            return await asyncio.to_thread(method, *arguments, **options)
        return await method(*arguments, **options)
