"""A double of somebody else's payment service, which applies one payment per `Idempotency-Key`.

Invariants:
    - A payment is in the book before anybody is told of it.
    - A key seen before is answered with the payment made then, also after this service was killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from holdfast.cli.demo.book import Book
from holdfast.cli.demo.orders import LARGE_CENTS
from holdfast.cli.demo.wire import Reply, Request, serve
from holdfast.core.clock import SystemClock

__all__ = ["CONFIRM_LARGE_SECONDS", "Payments"]

CONFIRM_LARGE_SECONDS = 8.0
"""How long a large payment stays unconfirmed after it was applied: time enough to be killed in."""

_CONFIRM_SECONDS = 0.25


class Payments:
    """Applies payments, once per key, and confirms them."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._clock = SystemClock()
        self._by_key: dict[str, dict[str, Any]] = {}
        self._by_order: dict[str, dict[str, Any]] = {}
        for entry in book.entries:
            if entry["event"] == "applied":
                self._note(entry["key"], entry["payment"])

    def _note(self, key: str, payment: dict[str, Any]) -> None:
        self._by_key[key] = payment
        self._by_order[payment["order"]] = payment

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Serve one request."""
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["v1", "payments"]:
                await self._pay(request, reply)
            case "GET", ["v1", "payments", order]:
                await request.all_earlier_have_arrived()
                payment = self._by_order.get(order)
                reply.json(404 if payment is None else 200, payment)
            case _:
                reply.json(404, None)

    async def _pay(self, request: Request, reply: Reply) -> None:
        key, order, amount = request.headers["idempotency-key"], request.body["order"], request.body["amount_cents"]
        payment = self._by_key.get(key)
        if payment is not None and (payment["order"], payment["amount_cents"]) != (order, amount):
            reply.json(422, {"error": "that key was used for another payment"})
            return
        if payment is not None:
            self._book.append(event="repeated", key=key)
            reply.json(200, payment, {"idempotency-replayed": "true"})
            return
        payment = {"id": f"pay_{len(self._book.entries) + 1:06d}", "order": order, "amount_cents": amount}
        # Nothing looks at the order itself: two keys for one order are two payments, and the demo has failed.
        self._book.append(event="applied", key=key, payment=payment)
        self._note(key, payment)
        await self._confirm(amount, reply)
        reply.json(201, payment)

    async def _confirm(self, amount: int, reply: Reply) -> None:
        if amount >= LARGE_CENTS:
            await reply.abandoned(within=CONFIRM_LARGE_SECONDS)
        else:
            await self._clock.sleep(_CONFIRM_SECONDS)


if __name__ == "__main__":
    asyncio.run(serve(Payments(Book(Path(sys.argv[1]))), int(sys.argv[2])))
