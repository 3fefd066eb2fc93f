"""What tests of the lifecycle ledger are made of: plans, contexts, and short ways to record."""

from __future__ import annotations

from typing import Any

from tests.unit import lifecycle_documents as made

from holdfast.lifecycle import ledger, machine, wire
from holdfast.lifecycle.documents import (
    CallbackRequest,
    CallbackResponse,
    LifecycleReceipt,
    NegotiatedPlan,
    ReceiptContext,
    ReceiptKey,
)
from holdfast.store.database import Database

NOW = 1_800_000_000_000_000
LEASE = 10_000_000
REGISTRY = machine.Registry.builtin()
DELIVERED = CallbackResponse(schema_version="lifeloop.v0.2", status="delivered")


def plan(**changes: Any) -> NegotiatedPlan:
    request = wire.decode_value(made.request(**changes), CallbackRequest)
    return machine.negotiate(machine.route(request, REGISTRY), now_epoch_s=0)


def context(**changes: Any) -> ReceiptContext:
    return ReceiptContext(**{"client_id": "ccd", "receipt_id": "rcp-1", "at_epoch_s": 1_800_000_000, **changes})


def draft(
    key: str | None = None, *, run: str | None = None, response: CallbackResponse | None = DELIVERED, **changes: Any
) -> ledger.Draft:
    ids: dict[str, Any] = {} if run is None else {"harness_run_id": run}
    asked = {} if key is None else {"idempotency_key": key}
    return ledger.Draft(plan(**asked, **ids), response, context(**ids, **changes), dispatched=True)


def receipt(**changes: Any) -> LifecycleReceipt:
    return wire.decode_value(made.receipt(**changes), LifecycleReceipt)


def key_of(receipt: LifecycleReceipt) -> ReceiptKey | None:
    key = receipt.idempotency_key
    return None if key is None else ReceiptKey(receipt.client_id, receipt.adapter_id, key)


async def emit(database: Database, offered: ledger.Draft, *, mode: Any = "strict", now: int = NOW) -> Any:
    async with database.write() as tx:
        return await ledger.record_one(tx, ledger.Emit(offered, mode), now=now)


async def put(database: Database, offered: LifecycleReceipt, *, mode: Any = "strict", now: int = NOW) -> Any:
    async with database.write() as tx:
        return await ledger.put(tx, key_of(offered), offered, mode=mode, now=now)


async def claim(database: Database, asked: ledger.Draft, *, now: int = NOW, mode: Any = "semantic", **more: Any) -> Any:
    lease = ledger.Lease("me", now + LEASE)
    async with database.write() as tx:
        return await ledger.claim(tx, asked.negotiated, asked.context, lease, mode=mode, now=now, **more)


async def settle(database: Database, going: Any, answered: ledger.Draft, *, now: int = NOW) -> Any:
    async with database.write() as tx:
        return await ledger.settle(tx, going.intent, going.fence, answered, now=now)


async def peek(database: Database, run: str) -> int:
    async with database.read() as tx:
        return await ledger.peek_sequence(tx, run)


async def verified(database: Database, **options: Any) -> Any:
    async with database.read() as tx:
        return await ledger.verify(tx, **options)
