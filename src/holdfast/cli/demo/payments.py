"""The demo's payment service: an ordinary FastAPI application that takes money once per `Idempotency-Key`.

Its handler only writes a row. That a retry, a second delivery or a kill makes no second row is the middleware's
doing: claim, payment, outbox event and answer are one transaction of the service's own database.

The answer takes its time on the way back, so that there is a moment at which the money is taken and nobody has
heard of it: the moment worth being killed in.

Invariants:
    - A payment, its event and the answer to its key are in the database together, or not at all.
    - Whoever asks for an order's payment is answered after every payment that was asked for before has ended.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from holdfast.cli.demo.book import Book
from holdfast.cli.demo.orders import LARGE_CENTS
from holdfast.cli.demo.wire import HOST, die_with_parent
from holdfast.core.clock import SystemClock
from holdfast.idempotency import (
    Idem,
    Idempotency,
    IdempotencyConfig,
    IdempotencyEvent,
    IdempotencyMiddleware,
    RouteRule,
    current,
    shared_principal,
)  # fmt: skip
from holdfast.integrations.apsw import ConnectionUnit

__all__ = ["APPLIED", "CONFIRM_LARGE_SECONDS", "application"]

APPLIED = "payment.applied"
"""Topic of the outbox event that goes with every payment."""

CONFIRM_LARGE_SECONDS = 8.0
"""How long a large payment stays unconfirmed after it was applied: time enough to be killed in."""

_CONFIRM_SECONDS = 0.25
_PATIENCE = timedelta(seconds=10)
_DELAY = "demo.delay"
_SECRET = b"the demo's own, worth nothing to anybody"
_TABLE = """
CREATE TABLE IF NOT EXISTS payments (
    number INTEGER PRIMARY KEY AUTOINCREMENT, customer_order TEXT NOT NULL, amount_cents INTEGER NOT NULL
)
"""
_INSERT = "INSERT INTO payments (customer_order, amount_cents) VALUES (?, ?) RETURNING number"
_SELECT = "SELECT number, amount_cents FROM payments WHERE customer_order = ?"

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


class Payment(BaseModel):
    """What the service is asked for."""

    order: str
    amount_cents: int


class Receipt(BaseModel):
    """Its word that it has taken the money."""

    id: str
    order: str
    amount_cents: int


def application(path: Path, book: Book) -> App:
    """Make the service.

    Args:
        path: Its database, which is its ledger too.
        book: Where what the middleware decides is noted.
    """

    def note(event: IdempotencyEvent) -> None:
        book.append(event=event.kind)

    unit = ConnectionUnit(path)
    config = IdempotencyConfig(
        principal=shared_principal("the shop"),
        secrets=[_SECRET],
        rule=RouteRule(mode="transaction", key="required"),
        on_event=note,
    )
    guard = Idempotency(path, config, unit=unit)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await guard.start()
        await _execute(unit, _TABLE)
        yield
        await guard.stop()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/payments", status_code=201)
    async def pay(request: Request, payment: Payment, idem: Annotated[Idem, Depends(current)]) -> Receipt:
        # Nothing looks at the order itself: two keys for one order are two payments, and the demo has failed.
        connection: Any = idem.handle
        [(number,)] = connection.execute(_INSERT, (payment.order, payment.amount_cents)).fetchall()
        receipt = Receipt(id=f"pay_{number:06d}", order=payment.order, amount_cents=payment.amount_cents)
        await idem.emit(APPLIED, msgspec.json.encode(receipt.model_dump()))
        request.scope[_DELAY] = CONFIRM_LARGE_SECONDS if payment.amount_cents >= LARGE_CENTS else _CONFIRM_SECONDS
        return receipt

    @app.get("/v1/payments/{order}")
    async def find(order: str) -> Response:
        rows = await _execute(unit, _SELECT, order)
        if not rows:
            return JSONResponse(None, 404)
        [(number, amount_cents)] = rows
        return JSONResponse({"id": f"pay_{number:06d}", "order": order, "amount_cents": amount_cents})

    app.add_middleware(IdempotencyMiddleware, guard=guard)
    return _SlowWayBack(app)


async def _execute(unit: ConnectionUnit, statement: str, *values: object) -> list[Any]:
    """Run a statement in a transaction of its own."""
    async with unit.begin(isolation=None, lock_timeout=_PATIENCE) as work:
        await work.savepoint()
        connection: Any = work.handle
        rows: list[Any] = connection.execute(statement, values).fetchall()
        await work.commit()
    return rows


class _SlowWayBack:
    """Delays answers, and lets questions wait for the payments before them."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._clock = SystemClock()
        self._under_way: set[asyncio.Future[None]] = set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            await self._pay(scope, receive, send)
        else:
            if self._under_way:
                await asyncio.wait(set(self._under_way))
            await self._app(scope, receive, send)

    async def _pay(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.add(ended)

        def end() -> None:
            self._under_way.discard(ended)
            if not ended.done():
                ended.set_result(None)

        async def later(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                end()
                await self._delay(receive, scope.get(_DELAY, 0.0))
            await send(message)

        try:
            await self._app(scope, receive, later)
        finally:
            end()

    async def _delay(self, receive: Any, seconds: float) -> None:
        """Wait that long, or until the client has gone away."""
        try:
            async with asyncio.timeout(seconds):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            pass


async def serve(path: Path, book: Book, port: int) -> None:
    """Serve on a loopback port (0: the kernel's choice), and say which on standard output."""
    listener = socket.create_server((HOST, port))
    server = uvicorn.Server(uvicorn.Config(application(path, book), log_level="warning", access_log=False))
    die_with_parent()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Book(Path(sys.argv[2])), int(sys.argv[3])))
