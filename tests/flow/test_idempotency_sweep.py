"""A sweep marks what has lapsed, reconciles what is unknown, asks about executions, and deletes what has expired."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.exchanges import Counting, ask
from tests.flow.guards import AGAIN, CREATED, Desk, Line, desk, die, until

from holdfast.core import points, trace
from holdfast.idempotency import IdempotencyMiddleware, keys
from holdfast.idempotency.errors import StoreUnavailable
from holdfast.idempotency.machine import DecideRerun
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.sweep import Sweep
from holdfast.idempotency.values import (
    Absent,
    Completed,
    Conflict,
    InFlight,
    Replay,
    Rerun,
    Running,
    State,
    Undecided,
)  # fmt: skip
from holdfast.store.owners import Alive, probe
from holdfast.testing import Crashed, ManualClock
from holdfast.testing.store_contract import LocalStore

DAY = timedelta(days=1)
LEASE = timedelta(seconds=30)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def forget(it: Desk) -> None:
    """Let a guard forget its claims, as a process does that is cut off."""
    assert it.guard._opened is not None
    it.guard._opened.claims._held.clear()


async def test_what_nobody_retries_is_marked_unknown(ledger: str, tmp_path: Path, clock: ManualClock) -> None:
    """HA-35: a dead owner of this machine, and no lease has ended."""
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock) as it, desk(store, clock) as dead:
        await dead.held("ambiguous")
        await dead.held("rerun", rule=AGAIN)
        await it.held("ours")
        die(dead)
        assert await it.guard.sweep() == Sweep(marked_unknown=1)
        assert (await it.record("ambiguous")).state is State.UNKNOWN
        assert await it.ask("ambiguous") == Conflict("unknown")
        assert (await it.held("rerun", rule=AGAIN)).attempt == 2, "its owner is known to be dead"
        assert isinstance(await it.ask("ours"), InFlight)
        assert await it.guard.sweep() == Sweep()
        notice = next(event for event in it.events if event.kind == "marked_unknown")
        assert (notice.code, notice.key_ref) == ("lapsed", it.ticket("ambiguous").key_ref)
        assert trace.snapshot()["holdfast_idempotency_unknown"][()] >= 1
        assert list((tmp_path / "owners").iterdir()) == [Path(it.guard.database.owner.lock_path or "")]


async def test_a_sweep_that_dies_leaves_the_dead_to_the_next(ledger: str, tmp_path: Path, clock: ManualClock) -> None:
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock) as it, desk(store, clock) as dead:
        for n in range(3):
            await dead.held(f"key {n} of three")
        await it.guard.ready()
        die(dead)
        passed: list[int] = []
        armed = points.arm("sweep.marked", hit=2, action=lambda: passed.append(1 // 0))
        with pytest.raises(ZeroDivisionError):
            await it.guard.sweep()
        points.disarm(armed)
        assert await it.guard.sweep() == Sweep(marked_unknown=1)


async def test_the_claim_of_another_machine_is_marked_when_its_lease_ends(
    ledger: str, tmp_path: Path, clock: ManualClock
) -> None:
    here, there = LocalStore(ledger, tmp_path / "here"), LocalStore(ledger, tmp_path / "there")
    async with desk(here, clock) as it, desk(there, clock) as away:
        await away.held()
        forget(away)
        assert await it.guard.sweep() == Sweep()
        clock.advance(LEASE)
        assert await it.guard.sweep() == Sweep(marked_unknown=1)


async def test_a_claim_of_ours_that_is_at_work_is_left_alone(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        clock.advance(LEASE * 2)  # the loop was blocked, and the renewal comes late
        assert await it.guard.sweep() == Sweep()
        assert not held.lost


async def test_what_is_irreversible_is_unknown_whatever_the_rule_says(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held(rule=AGAIN)
        assert await it.guard.mark_irreversible(held)
        forget(it)
        clock.advance(LEASE)
        assert await it.guard.sweep() == Sweep(marked_unknown=1)
        assert await it.ask(rule=AGAIN) == Conflict("unknown")


async def test_a_guard_sweeps_by_itself(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, sweep_every=timedelta(seconds=60)) as it:
        await it.held()
        forget(it)
        await clock.advance(timedelta(seconds=61))
        await until(lambda: "marked_unknown" in it.kinds())


async def test_what_is_marked_wakes_who_waits(store: LocalStore, clock: ManualClock) -> None:
    rule = RouteRule(on_in_flight="wait")
    async with desk(store, clock) as it:
        held = await it.held(rule=rule)
        found = await it.ask(rule=rule)
        assert isinstance(found, InFlight)
        waiting = asyncio.ensure_future(it.guard.wait(it.ticket(rule=rule), found))
        await until(lambda: it.guard.events.waiting == 1)
        await it.guard.mark_unknown(held, "raised")
        async with asyncio.timeout(20):
            assert await waiting == Conflict("unknown")


# --- reconciling ---


class Reconciler:
    """Somebody who may know."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Any = Undecided()

    async def __call__(self, record: Any) -> Any:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_reconciler_gives_an_unknown_record_its_outcome(store: LocalStore, clock: ManualClock) -> None:
    """HA-65."""
    who = Reconciler()
    async with desk(store, clock, reconcile=who) as it:
        await it.guard.mark_unknown(await it.held(), "raised")
        assert await it.guard.sweep() == Sweep()
        who.answer = ValueError("the provider is down")
        assert await it.guard.sweep() == Sweep()
        assert await it.ask() == Conflict("unknown")
        who.answer = Completed(201, [(b"Location", b"/orders/1"), (b"Set-Cookie", b"a=b")], b"it was made")
        assert await it.guard.sweep() == Sweep(reconciled=1)
        found = await it.ask()
        assert isinstance(found, Replay)
        assert found.record.outcome == Completed(201, [(b"location", b"/orders/1")], b"it was made")
        assert who.asked == 3
        assert it.kinds() == ["marked_unknown", "forced"]
        async with it.guard.database.read() as tx:
            assert [row.actor for row in await keys.trail(tx, found.record.record_id)] == ["reconciler"]


