"""What is measured: small applications, and calls of them without a socket.

The Starlette application parses 150 bytes of JSON and answers 201; the FastAPI application does the same with a
typed body and a typed answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from holdfast.core.errors import ConfigError
from holdfast.idempotency import (
    Idempotency,
    IdempotencyConfig,
    IdempotencyMiddleware,
    RouteRule,
    shared_principal,
)  # fmt: skip

__all__ = ["BODY", "App", "Caller", "fastapi_app", "guard_of", "starlette_app"]

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

BODY = json.dumps({"order": "turn-0001", "amount_cents": 4250, "currency": "EUR", "note": "x" * 75}).encode()
SECRET = b"measured, and never used elsewhere"

try:
    from fastapi import FastAPI
    from pydantic import BaseModel
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise ConfigError(f"measuring needs {error.name}", "pip install fastapi", code="config.missing_extra") from None


class Payment(BaseModel):
    """What the FastAPI application takes."""

    order: str
    amount_cents: int
    currency: str
    note: str


class Receipt(BaseModel):
    """What it answers."""

    id: str
    order: str
    amount_cents: int


async def _pay(request: Request) -> Response:
    payment = json.loads(await request.body())
    return JSONResponse({"id": "pay_1", "order": payment["order"], "amount_cents": payment["amount_cents"]}, 201)


async def _take(request: Request) -> Response:
    return Response(str(len(await request.body())))


async def _chunks(request: Request) -> Response:
    count = int(request.query_params["count"])

    async def parts() -> Any:
        for _ in range(count):
            yield b"sixteen bytes ok"

    return StreamingResponse(parts(), media_type="application/octet-stream")


def starlette_app() -> App:
    """The plain application."""
    return Starlette(
        routes=[
            Route("/pay", _pay, methods=["POST"]),
            Route("/take", _take, methods=["POST"]),
            Route("/chunks", _chunks, methods=["POST"]),
        ]
    )


def fastapi_app() -> App:
    """The typed application."""
    app = FastAPI()

    @app.post("/pay", status_code=201)
    async def pay(payment: Payment) -> Receipt:
        return Receipt(id="pay_1", order=payment.order, amount_cents=payment.amount_cents)

    return app


def guard_of(target: Any, **rule: Any) -> Idempotency:
    """A guard with the defaults, save that nobody waits for a quota."""
    config = IdempotencyConfig(
        principal=shared_principal("bench"),
        secrets=[SECRET],
        rule=RouteRule(**rule),
        allow_memory=True,
        in_flight_max=10_000,
    )
    return Idempotency(target, config)


class Caller:
    """Calls an application in this process, as a server would."""

    def __init__(self, app: App, guard: Idempotency | None = None) -> None:
        self._app = IdempotencyMiddleware(app, guard) if guard is not None else app
        self._numbers = itertools.count()
        self.prefix = "measured-key"

    async def first(self) -> None:
        """Make a request with a key of its own."""
        await self.call(key=f"{self.prefix}-{next(self._numbers):012d}")

    async def keyless(self) -> None:
        """Make a request without a key."""
        await self.call()

    async def again(self) -> None:
        """Make a request with a key that was used before."""
        await self.call(key=f"{self.prefix}-again-again")

    async def call(self, *, key: str | None = None, path: str = "/pay", query: bytes = b"", body: bytes = BODY) -> int:
        """Make a request; return how many bytes it was answered with.

        Raises:
            RuntimeError: It was not answered with 200 or 201.
        """
        headers = [
            (b"host", b"bench"), (b"user-agent", b"holdfast-bench"), (b"accept", b"*/*"),
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        ]  # fmt: skip
        if key is not None:
            headers.append((b"idempotency-key", key.encode()))
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query, "root_path": "",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {}, "extensions": {},
        }  # fmt: skip
        given = False
        status = size = 0

        async def receive() -> dict[str, Any]:
            nonlocal given
            if given:
                await asyncio.Event().wait()  # the client stays
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size += len(message.get("body", b""))

        await self._app(scope, receive, send)
        if status not in (200, 201):
            raise RuntimeError(f"{path} was answered with {status}")
        return size
