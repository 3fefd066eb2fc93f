"""A ledger that is down, hangs or loses its answers: nothing runs twice, waits for ever, or is given up early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.flow.exchanges import Counting, ask
from tests.flow.guards import CREATED, SECRET, Desk, Line, Wired, over, turns, until

from holdfast.core import trace
from holdfast.idempotency import IdempotencyMiddleware
from holdfast.idempotency.claims import Held
from holdfast.idempotency.errors import StoreUnavailable
from holdfast.idempotency.opened import Opened
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import Completed, InFlight, Replay, State, Tombstone
from holdfast.store.sqlite import SqliteDatabase
from holdfast.testing import ManualClock
from holdfast.testing.postgres import PostgresServer
from holdfast.testing.store_contract import LocalStore

SECOND = timedelta(seconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def it(store: LocalStore, clock: ManualClock) -> AsyncIterator[Wired]:
    async with store.opened(clock=clock) as database:
        wired = Wired(Line(database), breaker_failures=1000)
        await wired.guard.start()
        wired.line.calls.clear()
        yield wired
        wired.line.resume()
        await wired.guard.stop(timedelta(0))


def opened(it: Desk) -> Opened:
    assert it.guard._opened is not None
    return it.guard._opened


# --- claims ---


async def test_no_ledger_no_run(it: Wired) -> None:
    """HA-40."""
    it.line.cut = True
    with pytest.raises(StoreUnavailable) as refused:
        await it.ask()
    assert refused.value.retry_after == 1
    assert refused.value.code == "idempotency.store_unavailable"


async def test_a_claim_whose_answer_was_lost_is_asked_again(it: Wired) -> None:
    """HA-33: the repeat finds the same claim, and nobody waits for its lease."""
    it.line.deaf = 1
    held = await it.held()
    assert held.attempt == 1
    assert sum(call in ("keys.claim", "keys.make") for call in it.line.calls) == 2
    assert it.line.deaf == 0
    assert await it.guard.settle(held, CREATED)
    assert await it.count() == 1


async def test_a_claim_that_failed_is_taken_back(it: Wired, clock: ManualClock) -> None:
    """Both acknowledgements are lost: the key is not held."""
    it.line.deaf = 2
    with pytest.raises(StoreUnavailable):
        await it.ask()
    assert await it.count() == 1
    await over(it, clock, lambda: not it.guard.events.pending())
    assert await it.count() == 0
    assert (await it.held()).attempt == 1


async def test_a_claim_that_never_arrived_is_looked_for_a_few_times(it: Wired, clock: ManualClock) -> None:
    it.line.cut = True
    with pytest.raises(StoreUnavailable):
        await it.ask()
    it.line.resume()
    assert it.guard.events.pending() == 1
    await over(it, clock, lambda: not it.guard.events.pending())
    assert clock.monotonic() < 30


async def test_a_ledger_that_hangs_is_not_waited_for(it: Wired, clock: ManualClock) -> None:
    it.line.hang()
    asking = asyncio.ensure_future(it.ask())
    await turns()
    await clock.advance(2 * SECOND)
    with pytest.raises(StoreUnavailable):
        await asking
    it.line.resume()
    await over(it, clock, lambda: not it.guard.events.pending())


async def test_a_file_that_another_process_keeps_is_not_waited_for_longer(tmp_path: Path, clock: ManualClock) -> None:
    """HX-82: with several secrets a claim is a block, which waits for its turn to write."""
    path = str(tmp_path / "ledger.db")
    async with LocalStore(path, tmp_path / "owners").opened(clock=clock) as database:
        it = Desk(database, secrets=[SECRET, b"another secret of thirty-two byte"])
        await it.guard.start()
        other = apsw.Connection(path)
        other.execute("BEGIN IMMEDIATE")
        asking = asyncio.ensure_future(it.ask())
        assert isinstance(database, SqliteDatabase)
        await until(lambda: database.turn.taken)
        await clock.advance(2 * SECOND)
        with pytest.raises(StoreUnavailable):
            await asking
        other.execute("ROLLBACK")
        other.close()
        assert await it.count() == 0
        assert (await it.held()).attempt == 1
        await it.guard.stop(timedelta(0))


async def test_a_request_that_is_cancelled_while_it_claims_holds_nothing(it: Wired, clock: ManualClock) -> None:
    asking = asyncio.ensure_future(it.ask())
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    if not asking.cancelled():  # the ledger was quicker
        await it.guard.release(asking.result())
    assert isinstance(await it.ask(), Held)


async def test_who_cancels_a_claim_waits_until_it_is_taken_back(it: Wired, clock: ManualClock) -> None:
    it.line.hang()
    asking = asyncio.ensure_future(it.ask())
    await turns()
    asking.cancel()
    await turns()
    assert not asking.done()
    asking.cancel()
    it.line.resume()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert isinstance(await it.ask(), Held)


async def test_a_task_that_is_cancelled_by_others_too_stays_cancelled(it: Wired, clock: ManualClock) -> None:
    it.line.hang()

    async def bounded() -> str:
        try:
            async with asyncio.timeout(0):
                await it.ask()
        except TimeoutError:
            return "theirs"
        return "ours"

    asking = asyncio.ensure_future(bounded())
    await turns()
    it.line.resume()
    assert await asking == "theirs"


# --- the breaker ---


async def test_a_ledger_that_is_down_is_left_alone(store: LocalStore, clock: ManualClock) -> None:
    """HX-82: refusals without a call, and one probe after."""
    async with store.opened(clock=clock) as database:
        it = Wired(Line(database), breaker_failures=3)
        await it.guard.start()
        it.line.cut = True
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await it.ask()
        opened(it).unwritten._writes.clear()
        it.line.calls.clear()
        with pytest.raises(StoreUnavailable) as refused:
            await it.ask()
        assert refused.value.retry_after == 5
        assert it.line.calls == []
        await clock.advance(5 * SECOND)
        with pytest.raises(StoreUnavailable):
            await it.ask()
        asked = len(it.line.calls)
        assert asked > 0, "the probe"
        with pytest.raises(StoreUnavailable):
            await it.ask()
        assert len(it.line.calls) == asked
        await clock.advance(5 * SECOND)
        it.line.resume()
        await it.held()
        await it.held("another key")
        assert it.kinds() == ["breaker"]
        await it.guard.stop(timedelta(0))


async def test_one_request_probes_at_a_time(store: LocalStore, clock: ManualClock) -> None:
    async with store.opened(clock=clock) as database:
        it = Wired(Line(database), breaker_failures=1)
        await it.guard.start()
        it.line.cut = True
        with pytest.raises(StoreUnavailable):
            await it.ask()
        it.line.resume()
        it.line.hang()
        await clock.advance(5 * SECOND)
        probing = asyncio.ensure_future(it.ask())
        await turns()
        with pytest.raises(StoreUnavailable):
            await it.ask("another key")
        it.line.resume()
        assert isinstance(await probing, Held)
        await it.held("another key")
        await it.guard.stop(timedelta(0))


# --- outcomes ---


async def test_an_outcome_waits_for_the_ledger_to_come_back(it: Wired, clock: ManualClock) -> None:
    """HX-84."""
    held = await it.held()
    it.line.cut = True
    assert await it.guard.settle(held, CREATED), "the client has its answer"
    assert it.guard.events.pending() == 1
    await over(it, clock, lambda: clock.monotonic() > 20)
    it.line.resume()
    await over(it, clock, lambda: not it.guard.events.pending())
    assert isinstance(await it.ask(), Replay)
    assert it.kinds() == ["completion_retry"]
    assert held.ended
    assert held.won


async def test_meanwhile_duplicates_are_refused(it: Wired, clock: ManualClock) -> None:
    held = await it.held()
    it.line.cut = True
    await it.guard.settle(held, CREATED)
    it.line.resume()
    assert isinstance(await it.ask(), InFlight)
    await over(it, clock, lambda: not it.guard.events.pending())
    assert isinstance(await it.ask(), Replay)


async def test_an_outcome_that_cannot_be_written_is_given_up(it: Wired, clock: ManualClock) -> None:
    held = await it.held()
    it.line.cut = True
    await it.guard.settle(held, CREATED)
    await over(it, clock, lambda: not it.guard.events.pending(), 1)
    assert 59 < clock.monotonic() < 75
    assert it.kinds() == ["completion_retry", "completion_lost"]
    assert held.ended
    assert not held.won
    it.line.resume()
    assert (await it.record()).state is State.RESERVED


async def test_a_late_outcome_may_be_refused(it: Wired, clock: ManualClock) -> None:
    rule = RouteRule(on_lapse="rerun")
    held = await it.held(rule=rule)
    it.line.cut = True
    await it.guard.settle(held, CREATED)
    clock.advance(31 * SECOND)
    it.line.resume()
    opened(it).claims._held.clear()
    second = await it.held(rule=rule)
    assert second.attempt == 2
    await over(it, clock, lambda: not it.guard.events.pending())
    assert "completion_lost" in it.kinds()
    assert await it.guard.settle(second, Completed(200, [], b"second"))


async def test_a_settle_whose_answer_was_lost_is_repeated(it: Wired, clock: ManualClock) -> None:
    held = await it.held()
    it.line.deaf = 1
    assert await it.guard.settle(held, CREATED)
    await over(it, clock, lambda: not it.guard.events.pending())
    assert (await it.ask()).record.outcome == CREATED
    assert it.kinds() == ["completion_retry"]


async def test_bodies_beyond_the_limit_shrink(store: LocalStore, clock: ManualClock) -> None:
    async with store.opened(clock=clock) as database:
        it = Wired(Line(database), pending_settle_bytes_max=10, breaker_failures=1000)
        small, large = await it.held("small"), await it.held("large")
        it.line.cut = True
        await it.guard.settle(small, Completed(200, [], b"12345"))
        await it.guard.settle(large, Completed(201, [(b"location", b"/here"), (b"x-other", b"1")], b"123456"))
        it.line.resume()
        await over(it, clock, lambda: not it.guard.events.pending())
        assert (await it.ask("small")).record.outcome == Completed(200, [], b"12345")
        kept = Tombstone(201, [(b"location", b"/here")], "oversize", body_bytes=6)
        assert (await it.ask("large")).record.outcome == kept
        assert it.kinds() == ["completion_retry", "completion_retry", "tombstoned"]
        await it.guard.stop(timedelta(0))


async def test_a_release_waits_for_the_ledger_too(it: Wired, clock: ManualClock) -> None:
    held, other = await it.held(), await it.held("another key")
    it.line.cut = True
    assert await it.guard.release(held)
    assert await it.guard.mark_unknown(other, "5xx")
    it.line.resume()
    await over(it, clock, lambda: not it.guard.events.pending())
    assert (await it.record()).state is State.RELEASED
    assert (await it.record("another key")).state is State.UNKNOWN
    assert it.kinds() == ["released", "marked_unknown"]


async def test_a_cancelled_settle_is_finished_first(it: Wired) -> None:
    """HX-49."""
    held = await it.held()
    it.line.hang()
    settling = asyncio.ensure_future(it.guard.settle(held, CREATED))
    await turns()
    for _ in range(3):  # as a scope does that cancels again and again
        settling.cancel()
        await turns(5)
    assert not settling.done()
    it.line.resume()
    with pytest.raises(asyncio.CancelledError):
        await settling
    assert (await it.ask()).record.outcome == CREATED


async def test_a_cancelled_release_is_finished_first(it: Wired) -> None:
    """HA-34."""
    held = await it.held()
    it.line.hang()
    releasing = asyncio.ensure_future(it.guard.release(held))
    await turns()
    releasing.cancel()
    await turns()
    it.line.resume()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    assert (await it.held()).attempt == 2


async def test_a_cancelled_settle_is_not_finished_for_ever(it: Wired, clock: ManualClock) -> None:
    held = await it.held()
    it.line.hang()
    settling = asyncio.ensure_future(it.guard.settle(held, CREATED))
    await turns()
    settling.cancel()
    await turns()
    await clock.advance(3 * SECOND)
    with pytest.raises(asyncio.CancelledError):
        await settling
    it.line.resume()
    await over(it, clock, lambda: not it.guard.events.pending())
    assert isinstance(await it.ask(), Replay)


async def test_one_that_cannot_be_written_holds_up_no_other(it: Wired, clock: ManualClock) -> None:
    first, second = await it.held("first"), await it.held("second")
    it.line.cut = True
    await it.guard.settle(first, CREATED)
    await it.guard.settle(second, CREATED)
    broken, whole = list(opened(it).unwritten._writes)
    broken.work = broken_for_good
    it.line.resume()
    await over(it, clock, lambda: not it.guard.events.pending())
    assert isinstance(await it.ask("second"), Replay)
    assert it.kinds() == ["completion_retry", "completion_retry", "completion_lost"]
    assert second.won
    assert not first.won
    assert whole.size == len(CREATED.body)


async def broken_for_good() -> bool:
    raise ValueError("no such thing")


async def test_a_guard_that_stops_writes_what_waits(it: Wired, clock: ManualClock) -> None:
    held = await it.held()
    it.line.cut = True
    await it.guard.settle(held, CREATED)
    it.line.resume()
    stopping = asyncio.ensure_future(it.guard.stop())
    await over(it, clock, stopping.done)
    assert isinstance(await it.ask(), Replay)


async def test_without_a_ledger_a_request_may_run_unprotected(it: Wired) -> None:
    it.line.cut = True
    held = it.guard.unprotected(it.ticket())
    assert (held.attempt, held.fence) == (1, 0)
    assert await it.guard.settle(held, CREATED)
    assert await it.guard.release(held)
    assert await it.guard.mark_unknown(held, "raised")
    assert await it.guard.set_result(held, CREATED)
    with pytest.raises(StoreUnavailable):
        await it.guard.mark_irreversible(held)
    assert it.guard.events.pending() == 0
    assert await it.guard.observe(it.ticket("another key")) is None


async def test_failures_are_counted(it: Wired) -> None:
    before = failures()
    it.line.cut = True
    with pytest.raises(StoreUnavailable):
        await it.ask()
    assert failures() == before + 1


def failures() -> float:
    return trace.snapshot()["holdfast_idempotency_store_failures_total"].get((), 0)


async def test_a_server_that_pauses_dies_and_comes_back() -> None:
    """HA-40 and HX-84 on a server of its own, in real time."""
    with PostgresServer() as server:
        settings = {"store_timeout": timedelta(seconds=0.5), "breaker_open": timedelta(seconds=0.2)}
        it = Desk(server.fresh_schema(), **settings)
        await it.guard.start()
        first, second = await it.held("first"), await it.held("second")
        server.pause()
        clock = it.guard.clock
        began = clock.monotonic()
        with pytest.raises(StoreUnavailable):
            await it.ask("third")
        assert await it.guard.settle(first, CREATED)
        assert clock.monotonic() - began < 5, "each call is bounded"
        server.resume()
        await until(lambda: not it.guard.events.pending())
        assert isinstance(await it.ask("first"), Replay)
        server.kill()
        assert await it.guard.settle(second, CREATED)
        with pytest.raises(StoreUnavailable):
            await it.ask("third")
        server.start()
        await until(lambda: not it.guard.events.pending())
        assert isinstance(await it.ask("second"), Replay)
        third = await it.held("third")
        assert third.attempt == 1
        assert await it.guard.release(third)
        assert "lease_lost" not in it.kinds()
        await it.guard.stop()


# --- through the middleware ---


async def test_requests_without_a_ledger(it: Wired) -> None:
    """HA-40."""
    app = Counting()
    closed = IdempotencyMiddleware(app, it.guard)
    open_ = IdempotencyMiddleware(app, it.guard, rule=RouteRule(on_store_error="open"))
    it.line.cut = True
    refused = await ask(closed, "a-key-without-a-ledger")
    assert (refused.status, refused.code, app.runs) == (503, "store_unavailable", 0)
    assert int(refused.header("retry-after") or 0) >= 1
    unprotected = await ask(open_, "a-key-without-a-ledger")
    assert (unprotected.status, app.runs) == (201, 1)
    assert unprotected.header("idempotency-unprotected") == "true"
    assert [event.kind for event in it.events if event.latency_us is not None] == ["refused", "unprotected"]


async def test_a_client_has_its_answer_though_the_ledger_is_gone(it: Wired, clock: ManualClock) -> None:
    """HX-84."""
    app = Counting()

    async def cutting(scope: Any, receive: Any, send: Any) -> None:
        it.line.cut = True
        await app(scope, receive, send)

    middleware = IdempotencyMiddleware(cutting, it.guard)
    assert (await ask(middleware, "a-key-that-is-not-settled")).status == 201
    it.line.resume()
    duplicate = await ask(middleware, "a-key-that-is-not-settled")
    assert (duplicate.status, duplicate.code) == (409, "in_flight")
    await over(it, clock, lambda: not it.guard.events.pending())
    retry = await ask(middleware, "a-key-that-is-not-settled")
    assert (retry.status, retry.replayed, app.runs) == (201, True, 1)
