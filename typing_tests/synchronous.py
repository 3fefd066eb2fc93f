"""What a checker infers of the synchronous face. Checked, never run."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

import holdfast
import holdfast.sync


@holdfast.step(effect=holdfast.idempotent())
def price(item: str) -> int:
    """A plain step."""
    return len(item)


def pair() -> tuple[int, int]:
    """A function without parameters."""
    return price("milk"), price("bread")


@holdfast.durable(kind="shopping")
def shop(items: list[str]) -> str:
    """A plain durable function, in which durable calls give values."""
    assert_type(price("milk"), int)
    assert_type(holdfast.sync.now(), datetime)
    assert_type(holdfast.sync.random(), float)
    assert_type(holdfast.sync.uuid(), UUID)
    assert_type(holdfast.sync.patched("insurance"), bool)
    assert_type(holdfast.sync.gather(pair, pair), list[tuple[int, int]])
    assert_type(holdfast.sync.first(pair, pair), tuple[int, tuple[int, int]])
    holdfast.sync.gather(price)  # type: ignore[arg-type]  # functions without parameters
    with holdfast.sync.branch("fetch"):
        assert_type(holdfast.sync.current(), holdfast.sync.Context | None)
    if not items:
        holdfast.sync.continue_as_new(["milk"])
    return "done"


@holdfast.durable(kind="async_shopping")
async def async_shop() -> float:
    """An asynchronous durable function: a synchronous program may run it, too."""
    return 1.0


def a_ledger_is_used_without_await() -> None:
    """The same types, not wrapped in coroutines."""
    with holdfast.sync.open("shop.db", durable=holdfast.DurableConfig(), recover=True) as hf:
        assert_type(hf, holdfast.sync.Holdfast)
        assert_type(hf.run(shop.bind(["milk"])), str)
        assert_type(hf.run(shop, ["milk"], id="order-1"), str)
        assert_type(hf.run(async_shop.bind()), float)
        handle = hf.start(shop.bind(["milk"]))
        assert_type(handle, holdfast.sync.Handle[str])
        assert_type(handle.result(timedelta(seconds=1)), str)
        assert_type(handle.info(), holdfast.Execution)
        assert_type(hf.handle("order-1"), holdfast.sync.Handle[Any])
        assert_type(hf.get("order-1"), holdfast.Execution | None)
        assert_type(hf.list(), holdfast.Page[holdfast.Execution])
        assert_type(hf.history("order-1"), list[holdfast.Entry])
        assert_type(hf.timeline("order-1"), list[holdfast.Event])
        assert_type(hf.diff("order-1", 1, 2), list[holdfast.Difference])
        assert_type(hf.audit(), list[holdfast.AuditRecord])
        assert_type(hf.verify(), holdfast.VerifyReport)
        assert_type(hf.cancel("order-1"), holdfast.CancelOutcome)
        assert_type(hf.pause("order-1"), holdfast.CancelOutcome)
        assert_type(hf.resume("order-1"), holdfast.sync.Handle[Any])
        assert_type(hf.recover(), holdfast.RecoverReport)
        hf.decide("order-1", "3", holdfast.not_happened(), by="ann")
        hf.run(pair)  # type: ignore[arg-type]  # it is not durable


def a_block_is_an_execution() -> None:
    """With the same context, without `await`."""
    tool = holdfast.StepDescriptor("tool", holdfast.idempotent())
    with holdfast.sync.open(":memory:") as hf, hf.execution("session-1", kind="session") as ctx:
        assert_type(ctx, holdfast.sync.Context)
        assert_type(ctx.step(tool, lambda handle: handle.attempt), int)
        assert_type(ctx.step_recorded(tool, lambda handle: handle.name), holdfast.StepRecord[str])
        with ctx.parallel() as p:
            assert_type(p.step(tool, lambda handle: handle.attempt).result(), int)
        assert_type(ctx.now(), datetime)
        ctx.set_output("done")
