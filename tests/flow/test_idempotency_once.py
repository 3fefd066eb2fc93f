"""`once`: a function runs once per key, and says the same again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from tests.flow.guards import SECRET, Desk, Line, config, desk, until

import holdfast
from holdfast.core.errors import ConfigError
from holdfast.idempotency import Once, Principal, current, keys
from holdfast.idempotency.errors import (
    AlreadyExecuted,
    HandlerTimeout,
    IdentityUnproven,
    KeyInFlight,
    KeyInvalid,
    KeyReused,
    OutcomeUnknown,
    QuotaExceeded,
    StoreUnavailable,
)  # fmt: skip
from holdfast.idempotency.guard import Idempotency
from holdfast.idempotency.machine import ForceRelease
from holdfast.idempotency.rules import RouteRule
from holdfast.testing import ManualClock
from holdfast.testing.store_contract import LocalStore

KEY = "c0ffee00-0000-4000-8000-000000000001"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def it(store: LocalStore, clock: ManualClock) -> AsyncIterator[Desk]:
    async with desk(store, clock) as opened:
        yield opened


class Op:
    """An operation that counts its runs."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.runs = 0
        self.attempts: list[int] = []
        self.free = asyncio.Event()
        self.free.set()

    async def __call__(self, idem: Any) -> Any:
        self.runs += 1
        self.attempts.append(idem.attempt)
        assert current() is idem
        await self.free.wait()
        if isinstance(self.result, BaseException):
            raise self.result
        return b"run %d" % self.runs if self.result is None else self.result


async def call(it: Desk, op: Any, key: str = KEY, payload: bytes = b"5", **more: Any) -> Once:
    return await it.guard.once(key, payload, op, **{"principal": "user-1", "name": "orders.charge"} | more)


def decisions(it: Desk) -> list[tuple[str, str | None]]:
    """What was decided, and with which code."""
    return [(event.kind, event.code) for event in it.events if event.latency_us is not None]


async def test_it_runs_once_and_says_the_same_again(it: Desk) -> None:
    op = Op()
    assert await call(it, op) == Once(b"run 1", replayed=False, attempt=1)
    assert await call(it, op) == Once(b"run 1", replayed=True, attempt=1)
    assert op.runs == 1
    assert current() is None
    assert decisions(it) == [("proceed", None), ("replay", None)]
    event = it.events[0]
    assert (event.method, event.route, event.attempt, event.status) == ("CALL", "orders.charge", 1, None)


async def test_another_payload_or_name_is_another_call(it: Desk) -> None:
    op = Op()
    await call(it, op)
    with pytest.raises(KeyReused):
        await call(it, op, payload=b"6")
    with pytest.raises(KeyReused):
        await call(it, op, name="orders.refund")
    assert (await call(it, op, principal=Principal("user-1", "acme"))).value == b"run 2"
    assert decisions(it)[1] == ("reused", "key_reused")


async def test_a_call_under_way_is_refused(it: Desk) -> None:
    op = Op()
    op.free.clear()
    first = asyncio.ensure_future(call(it, op))
    await until(lambda: op.runs)
    with pytest.raises(KeyInFlight) as refused:
        await call(it, op)
    assert 1 <= (refused.value.retry_after or 0) <= 30
    op.free.set()
    assert (await first).value == b"run 1"


async def test_a_call_may_wait_for_the_first(it: Desk) -> None:
    rule = RouteRule(on_in_flight="wait")
    op = Op()
    op.free.clear()
    first = asyncio.ensure_future(call(it, op, rule=rule))
    await until(lambda: op.runs)
    second = asyncio.ensure_future(call(it, op, rule=rule))
    await until(lambda: it.guard.events.waiting)
    op.free.set()
    async with asyncio.timeout(20):
        assert [(await each).replayed for each in (first, second)] == [False, True]