async def test_a_reconciler_may_let_it_run_again(store: LocalStore, clock: ManualClock) -> None:
    who = Reconciler()
    who.answer = Rerun()
    async with desk(store, clock, reconcile=who) as it:
        await it.guard.mark_unknown(await it.held(), "timeout")
        assert await it.guard.sweep() == Sweep(reconciled=1)
        assert (await it.held()).attempt == 2


async def test_a_reconciler_that_takes_too_long_is_asked_again(store: LocalStore, clock: ManualClock) -> None:
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def slow(record: Any) -> Any:
        return await never

    async with desk(store, clock, reconcile=slow) as it:
        await it.guard.mark_unknown(await it.held(), "raised")
        sweeping = asyncio.ensure_future(it.guard.sweep())
        async with asyncio.timeout(20):
            while not sweeping.done():
                await asyncio.to_thread(lambda: None)
                if waits(clock):
                    await clock.advance(timedelta(seconds=30))
        assert sweeping.result() == Sweep()


def waits(clock: ManualClock) -> bool:
    """Whether somebody waits for the reconciler: its timer is the one of 30 seconds."""
    return any(due - clock._elapsed == 30_000_000 and timer.pending for due, _, timer in clock._due)


async def test_a_word_about_one_attempt_is_not_for_the_next(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        await it.guard.mark_unknown(await it.held(), "raised")

        async def decided_meanwhile(record: Any) -> Any:
            async with it.guard.database.write() as tx:
                await keys.force(tx, record.key_id, DecideRerun(), actor="me", reason="i know", now=clock.now())
            await it.guard.mark_unknown(await it.held(), "raised")
            return CREATED

        object.__setattr__(it.guard.config, "reconcile", decided_meanwhile)
        assert await it.guard.sweep() == Sweep()
        assert (await it.record()).attempt == 2
        assert (await it.record()).state is State.UNKNOWN


# --- executions ---


async def test_executions_nobody_retries_are_asked_about(store: LocalStore, clock: ManualClock) -> None:
    answer: Any = Running()
    asked: list[str] = []

    async def attach(id: str) -> Any:
        asked.append(id)
        return answer

    rule = RouteRule(mode="execution", attach=attach)
    async with desk(store, clock) as it:
        held = await it.held(rule=rule)
        forget(it)
        clock.advance(LEASE)
        assert await it.guard.sweep() == Sweep()
        answer = Absent()
        assert await it.guard.sweep() == Sweep()
        assert (await it.record()).state is State.RESERVED
        answer = CREATED
        assert await it.guard.sweep() == Sweep(reconciled=1)
        assert asked == [f"idem_{held.record_id.hex()}"] * 3
        found = await it.ask(rule=rule)
        assert isinstance(found, Replay)
        assert found.record.outcome == CREATED


async def test_the_configured_rule_asks_about_executions_of_other_processes(
    ledger: str, tmp_path: Path, clock: ManualClock
) -> None:
    async def attach(id: str) -> Any:
        return CREATED

    rule = RouteRule(mode="execution", attach=attach, path="/orders")
    store = LocalStore(ledger, tmp_path / "owners")
    async with (
        desk(store, clock, rule=None, routes=(rule,)) as it,
        desk(store, clock) as dead,
        desk(store, clock) as no,
    ):
        await dead.held(rule=rule)
        die(dead)
        assert await no.guard.sweep() == Sweep(), "it knows no rule to ask by"
        assert await it.guard.sweep() == Sweep(reconciled=1)


@pytest.mark.parametrize("by", ["a retry", "a sweep"])
async def test_an_execution_is_asked_about_while_nobody_has_the_dead_owners_lock(
    by: str, ledger: str, tmp_path: Path, clock: ManualClock
) -> None:
    """Whoever asks the engine finds that the owner is dead, as it is."""
    alive: list[bool] = []

    async def attach(id: str) -> Any:
        async with it.guard.database.read() as tx:
            row = next(each for each in await tx.all("owners.list") if each.owner_id == owner)
        found = probe(row)
        alive.append(isinstance(found, Alive) or row.lease_until > clock.now())
        return CREATED

    rule = RouteRule(mode="execution", attach=attach, path="/orders")
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock, rule=None, routes=(rule,)) as it, desk(store, clock) as dead:
        await dead.held(rule=rule)
        owner = dead.guard.database.owner.id
        die(dead)
        if by == "a retry":
            assert isinstance(await it.ask(rule=rule), Replay)
        else:
            assert await it.guard.sweep() == Sweep(reconciled=1)
    assert alive == [False]


