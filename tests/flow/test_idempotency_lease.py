"""A claim holds for as long as its handler runs, and whoever loses one is told."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.exchanges import ask
from tests.flow.guards import AGAIN, CREATED, Desk, Gated, Line, desk, die, until

from holdfast.core.errors import LeaseLost
from holdfast.idempotency import IdempotencyMiddleware, keys
from holdfast.idempotency.claims import Held
from holdfast.idempotency.errors import StoreUnavailable
from holdfast.idempotency.idem import Idem
from holdfast.idempotency.machine import ForceRelease
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import Completed, Conflict, InFlight, Replay, State
from holdfast.testing import ManualClock
from holdfast.testing.store_contract import LocalStore

SHORT = RouteRule(lease=timedelta(seconds=3), on_lapse="rerun")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def renewed(it: Desk, held: Held, clock: ManualClock) -> None:
    """Wait until a claim is good for nearly all of its lease again, and the round is over."""
    opened = it.guard._opened
    assert opened is not None
    claims = opened.claims
    await until(lambda: held.due - clock.monotonic() > held.lease_s * 0.9)
    await until(lambda: claims._next > clock.monotonic() and not claims.used)


async def rounds(it: Desk, held: Held, clock: ManualClock, seconds: float) -> None:
    """Let time pass as renewals go."""
    for _ in range(int(seconds / (held.lease_s / 3)) + 1):
        await clock.advance(timedelta(seconds=held.lease_s / 3))
        await renewed(it, held, clock)


async def overtaken(it: Desk) -> None:
    """Let an operator take the claim away."""
    async with it.guard.database.write() as tx:
        assert await keys.force(
            tx, it.ticket().key_id, ForceRelease(), actor="me", reason="why not", now=it.guard.clock.now()
        )


async def test_a_handler_of_any_length_keeps_its_claim(store: LocalStore, clock: ManualClock) -> None:
    """HA-37."""
    async with desk(store, clock) as it:
        held = await it.held()
        await rounds(it, held, clock, 60)
        assert isinstance(await it.ask(), InFlight)
        await rounds(it, held, clock, 30)
        assert not held.lost
        assert await it.guard.settle(held, CREATED)
        assert isinstance(await it.ask(), Replay)
        assert it.kinds() == []


async def test_claims_of_every_lease_are_renewed(store: LocalStore, clock: ManualClock) -> None:
    hour = RouteRule(lease=timedelta(hours=1))
    async with desk(store, clock) as it:
        long = await it.held("long", rule=hour)
        first = await it.held("first")
        short = await it.held("short", rule=SHORT)
        await rounds(it, short, clock, 31)
        assert [held.lost for held in (long, first, short)] == [False] * 3
        assert isinstance(await it.ask("first"), InFlight)
        await it.guard.settle(short, CREATED)
        await it.guard.settle(first, CREATED)
        await rounds(it, long, clock, 7200)
        assert not long.lost


async def test_one_statement_renews_all(store: LocalStore, clock: ManualClock) -> None:
    async with store.opened(clock=clock) as database:
        line = Line(database)
        it = Desk(line)
        held = [await it.held(f"key {n} of the crowd") for n in range(20)]
        line.calls.clear()
        await clock.advance(timedelta(seconds=10))
        await renewed(it, held[-1], clock)
        await until(lambda: line.calls.count("write") == 2)
        assert line.calls == ["write", "write"], "one for the claims, one for the secret's use"
        await it.guard.stop(timedelta(0))


async def test_a_claim_taken_away_is_lost_with_the_next_renewal(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        told: list[str] = []
        held.on_lost(lambda: told.append("first"))
        held.on_lost(lambda: told.append("second"))
        waiting = asyncio.ensure_future(held.wait_lost())
        await overtaken(it)
        await clock.advance(timedelta(seconds=10))
        await until(lambda: held.lost)
        await waiting
        assert told == ["first", "second"]
        held.on_lost(lambda: told.append("late"))
        await held.wait_lost()
        assert told[-1] == "late"
        assert it.kinds() == ["lease_lost"]


async def test_who_stops_waiting_for_a_loss_is_forgotten(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        waiting = asyncio.ensure_future(held.wait_lost())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert held._heard == []


async def test_a_claim_that_cannot_be_renewed_in_time_is_lost(store: LocalStore, clock: ManualClock) -> None:
    async with store.opened(clock=clock) as database:
        line = Line(database)
        it = Desk(line)
        held = await it.held(rule=SHORT)
        line.cut = True
        while clock.monotonic() < 2.9:
            await clock.advance(timedelta(seconds=0.1))
        assert not held.lost
        await clock.advance(timedelta(seconds=0.2))
        await until(lambda: held.lost)
        assert it.kinds() == ["breaker", "lease_lost"]
        line.resume()
        assert await it.guard.settle(held, CREATED), "nobody took it meanwhile, so the fence still holds"
        await it.guard.stop(timedelta(0))


async def test_a_ledger_that_hangs_does_not_hide_the_end_of_a_lease(store: LocalStore, clock: ManualClock) -> None:
    rule = RouteRule(lease=timedelta(seconds=1))
    async with store.opened(clock=clock) as database:
        line = Line(database)
        it = Desk(line)
        held = await it.held(rule=rule)
        line.hang()
        while clock.monotonic() < 1.4:
            await clock.advance(timedelta(seconds=0.1))
        assert held.lost
        line.resume()
        await it.guard.stop(timedelta(0))


async def test_a_blocked_loop_finds_its_claim_again_if_nobody_took_it(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held(rule=SHORT)
        clock.advance(timedelta(seconds=10))  # three leases, in which nothing ran
        await renewed(it, held, clock)
        assert not held.lost
        assert isinstance(await it.ask(rule=SHORT), InFlight)


async def test_a_lapsed_claim_runs_again_and_the_stale_one_changes_nothing(
    ledger: str, tmp_path: Path, clock: ManualClock
) -> None:
    """HA-38, with HA-31's other machine: its claim is good until its lease ends."""
    here, there = LocalStore(ledger, tmp_path / "here"), LocalStore(ledger, tmp_path / "there")
    async with desk(here, clock) as it, desk(there, clock) as away:
        stale = await away.held(rule=SHORT)
        stop_renewing(away)
        assert isinstance(await it.ask(rule=SHORT), InFlight)
        clock.advance(timedelta(seconds=3))
        newer = await it.held(rule=SHORT)
        assert (newer.attempt, newer.record_id) == (2, stale.record_id)
        assert it.kinds() == ["reclaimed"]
        assert not await away.guard.release(stale)
        stale.ended = False
        assert not await away.guard.settle(stale, CREATED)
        assert (await it.record()).fence == newer.fence
        assert await it.guard.settle(newer, Completed(200, [], b"newer"))
        assert (await away.ask(rule=SHORT)).record.outcome == Completed(200, [], b"newer")