async def test_what_raises_runs_again(it: Desk) -> None:
    op = Op(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await call(it, op)
    op.result = None
    assert await call(it, op) == Once(b"run 2", replayed=False, attempt=2)


async def test_what_raises_may_be_unknown(it: Desk) -> None:
    op, rule = Op(ValueError("no")), RouteRule(on_5xx="ambiguous")
    with pytest.raises(ValueError, match="no"):
        await call(it, op, rule=rule)
    with pytest.raises(OutcomeUnknown) as refused:
        await call(it, op, rule=rule)
    assert isinstance(refused.value, holdfast.OutcomeUnknown)
    assert op.runs == 1
    assert decisions(it) == [("proceed", None), ("unknown", "outcome_unknown")]


async def test_what_raises_may_be_kept(it: Desk) -> None:
    op, rule = Op(ValueError("no")), RouteRule(on_5xx="freeze")
    with pytest.raises(ValueError, match="no"):
        await call(it, op, rule=rule)
    with pytest.raises(AlreadyExecuted) as refused:
        await call(it, op, rule=rule)
    assert refused.value.code == "idempotency.handler_failed"
    assert decisions(it)[-1] == ("executed", "handler_failed")


async def test_what_is_irreversible_never_runs_again(it: Desk) -> None:
    async def op(idem: Any) -> bytes:
        await idem.mark_irreversible()
        raise ValueError("after the effect")

    with pytest.raises(ValueError, match="after"):
        await call(it, op)
    with pytest.raises(OutcomeUnknown):
        await call(it, op)


async def test_a_call_that_is_cancelled_runs_again(it: Desk) -> None:
    op = Op()
    op.free.clear()
    task = asyncio.ensure_future(call(it, op))
    await until(lambda: op.runs)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    op.free.set()
    assert (await call(it, op)).attempt == 2


async def test_a_call_that_takes_too_long_is_cancelled(it: Desk, clock: ManualClock) -> None:
    op, rule = Op(), RouteRule(handler_timeout=timedelta(seconds=5))
    op.free.clear()
    task = asyncio.ensure_future(call(it, op, rule=rule))
    await until(lambda: op.runs)
    await clock.advance(timedelta(seconds=5))
    with pytest.raises(HandlerTimeout):
        await task
    op.free.set()
    assert (await call(it, op, rule=rule)).attempt == 2


async def test_its_own_timeout_is_its_own(it: Desk) -> None:
    rule = RouteRule(handler_timeout=timedelta(seconds=5))
    with pytest.raises(TimeoutError):
        await call(it, Op(TimeoutError()), rule=rule)


async def test_what_it_says_counts(it: Desk, clock: ManualClock) -> None:
    async def forgetful(idem: Any) -> bytes:
        idem.no_store()
        return b"x"

    async def brief(idem: Any) -> bytes:
        idem.ttl(timedelta(seconds=60))
        return b"x"

    async def declared(idem: Any) -> bytes:
        await idem.set_result(200, [], b"declared")
        return b"returned"

    for attempt in (1, 2):
        assert await call(it, forgetful, "key of the forgetful") == Once(b"x", replayed=False, attempt=attempt)
    await call(it, brief, "key of the brief one")
    clock.advance(timedelta(seconds=60))
    assert not (await call(it, brief, "key of the brief one")).replayed
    assert (await call(it, declared, "key of the declared")).value == b"returned"
    assert (await call(it, declared, "key of the declared")).value == b"declared"
    assert "result_differs" in it.kinds()


async def test_what_is_too_large_is_not_kept(it: Desk) -> None:
    op, rule = Op(b"x" * 11), RouteRule(response_bytes_max=10)
    assert (await call(it, op, rule=rule)).value == b"x" * 11
    with pytest.raises(AlreadyExecuted) as refused:
        await call(it, op, rule=rule)
    assert refused.value.code == "idempotency.executed"


async def test_an_operation_returns_bytes(it: Desk) -> None:
    with pytest.raises(TypeError):
        await call(it, Op("text"))
    assert (await call(it, Op())).attempt == 2


async def test_large_payloads_are_compared_too(it: Desk) -> None:
    op, large = Op(), b"x" * 300_000
    await call(it, op, payload=large)
    assert (await call(it, op, payload=large)).replayed
    with pytest.raises(KeyReused):
        await call(it, op, payload=large + b"y")


async def taken(it: Desk) -> None:
    """Let an operator take the claim away."""
    async with it.guard.database.write() as tx:
        page = await keys.list(tx)
        now = it.guard.clock.now()
        assert await keys.force(tx, page.items[0].key_id, ForceRelease(), actor="me", reason="why not", now=now)


async def test_a_call_that_lost_its_claim_is_answered_from_the_record(it: Desk) -> None:
    """HX-75, for functions."""
    slow, quick = Op(b"slow"), Op(b"quick")
    slow.free.clear()
    first = asyncio.ensure_future(call(it, slow))
    await until(lambda: slow.runs)
    await taken(it)
    assert (await call(it, quick)).value == b"quick"
    slow.free.set()
    assert await first == Once(b"quick", replayed=True, attempt=2)


@pytest.mark.parametrize("again", [True, False])
async def test_without_an_answer_there_it_is_refused(it: Desk, again: bool) -> None:
    slow, other = Op(b"slow"), Op(b"other")
    slow.free.clear()
    other.free.clear()
    first = asyncio.ensure_future(call(it, slow))
    await until(lambda: slow.runs)
    await taken(it)
    second = asyncio.ensure_future(call(it, other)) if again else None
    if again:
        await until(lambda: other.runs)
    slow.free.set()
    with pytest.raises(KeyInFlight if again else OutcomeUnknown):
        await first
    other.free.set()
    if second is not None:
        assert (await second).value == b"other"


async def test_a_lost_claim_may_cancel_the_operation(it: Desk, clock: ManualClock) -> None:
    """HX-79: `on_lost="cancel"`."""
    rule = RouteRule(on_lost="cancel")
    op = Op()
    op.free.clear()
    first = asyncio.ensure_future(call(it, op, rule=rule))
    await until(lambda: op.runs)
    await taken(it)
    await clock.advance(timedelta(seconds=10))
    with pytest.raises(OutcomeUnknown):
        await first
    assert it.kinds().count("lease_lost") == 1


@pytest.mark.parametrize("key", ["", " leading", "x" * 256, "ключ", "tab\t"])
async def test_what_is_no_key_is_refused(it: Desk, key: str) -> None:
    with pytest.raises(KeyInvalid):
        await call(it, Op(), key)


async def test_what_makes_no_sense_is_refused(it: Desk) -> None:
    with pytest.raises(IdentityUnproven):
        await call(it, Op(), principal="")
    with pytest.raises(ConfigError):
        await call(it, Op(), name="")
    with pytest.raises(ConfigError) as refused:
        await call(it, Op(), rule=RouteRule(mode="transaction"))
    assert refused.value.code == "config.mode_conflict"


async def test_there_is_no_outbox_outside_transactions(it: Desk) -> None:
    async def op(idem: Any) -> bytes:
        await idem.emit("topic", b"x")
        return b""

    with pytest.raises(ConfigError) as refused:
        await call(it, op)
    assert refused.value.code == "config.mode_conflict"


async def test_what_cannot_be_sent_cannot_be_declared(it: Desk) -> None:
    async def op(idem: Any) -> bytes:
        await idem.set_result(200, [(b"bad\r\nname", b"")], b"")
        return b""

    async def brief(idem: Any) -> bytes:
        idem.ttl(timedelta(0))
        return b""

    for each in (op, brief):
        with pytest.raises(ConfigError):
            await call(it, each)


async def test_too_many_calls_are_refused(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, in_flight_max=1) as it:
        await it.held()
        with pytest.raises(QuotaExceeded) as refused:
            await call(it, Op())
        assert refused.value.retry_after == 1
        assert decisions(it) == [("refused", "quota_exceeded")]


async def test_observed_calls_all_run(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, observe=True) as it:
        op = Op()
        assert [(await call(it, op)).value for _ in range(2)] == [b"run 1", b"run 2"]
        assert [kind for kind, _ in decisions(it)] == ["proceed", "observed"]


async def test_without_the_ledger_nothing_runs_unless_a_rule_says_so(store: LocalStore, clock: ManualClock) -> None:
    async with store.opened(clock=clock) as database:
        line = Line(database)
        it, op = Desk(line, breaker_failures=1000), Op()
        await it.guard.start()
        line.cut = True
        with pytest.raises(StoreUnavailable):
            await call(it, op)
        assert op.runs == 0
        open_rule = RouteRule(on_store_error="open")
        assert await call(it, op, rule=open_rule) == Once(b"run 1", replayed=False, attempt=1)
        assert decisions(it) == [("refused", "store_unavailable"), ("unprotected", "store_unavailable")]
        line.resume()
        await it.guard.stop(timedelta(0))


async def test_a_plain_function_in_a_thread_finds_its_call(it: Desk) -> None:
    async def op(idem: Any) -> bytes:
        return await asyncio.to_thread(lambda: str(current() is idem).encode())

    assert (await call(it, op)).value == b"True"


def test_a_call_is_known_by_the_vectors_of_its_parts() -> None:
    guard = Idempotency(":memory:", config(allow_memory=True))
    ticket = guard.ticket(
        principal=Principal("user-1", "acme"), key="order-17", rule=RouteRule(), method="POST", route="/pay",
        fingerprint=bytes.fromhex("9f4e3e6dbbf7c367120b01a57bbd35723b4dfa84e007ed41698c9f15ec648686"),
    )  # fmt: skip
    assert guard.config.secrets[0] == SECRET
    assert ticket.key_id.hex() == "d10a46632f2b1076d0086ef096f097a6"
    assert ticket.scope_ids[0].hex() == "0c70cef1933ccab97ea0ec6e60c60485"
    held = guard.unprotected(ticket)
    assert held.record_id.hex() == "15a084b23f5265167fa8f534314c1594"
    assert held.derived_key("charge") == "a6334b95e2a788820be8adfd98c6baf2e2088157a297bfd2c184be426eff916e"