# --- pruning ---


async def test_what_has_expired_is_deleted_in_batches(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, prune_batch=3) as it:
        for n in range(8):
            await it.guard.settle(await it.held(f"key {n} of eight"), CREATED)
        await it.guard.mark_unknown(await it.held("unknown"), "raised")
        clock.advance(DAY)
        await it.held("live")
        armed = points.arm("pruned", hit=1000, action=lambda: None)
        assert await it.guard.sweep() == Sweep(pruned=8)
        points.disarm(armed)
        assert armed.passed == 3
        assert await it.count() == 2
        assert (await it.held("key 1 of eight")).attempt == 1


async def test_pointers_go_with_their_record(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, secrets=[b"n" * 32, b"o" * 32]) as it:
        await it.guard.settle(await it.held(), CREATED)
        clock.advance(DAY)
        assert (await it.guard.sweep()).pruned == 1
        async with it.guard.database.read() as tx:
            for key_id in it.ticket().key_ids:
                assert await keys.get(tx, key_id) is None


async def test_a_sweep_without_a_ledger_says_so(store: LocalStore, clock: ManualClock) -> None:
    async with store.opened(clock=clock) as database:
        line = Line(database)
        it = Desk(line)
        await it.guard.ready()
        line.cut = True
        with pytest.raises(StoreUnavailable):
            await it.guard.sweep()
        line.resume()
        await it.guard.stop(timedelta(0))


async def test_a_crash_while_pruning_loses_nothing_that_is_kept(
    ledger: str, tmp_path: Path, clock: ManualClock
) -> None:
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock) as it, desk(store, clock) as dead:
        await it.guard.settle(await it.held("old"), CREATED)
        clock.advance(DAY)
        await it.guard.settle(await it.held("new"), CREATED)
        await dead.guard.ready()
        armed = points.arm("pruned", action="raise")
        await dead.held("held by the dead")
        with pytest.raises(Crashed):
            await dead.guard.sweep()
        points.disarm(armed)
        stopping = asyncio.ensure_future(dead.guard.stop())
        async with asyncio.timeout(20):
            await stopping  # without waiting for what can never end
    async with desk(store, clock) as it:
        assert isinstance(await it.ask("new"), Replay)
        assert (await it.held("old")).attempt == 1


# --- through the middleware ---


async def test_what_a_reconciler_found_answers_the_next_retry(store: LocalStore, clock: ManualClock) -> None:
    """HA-65."""
    who, app = Reconciler(), Counting(status=500)
    rule = RouteRule(on_5xx="ambiguous")
    async with desk(store, clock, reconcile=who) as it:
        middleware = IdempotencyMiddleware(app, it.guard, rule=rule)
        assert (await ask(middleware, "a-key-in-doubt-for-long")).status == 500
        await it.guard.sweep()
        refused = await ask(middleware, "a-key-in-doubt-for-long")
        assert (refused.status, refused.code) == (409, "outcome_unknown")
        assert refused.header("retry-after") is None
        who.answer = Completed(201, [(b"content-type", b"text/plain")], b"it was made")
        await it.guard.sweep()
        retry = await ask(middleware, "a-key-in-doubt-for-long")
        assert (retry.status, retry.body, retry.replayed, app.runs) == (201, b"it was made", True, 1)