def stop_renewing(it: Desk) -> None:
    """Let a guard forget its claims, as a process does that is cut off."""
    opened = it.guard._opened
    assert opened is not None
    opened.claims._held.clear()


async def test_a_dead_process_of_this_machine_holds_nothing(ledger: str, tmp_path: Path, clock: ManualClock) -> None:
    """HA-31: the retry runs at once."""
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock) as it, desk(store, clock) as dead:
        first = await dead.held(rule=AGAIN)
        assert isinstance(await it.ask(rule=AGAIN), InFlight)
        die(dead)
        second = await it.held(rule=AGAIN)
        assert (second.attempt, second.derived_key("x")) == (2, first.derived_key("x"))


async def test_a_dead_process_leaves_what_it_did_unknown(ledger: str, tmp_path: Path, clock: ManualClock) -> None:
    """HA-32, `ambiguous`."""
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock) as it, desk(store, clock) as dead:
        await dead.held()
        die(dead)
        assert await it.ask() == Conflict("unknown")
        assert await it.ask() == Conflict("unknown")
        assert (await it.record()).state is State.UNKNOWN


async def test_the_next_claim_in_this_process_overtakes_a_lost_one(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        first = await it.held()
        await overtaken(it)
        second = await it.held()
        assert first.lost
        assert not second.lost
        assert it.guard.holds(it.ticket())
        assert not await it.guard.settle(first, CREATED)
        assert it.guard.holds(it.ticket())


# --- what handlers say ---


async def test_what_is_irreversible_is_noted_before_it_happens(store: LocalStore, clock: ManualClock) -> None:
    """HA-52."""
    async with desk(store, clock) as it:
        held = await it.held()
        await Idem(it.guard, held).mark_irreversible()
        assert held.irreversible
        assert (await it.record()).irreversible
        await Idem(it.guard, held).mark_irreversible()
        assert await it.guard.release(held)
        assert await it.ask() == Conflict("unknown")
        assert it.kinds() == ["marked_unknown"]


async def test_who_has_lost_the_claim_must_not_start(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        await overtaken(it)
        with pytest.raises(LeaseLost):
            await Idem(it.guard, held).mark_irreversible()
        with pytest.raises(LeaseLost):
            await Idem(it.guard, held).mark_irreversible()
        with pytest.raises(LeaseLost):
            await Idem(it.guard, held).set_result(200, [], b"")
        assert it.kinds() == ["lease_lost"]


async def test_what_cannot_be_noted_must_not_start(store: LocalStore, clock: ManualClock) -> None:
    async with store.opened(clock=clock) as database:
        line = Line(database)
        it = Desk(line)
        held = await it.held()
        line.cut = True
        with pytest.raises(StoreUnavailable):
            await Idem(it.guard, held).mark_irreversible()
        with pytest.raises(StoreUnavailable):
            await Idem(it.guard, held).set_result(200, [], b"")
        assert not held.irreversible
        line.resume()
        assert await it.guard.settle(held, CREATED)
        await it.guard.stop(timedelta(0))


async def test_a_declared_result_is_the_outcome(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        idem = Idem(it.guard, held)
        await idem.set_result(201, [(b"X-Kept", b"1"), (b"Date", b"today")], b"declared")
        assert idem.settled
        assert await it.guard.settle(held, CREATED), "what comes later changes nothing"
        assert (await it.ask()).record.outcome == Completed(201, [(b"x-kept", b"1")], b"declared")


async def test_a_claim_outlives_a_handlers_long_transaction(ledger: str, tmp_path: Path, clock: ManualClock) -> None:
    """The renewal finds the row locked, and that is no loss."""
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock) as it:
        held, other = await it.held(rule=SHORT), await it.held("another key", rule=SHORT)
        if it.guard.database.dialect == "postgres":  # elsewhere the renewal waits its turn
            async with it.guard.database.write() as tx:
                assert await it.guard.set_result(held, CREATED, tx=tx)
                await clock.advance(timedelta(seconds=1))
                await renewed(it, other, clock)
                assert not held.lost
        else:
            assert await it.guard.settle(held, CREATED)
        assert isinstance(await it.ask(rule=SHORT), Replay)


def test_words_of_a_handler_are_kept_for_the_end(clock: ManualClock) -> None:
    it = Desk(":memory:", allow_memory=True)
    idem: Any = Idem(it.guard, it.guard.unprotected(it.ticket()))
    idem.no_store()
    idem.ttl(timedelta(minutes=1))
    assert (idem.discarded, idem.retention, idem.attempt, idem.fence) == (True, timedelta(minutes=1), 1, 0)
    assert (idem.mode, idem.lost, idem.handle, idem.tx) == ("separate", False, None, None)
    assert len(idem.derived_key("charge")) == 64
    assert idem.execution_id.startswith("idem_")


# --- through the middleware ---


async def test_a_handler_of_three_leases_runs_once(store: LocalStore, clock: ManualClock) -> None:
    """HA-37."""
    app = Gated()
    async with desk(store, clock) as it:
        middleware = IdempotencyMiddleware(app, it.guard, rule=SHORT)
        first = asyncio.ensure_future(ask(middleware, "a-key-of-three-leases"))
        await until(lambda: app.runs)
        held = it.guard.holding(ticket_of(it))
        assert held is not None
        await rounds(it, held, clock, 6)
        duplicate = await ask(middleware, "a-key-of-three-leases")
        assert (duplicate.status, duplicate.code) == (409, "in_flight")
        await rounds(it, held, clock, 3)
        app.free.set()
        assert (await first).status == 201
        retry = await ask(middleware, "a-key-of-three-leases")
        assert retry.replayed
        assert app.runs == 1


def ticket_of(it: Desk) -> Any:
    """The ticket of the only claim there is."""
    assert it.guard._opened is not None
    (held,) = it.guard._opened.claims._held.values()
    return held.ticket
