"""An order that charges a card once, through a service that may hear of it more than once.

    python examples/charge_once.py orders.db order-17 478

Kill it whenever you like and start it again with the same order. The step `charge` sends its own key as
`Idempotency-Key` with every attempt, in every life of the process, and the service, which is guarded, answers a
repeated request from its record. Both have ledgers of their own, so each knows what it did, whatever the other forgot.

`Till` stands for somebody else's service; it is called in process here, and would be called over a network.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import holdfast
from holdfast.idempotency import (
    Idempotency,
    IdempotencyConfig,
    IdempotencyMiddleware,
    current,
    idempotent,
    shared_principal,
)
from holdfast.idempotency.client import AsyncIdempotentTransport

SECRET = b"thirty-two bytes or more, kept in a safe place"


class Till:
    """The payment service: its charges are files, named by a key that a second run of the handler has again."""

    charges = Path("charges")

    def __init__(self) -> None:
        config = IdempotencyConfig(principal=shared_principal("shop"), secrets=[SECRET])
        self.guard = Idempotency("till.db", config)
        self.app = IdempotencyMiddleware(
            Starlette(routes=[Route("/charges", self.charge, methods=["POST"])]), self.guard
        )

    @staticmethod
    @idempotent(required=True, on_lapse="rerun")
    async def charge(request: Request) -> JSONResponse:
        """Take money."""
        order = await request.json()
        keyed = current()
        assert keyed is not None
        Till.charges.mkdir(exist_ok=True)
        receipt = Till.charges / keyed.derived_key("card")
        receipt.write_text(f"{order['id']} {order['cents']}\n")
        return JSONResponse({"receipt": receipt.name[:8]}, 201)


def key_of_the_step(request: httpx.Request) -> str:
    """The same key for every attempt of a step, and for every life of its execution."""
    return holdfast.current_step().idempotency_key.hex()


@holdfast.step(effect=holdfast.exactly_once("money", on_ambiguous=holdfast.rerun_with_key()))
async def charge(order: str, cents: int) -> str:
    """Have a card charged."""
    till = Till()
    transport = AsyncIdempotentTransport(httpx.ASGITransport(till.app), key_source=key_of_the_step)
    async with till.guard, httpx.AsyncClient(transport=transport, base_url="http://till") as client:
        response = await client.post("/charges", json={"id": order, "cents": cents})
        response.raise_for_status()
        return str(response.json()["receipt"])


@holdfast.durable(kind="examples.order")
async def place(order: str, cents: int) -> str:
    """Place an order."""
    return f"{order} is paid, receipt {await charge(order, cents)}"


async def main(ledger: str, order: str, cents: str) -> None:
    """Place an order, or go on with it."""
    async with holdfast.open(ledger) as hf:
        print(await hf.run(place, order, int(cents), id=order))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
