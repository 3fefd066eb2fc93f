"""A guard decides: who runs, who is answered from the record, who waits and who is refused."""

from __future__ import annotations

import asyncio
import gc
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakSet

import apsw
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.flow.exchanges import ask
from tests.flow.guards import AGAIN, CREATED, SECRET, Desk, Gated, Line, Wired, config, desk, over, turns, until

from holdfast.core import trace
from holdfast.core.errors import ConfigError, SchemaMismatch, WrongLoop, WrongProcess
from holdfast.idempotency import IdempotencyMiddleware, claiming, events, keys
from holdfast.idempotency.claims import Held
from holdfast.idempotency.errors import RecordUnreadable, StoreUnavailable
from holdfast.idempotency.guard import Idempotency
from holdfast.idempotency.machine import ForceRelease
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import (
    Absent,
    Completed,
    Conflict,
    InFlight,
    Proceed,
    Replay,
    Running,
    State,
    Tombstone,
)  # fmt: skip
from holdfast.integrations import aiosqlite
from holdfast.integrations.apsw import ConnectionUnit
from holdfast.store.database import Database
from holdfast.testing import ManualClock
from holdfast.testing.store_contract import LocalStore

WAIT = RouteRule(on_in_flight="wait", wait_max=timedelta(seconds=2))
DAY = timedelta(days=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


# --- what a request comes to ---


async def test_one_runs_and_the_next_is_answered_from_the_record(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        assert (held.attempt, held.lost, held.irreversible) == (1, False, False)
        assert await it.guard.settle(held, CREATED)
        found = await it.ask()
        assert isinstance(found, Replay)
        assert found.record.outcome == CREATED
        assert await it.count() == 1


async def test_a_duplicate_is_in_flight_and_another_request_is_refused(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        assert isinstance(await it.ask(), InFlight)
        assert await it.ask(body=b"6") == Conflict("reused")
        await it.guard.settle(held, CREATED)
        assert await it.ask(body=b"6") == Conflict("reused")


async def test_principals_share_no_key(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        first, second = await it.held(who="a"), await it.held(who="b")
        await it.guard.settle(first, CREATED)
        assert isinstance(await it.ask(who="a"), Replay)
        assert isinstance(await it.ask(who="b"), InFlight)
        assert first.ticket.scope_ref != second.ticket.scope_ref


async def test_a_strangers_key_takes_the_way_of_one_that_nobody_has(store: LocalStore, clock: ManualClock) -> None:
    """HX-29: the same statements."""
    async with store.opened(clock=clock) as database:
        it = Wired(Line(database))
        await it.guard.settle(await it.held("theirs", who="user-2"), CREATED)
        ways = []
        for key in ("theirs", "nobodys"):
            it.line.calls.clear()
            held = await it.held(key)
            ways.append((held.attempt, list(it.line.calls)))
        assert ways[0] == ways[1]
        await it.guard.stop(timedelta(0))


async def test_a_key_of_a_route_is_another_on_another_route(store: LocalStore, clock: ManualClock) -> None:
    rule = RouteRule(key_scope="route")
    async with desk(store, clock) as it:
        await it.held(rule=rule, route="/a")
        await it.held(rule=rule, route="/b")
        assert await it.count() == 2


async def test_a_released_key_runs_again_as_the_next_attempt(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        first = await it.held()
        assert await it.guard.release(first)
        second = await it.held()
        assert (second.attempt, second.record_id) == (2, first.record_id)
        assert second.fence > first.fence
        assert second.derived_key("charge") == first.derived_key("charge") != first.derived_key("mail")
        assert it.kinds() == ["released"]


async def test_an_unknown_outcome_is_never_run(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        assert await it.guard.mark_unknown(await it.held(), "raised")
        assert await it.ask() == Conflict("unknown")
        assert (await it.record()).reason == "raised"


async def test_after_the_retention_the_key_is_new(store: LocalStore, clock: ManualClock) -> None:
    """HA-39."""
    async with desk(store, clock) as it:
        await it.guard.settle(await it.held(), CREATED)
        clock.advance(DAY - timedelta(seconds=1))
        assert isinstance(await it.ask(), Replay)
        clock.advance(timedelta(seconds=1))
        assert (await it.held(body=b"6")).attempt == 1


async def test_an_outcome_is_kept_as_long_as_its_handler_says(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        await it.guard.settle(await it.held(), CREATED, ttl=timedelta(seconds=60))
        assert (await it.record()).expires_at == clock.now() + 60_000_000


async def test_a_tombstone_is_kept_for_its_own_time(store: LocalStore, clock: ManualClock) -> None:
    rule = RouteRule(tombstone_ttl=timedelta(hours=1))
    async with desk(store, clock) as it:
        await it.guard.settle(await it.held(rule=rule), Tombstone(200, [], "stream"))
        record = await it.record()
        assert record.expires_at == clock.now() + 3_600_000_000
        assert record.outcome == Tombstone(200, [], "stream")
        assert it.kinds() == ["tombstoned"]


async def test_a_lookup_writes_nothing(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        await it.guard.ready()
        assert await it.guard.lookup(it.ticket()) is None
        assert await it.count() == 0
        held = await it.held()
        assert isinstance(await it.guard.lookup(it.ticket()), InFlight)
        await it.guard.settle(held, CREATED)
        found = await it.guard.lookup(it.ticket())
        assert isinstance(found, Replay)
        assert found.record.outcome == CREATED


async def test_a_principal_has_so_many_claims_at_a_time(store: LocalStore, clock: ManualClock) -> None:
    """HA-15."""
    async with desk(store, clock, in_flight_max=3) as it:
        await it.guard.settle(await it.held("done"), CREATED)
        for key in ("k1", "k2", "k3"):
            await it.held(key)
        found = await it.ask("k4")
        assert found == Conflict("quota")
        assert 1 <= it.guard.retry_after(found, it.ticket("k4")) <= 30
        assert isinstance(await it.ask("done"), Replay)
        await it.held("k4", who="b")


async def test_a_record_says_what_its_rule_means_by_a_lapse(store: LocalStore, clock: ManualClock) -> None:
    cases = [
        ("PUT", RouteRule(), "rerun"), ("PUT", RouteRule(irreversible=True), "ambiguous"),
        ("POST", RouteRule(), "ambiguous"), ("POST", RouteRule(on_lapse="rerun"), "rerun"),
    ]  # fmt: skip
    async with desk(store, clock) as it:
        for number, (method, rule, on_lapse) in enumerate(cases):
            await it.held(f"order-{number}", method=method, rule=rule)
            assert (await it.record(f"order-{number}", method=method, rule=rule)).on_lapse == on_lapse


async def test_a_damaged_outcome_is_a_refusal(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, cipher=None) as it:
        await it.guard.settle(await it.held(), CREATED)
        async with it.guard.database.read() as tx:
            record = await keys.get(tx, it.ticket().key_id)
        assert record is not None
        assert record.sealed is not None
        opened = it.guard._opened
        assert opened is not None
        damaged = replace(record, sealed=replace(record.sealed, body=b"mad!"))
        with pytest.raises(RecordUnreadable):
            await opened.unsealed(damaged)
        assert await claiming.told(opened, Replay(damaged)) == Conflict("unreadable")
        newer = replace(record, sealed=replace(record.sealed, codec=99))
        assert await claiming.told(opened, Replay(newer)) == Conflict("newer")
        with pytest.raises(RecordUnreadable):
            await opened.unsealed(replace(record, sealed=None))


async def test_large_outcomes_come_back_whole(store: LocalStore, clock: ManualClock) -> None:
    """Sealed and opened off the loop."""
    large = Completed(200, [], bytes(range(256)) * 1024)
    async with desk(store, clock) as it:
        await it.guard.settle(await it.held(), large)
        assert (await it.ask()).record.outcome == large


async def test_what_is_redacted_is_not_kept(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, redact=lambda response: None) as it:
        await it.guard.settle(await it.held(), CREATED)
        outcome = (await it.ask()).record.outcome
        assert isinstance(outcome, Tombstone)
        assert outcome.reason == "redaction"
        assert it.events[-1].code == "redaction"


async def test_an_operator_takes_a_claim_from_a_running_handler(store: LocalStore, clock: ManualClock) -> None:
    """HA-64: without a retry its settle is refused and the record is no answer; with one, the retry's answer stands."""
    async with desk(store, clock) as it:
        held = await it.held()
        await force(it, ForceRelease())
        assert not await it.guard.settle(held, CREATED)
        assert held.lost
        assert (await it.record()).state is State.RELEASED
        second = await it.held()
        await it.guard.settle(second, Completed(200, [], b"second"))
        assert (await it.record()).outcome == Completed(200, [], b"second")
        assert not await it.guard.settle(held, CREATED), "asked again, it says the same"
        assert it.kinds() == ["lease_lost"]


async def force(it: Desk, action: Any) -> None:
    async with it.guard.database.write() as tx:
        assert await keys.force(
            tx, it.ticket().key_id, action, actor="me", reason="why not", now=it.guard.clock.now()
        )  # fmt: skip


# --- waiting ---


async def test_a_waiter_replays_as_soon_as_the_first_ends(store: LocalStore, clock: ManualClock) -> None:
    """HA-26."""
    async with desk(store, clock) as it:
        held = await it.held(rule=WAIT)
        waiting = [asyncio.ensure_future(wait(it)) for _ in range(3)]
        await until(lambda: it.guard.events.waiting == 3)
        await clock.advance(timedelta(seconds=0.5))
        await it.guard.settle(held, CREATED)
        async with asyncio.timeout(20):
            found = await asyncio.gather(*waiting)
        assert [each.record.outcome for each in found] == [CREATED] * 3
        assert it.guard.events.waiting == 0
        assert [event.code for event in it.events if event.kind == "waited"] == ["replay"] * 3


async def wait(it: Desk, gone: Any = None, rule: RouteRule = WAIT) -> Any:
    found = await it.ask(rule=rule)
    assert isinstance(found, InFlight)
    return await it.guard.wait(it.ticket(rule=rule), found, gone=gone)


async def test_a_waiter_asks_by_itself_for_what_another_process_settles(
    ledger: str, tmp_path: Path, clock: ManualClock
) -> None:
    store = LocalStore(ledger, tmp_path / "owners")
    async with desk(store, clock) as it, desk(store, clock) as away:
        held = await away.held(rule=WAIT)
        waiting = asyncio.ensure_future(wait(it))
        await until(lambda: it.guard.events.waiting == 1)
        await away.guard.settle(held, CREATED)
        assert not waiting.done()
        await clock.advance(timedelta(seconds=0.1))
        async with asyncio.timeout(20):
            assert (await waiting).record.outcome == CREATED


async def test_a_waiter_is_refused_when_its_time_is_over(store: LocalStore, clock: ManualClock) -> None:
    """HA-26: and `Retry-After` is at least 1."""
    async with store.opened(clock=clock) as database:
        it = Wired(Line(database))
        await it.held(rule=WAIT)
        waiting = asyncio.ensure_future(wait(it))
        await until(lambda: it.guard.events.waiting == 1)
        await over(it, clock, waiting.done, 0.05)
        found = waiting.result()
        assert isinstance(found, InFlight)
        assert it.guard.retry_after(found, it.ticket(rule=WAIT)) >= 1
        assert it.kinds() == ["waited"]
        await it.guard.stop(timedelta(0))


async def test_a_waiter_runs_itself_after_a_release(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held(rule=WAIT)
        waiting = asyncio.ensure_future(wait(it))
        await until(lambda: it.guard.events.waiting == 1)
        await it.guard.release(held)
        async with asyncio.timeout(20):
            found = await waiting
        assert isinstance(found, Held)
        assert found.attempt == 2


async def test_of_one_principal_only_so_many_wait(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock, waiters_max=1) as it:
        held = await it.held(rule=WAIT)
        waiting = asyncio.ensure_future(wait(it))
        await until(lambda: it.guard.events.waiting == 1)
        assert isinstance(await wait(it), InFlight)
        assert it.guard.events.waiting == 1
        await it.guard.settle(held, CREATED)
        async with asyncio.timeout(20):
            await waiting


async def test_a_wait_ends_when_the_client_leaves(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        await it.held(rule=WAIT)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = asyncio.ensure_future(wait(it, gone))
        await until(lambda: it.guard.events.waiting == 1)
        gone.set_result(None)
        async with asyncio.timeout(20):
            assert isinstance(await waiting, InFlight)


async def test_a_cancelled_waiter_leaves_nothing_behind(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        await it.held(rule=WAIT)
        waiting = asyncio.ensure_future(wait(it))
        await until(lambda: it.guard.events.waiting == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert it.guard.events.waiting == 0
        assert it.guard._waiters._count == {}


def test_a_duplicate_may_come_back_when_the_route_is_usually_done(clock: ManualClock) -> None:
    it = Desk(":memory:", allow_memory=True)
    now = it.guard.clock.now()
    found = InFlight(now + 30_000_000, now)
    assert it.guard.retry_after(found, it.ticket()) == 30
    for _ in range(100):
        it.guard.events.handled("/orders", 0.5)
    assert it.guard.retry_after(found, it.ticket()) == 1
    assert it.guard.events.p90_us("/elsewhere") is None


# --- executions ---


class Executions:
    """What `attach` is asked, and says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Any = Running()
        self.rule = RouteRule(mode="execution", attach=self)

    async def __call__(self, id: str) -> Any:
        self.asked.append(id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_lapsed_execution_is_asked_before_anything_else(store: LocalStore, clock: ManualClock) -> None:
    executions = Executions()
    async with desk(store, clock) as it:
        held = await lapsed_execution(it, clock, executions)
        id = f"idem_{held.record_id.hex()}"
        assert isinstance(await it.ask(rule=executions.rule), InFlight)
        executions.answer = ValueError("the engine is down")
        assert isinstance(await it.ask(rule=executions.rule), InFlight)
        assert executions.asked == [id, id]
        executions.answer = Completed(200, [(b"X-Kept", b" yes ")], b"ended")
        found = await it.ask(rule=executions.rule)
        assert found.record.outcome == Completed(200, [(b"x-kept", b"yes")], b"ended")
        assert isinstance(await it.ask(rule=executions.rule), Replay)
        assert len(executions.asked) == 3


async def lapsed_execution(it: Desk, clock: ManualClock, executions: Executions) -> Held:
    held = await it.held(rule=executions.rule)
    opened = it.guard._opened
    assert opened is not None
    opened.claims.leave(held)  # its process is gone, as far as renewals go
    clock.advance(timedelta(seconds=31))
    return held


async def test_an_execution_nobody_knows_is_started_again(store: LocalStore, clock: ManualClock) -> None:
    executions = Executions()
    async with desk(store, clock) as it:
        first = await lapsed_execution(it, clock, executions)
        executions.answer = Absent()
        second = await it.held(rule=executions.rule)
        assert (second.attempt, second.record_id) == (2, first.record_id)
        assert it.kinds() == ["reclaimed"]


async def test_an_attach_that_takes_too_long_counts_as_running(store: LocalStore, clock: ManualClock) -> None:
    executions = Executions()
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def attach(id: str) -> Any:
        executions.asked.append(id)
        return await never

    executions.rule = RouteRule(mode="execution", attach=attach)
    async with desk(store, clock) as it:
        await lapsed_execution(it, clock, executions)
        asking = asyncio.ensure_future(it.ask(rule=executions.rule))
        await until(lambda: executions.asked)
        await clock.advance(timedelta(seconds=2))
        async with asyncio.timeout(20):
            assert isinstance(await asking, InFlight)


# --- transactions of the caller's ---


async def test_a_claim_and_its_outcome_in_one_transaction(store: LocalStore, clock: ManualClock) -> None:
    rule = RouteRule(mode="transaction")
    async with store.opened(clock=clock) as database:
        guard = Idempotency(database, config())
        await guard.ready()
        it = Desk(database)
        ticket = it.ticket(rule=rule)
        async with database.write() as tx:
            found = await guard.claim_in(tx, ticket)
            assert isinstance(found, Proceed)
            held = Held(ticket, found)
            guard.enter(held)
            assert guard.holds(ticket)
            assert await guard.settle_in(tx, held, CREATED)
        guard.leave(held)
        assert not guard.holds(ticket)
        async with database.write() as tx:
            replay = await guard.claim_in(tx, it.ticket(rule=rule))
        assert isinstance(replay, Replay)
        assert replay.record.outcome == CREATED
        await guard.stop()


async def test_an_outcome_written_in_the_handlers_transaction_stands_when_that_commits(
    store: LocalStore, clock: ManualClock
) -> None:
    """HA-57, without the handler."""
    async with desk(store, clock) as it:
        held = await it.held()
        with pytest.raises(ZeroDivisionError):
            await undone(it, held)
        assert (await it.record()).state is State.RESERVED
        async with it.guard.database.write() as tx:
            assert await it.guard.set_result(held, CREATED, tx=tx)
        assert not await it.guard.release(held), "too late: it is completed"
        assert (await it.ask()).record.outcome == CREATED


async def undone(it: Desk, held: Held) -> None:
    async with it.guard.database.write() as tx:
        assert await it.guard.set_result(held, CREATED, tx=tx)
        raise ZeroDivisionError


# --- opening, stopping, belonging ---


MEMORY = (":memory:", "file::memory:", "file::memory:?cache=shared", "file:keys?mode=memory", "file:%3Amemory%3A")


@pytest.mark.parametrize("name", [*MEMORY, "", "file:"])
def test_a_ledger_in_memory_must_be_wanted(name: str) -> None:
    """HA-42, however it is spelled."""
    with pytest.raises(ConfigError) as refused:
        Idempotency(name, config())
    assert refused.value.code == "config.memory_store"
    Idempotency(name, config(allow_memory=True))


async def test_a_ledger_in_memory_is_one_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in MEMORY:
        async with Idempotency(name, config(allow_memory=True)) as guard:
            assert guard.database.label == ":memory:"
    with pytest.raises(ConfigError):
        await Idempotency("file:keys.db", config()).start()
    assert os.listdir(tmp_path) == [], "no file has such a name"


def test_mode_transaction_needs_a_unit() -> None:
    with pytest.raises(ConfigError) as refused:
        Idempotency("ledger.db", config(rule=RouteRule(mode="transaction")))
    assert refused.value.code == "config.mode_conflict"


async def test_a_unit_and_its_guard_have_one_database(tmp_path: Path) -> None:
    """HX-73."""
    ours, theirs, empty = (str(tmp_path / name) for name in ("ours.db", "theirs.db", "empty.db"))
    async with Idempotency(theirs, config()):
        pass
    apsw.Connection(empty).execute("CREATE TABLE orders (id)").fetchall()
    async with Idempotency(ours, config(), unit=ConnectionUnit(ours)) as guard:
        assert guard.unit is not None
    for path, error, code in (
        (theirs, ConfigError, "config.unit_database"),
        (empty, SchemaMismatch, "store.schema"),
    ):
        guard = Idempotency(ours, config(), unit=ConnectionUnit(path))
        with pytest.raises(error) as refused:
            await guard.start()
        assert refused.value.code == code
        with pytest.raises(error):
            await guard.claim(Desk(":memory:", allow_memory=True).ticket())


async def test_a_unit_of_another_library_does_not_share_an_open_ledger(tmp_path: Path, clock: ManualClock) -> None:
    path = str(tmp_path / "ledger.db")
    unit = aiosqlite.ConnectionUnit(path)
    async with LocalStore(path, tmp_path / "owners").opened(clock=clock) as database:
        with pytest.raises(ConfigError) as refused:
            await Idempotency(database, config(), unit=unit).start()
        assert refused.value.code == "config.unit_database"
    async with Idempotency(path, config(), unit=unit) as guard:
        assert guard.database.dialect == "sqlite"


async def test_a_secret_whose_keys_are_kept_must_not_be_missing(store: LocalStore, clock: ManualClock) -> None:
    """HA-19."""
    new = b"n" * 32
    async with store.opened(clock=clock) as database:
        async with Idempotency(database, config()):
            pass
        with pytest.raises(ConfigError) as refused:
            await Idempotency(database, config(secrets=[new])).start()
        assert refused.value.code == "config.secret_missing"
        clock.advance(DAY)
        async with Idempotency(database, config(secrets=[new])):
            pass


async def test_the_longest_retention_counts_for_a_secret(store: LocalStore, clock: ManualClock) -> None:
    rule = RouteRule(ttl=timedelta(hours=72))
    async with store.opened(clock=clock) as database:
        async with Idempotency(database, config(routes=(rule,))):
            pass
        clock.advance(timedelta(hours=71))
        with pytest.raises(ConfigError):
            await Idempotency(database, config(secrets=[b"n" * 32])).start()


async def test_a_secret_in_use_is_noted_with_the_renewals(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        await it.held()
        await clock.advance(timedelta(seconds=11))
        await noted(it)


async def noted(it: Desk) -> None:
    """Wait until the ledger has the secret's later use."""
    async with asyncio.timeout(20):
        while True:
            async with it.guard.database.read() as tx:
                row = (await keys.secrets(tx))[0]
            if row.last_used_at > row.first_used_at:
                return
            await asyncio.to_thread(lambda: None)


async def test_secrets_rotate_under_live_keys(store: LocalStore, clock: ManualClock) -> None:
    old, new = SECRET, b"n" * 32
    async with store.opened(clock=clock) as database:
        lists = ([old], [old, new], [new, old])
        desks = [Desk(database, secrets=secrets) for secrets in lists]
        held = [await it.held(f"key-{at}-of-the-first") for at, it in enumerate(desks)]
        for at, it in enumerate(desks):
            await it.guard.settle(held[at], CREATED)
        for it, seen in zip(desks, (2, 3, 3), strict=True):
            for at in range(seen):
                assert isinstance(await it.ask(f"key-{at}-of-the-first"), Replay), (it.guard.config.secrets, at)
        again = [desks[step].ticket("the same key").fingerprint for step in range(3)]
        names = []
        for it in desks:
            claimed = await it.held("a key released by each")
            names.append(claimed.record_id)
            await it.guard.release(claimed)
        assert len(set(names)) == 1, "the operation is named by the oldest secret"
        assert len(set(again)) == 1
        for it in desks:
            await it.guard.stop(timedelta(0))


async def test_a_guard_that_stops_waits_for_what_it_holds(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        stopping = asyncio.ensure_future(it.guard.stop())
        await turns()
        with pytest.raises(StoreUnavailable):
            await it.ask("another key")
        assert not stopping.done()
        assert await it.guard.settle(held, CREATED)
        async with asyncio.timeout(20):
            await stopping
        assert isinstance(await it.ask(), Replay), "used again, it opens again"


async def test_a_guard_that_stops_waits_no_longer_than_it_is_told(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        held = await it.held()
        stopping = asyncio.ensure_future(it.guard.stop(timedelta(seconds=5)))
        await turns()
        await clock.advance(timedelta(seconds=6))
        async with asyncio.timeout(20):
            await stopping
        other = it.guard.unprotected(it.ticket())
        assert await it.guard.settle(held, CREATED), "the client has its answer"
        assert await it.guard.release(held)
        assert await it.guard.mark_unknown(other, "raised")
        assert it.kinds() == ["completion_lost"]


def test_a_new_loop_opens_the_ledger_again(ledger: str) -> None:
    guard = Idempotency(ledger, config())
    it = Desk(":memory:", allow_memory=True)

    async def use() -> Any:
        return await guard.claim(it.ticket(rule=AGAIN))

    assert isinstance(asyncio.run(use()), Held)
    second = asyncio.run(use())
    assert isinstance(second, Held), "what ran in the first loop is dead"
    assert second.attempt == 2

    async def end() -> None:
        await guard.stop(timedelta(0))

    asyncio.run(end())
    gc.collect()


async def test_another_loop_may_not_use_it_meanwhile(tmp_path: Path) -> None:
    guard = Idempotency(str(tmp_path / "ledger.db"), config())
    it = Desk(":memory:", allow_memory=True)
    async with guard:

        def elsewhere() -> None:
            asyncio.run(guard.claim(it.ticket()))

        with pytest.raises(WrongLoop):
            await asyncio.to_thread(elsewhere)


def test_a_forked_child_opens_the_ledger_again(tmp_path: Path) -> None:
    guard = Idempotency(str(tmp_path / "ledger.db"), config())
    it = Desk(":memory:", allow_memory=True)

    async def use(key: str) -> Any:
        return await guard.claim(it.ticket(key))

    loop = asyncio.new_event_loop()
    mine = loop.run_until_complete(use("mine"))
    assert isinstance(mine, Held)

    def child() -> bool:
        found = asyncio.run(use("mine"))
        theirs = asyncio.run(use("theirs"))
        return isinstance(found, InFlight) and isinstance(theirs, Held)

    assert forked(child)
    assert isinstance(loop.run_until_complete(use("theirs")), InFlight | Conflict)
    loop.run_until_complete(guard.stop(timedelta(0)))
    loop.close()


def forked(work: Any) -> bool:
    """Do something in a forked child; say whether it gave True."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def test_a_guard_of_an_open_ledger_stays_in_its_process(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "ledger.db"), tmp_path / "owners")
    it = Desk(":memory:", allow_memory=True)
    loop = asyncio.new_event_loop()
    database: Database = loop.run_until_complete(store.open())
    guard = Idempotency(database, config())
    loop.run_until_complete(guard.ready())

    def child() -> bool:
        try:
            asyncio.run(guard.claim(it.ticket()))
        except WrongProcess:
            return True
        return False

    assert forked(child)
    loop.run_until_complete(guard.stop(timedelta(0)))
    loop.run_until_complete(database.close())
    loop.close()


async def test_a_ledger_that_cannot_be_opened_is_a_refusal(tmp_path: Path) -> None:
    guard = Idempotency("postgresql://nobody@127.0.0.1:1/none", config())
    it = Desk(":memory:", allow_memory=True)
    with pytest.raises(StoreUnavailable):
        await guard.claim(it.ticket())
    with pytest.raises(StoreUnavailable):
        _ = guard.database
    await guard.stop()


def test_what_a_guard_knows_a_request_by_hides_its_key() -> None:
    it = Desk(":memory:", allow_memory=True)
    ticket = it.ticket("a very secret key")
    assert "secret" not in repr(ticket)
    assert ticket.key_ref in repr(ticket)


def test_the_policy_says_what_the_rules_do() -> None:
    rules = (RouteRule(path="/pay", on_in_flight="wait", on_5xx="ambiguous", ttl=timedelta(hours=72)),)
    guard = Idempotency(":memory:", config(allow_memory=True, routes=rules))
    told: Any = guard.policy()
    assert told["headers"] == ["Idempotency-Key"]
    assert told["default"]["lifetime"] == "P1D"
    assert told["default"]["statuses"]["429"] == "release"
    assert told["routes"][0]["wait_max"] == "PT2S"
    assert told["routes"][0]["statuses"]["5xx"] == "unknown"


async def test_what_nobody_refuses_is_observed(store: LocalStore, clock: ManualClock) -> None:
    """HX-40, as far as the guard goes."""
    async with desk(store, clock, observe=True) as it:
        held = await it.guard.observe(it.ticket())
        assert held is not None
        assert await it.guard.observe(it.ticket()) is None
        assert await it.guard.settle(held, CREATED)
        assert await it.guard.observe(it.ticket()) is None


async def test_weak_keys_are_noticed_once_a_minute(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        await it.guard.ready()
        for _ in range(3):
            it.ticket("1")
        await clock.advance(timedelta(seconds=60))
        it.ticket("1")
        it.ticket("a key that is long enough")
        assert [event.kind for event in it.events] == ["weak_key", "weak_key"]


async def test_what_receives_events_may_fail(store: LocalStore, clock: ManualClock) -> None:
    async with desk(store, clock) as it:
        it.guard.events._on_event = lambda event: 1 / 0
        await it.guard.release(await it.held())
        assert (await it.held()).attempt == 2


# --- what it tells ---


async def test_claims_and_settles_are_traced(store: LocalStore, clock: ManualClock) -> None:
    """HX-107: with outcome, route, attempt and key_ref, and nothing else."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    async with desk(store, clock) as it:
        await it.guard.ready()
        trace.configure(tracer_provider=provider)
        try:
            held = await it.held()
            await it.guard.settle(held, CREATED)
            await it.ask()
        finally:
            trace.configure()
        ref = held.ticket.key_ref
        told = [(span.name, dict(span.attributes or {})) for span in spans.get_finished_spans()]
        ours = [each for each in told if each[0].startswith("holdfast.idempotency")]
        assert ours == [
            (
                "holdfast.idempotency.claim",
                {"route": "/orders", "key_ref": ref, "outcome": "proceed", "attempt": 1},
            ),
            (
                "holdfast.idempotency.settle",
                {"route": "/orders", "key_ref": ref, "outcome": "settled", "attempt": 1},
            ),
            ("holdfast.idempotency.claim", {"route": "/orders", "key_ref": ref, "outcome": "replay"}),
        ]


async def test_metrics_count_what_is_under_way(
    store: LocalStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_observers", WeakSet())  # guards that other tests have left behind are none of ours
    async with desk(store, clock) as it:
        before = trace.snapshot()
        held = await it.held()
        now = trace.snapshot()
        assert now["holdfast_idempotency_in_flight"][()] == before["holdfast_idempotency_in_flight"][()] + 1
        await it.guard.settle(held, CREATED)
        it.guard.events.decision("proceed", "/orders", lambda: events.IdempotencyEvent(kind="proceed", at=0))
        it.guard.events.handled("/orders", 0.5)
        now = trace.snapshot()
        assert now["holdfast_idempotency_in_flight"] == before["holdfast_idempotency_in_flight"]
        for name in ("claim_seconds_count", "settle_seconds_count"):
            named = f"holdfast_idempotency_{name}"
            assert now[named][()] == before[named].get((), 0) + 1
        assert now["holdfast_idempotency_requests_total"]["/orders", "proceed"] >= 1
        assert now["holdfast_idempotency_handler_seconds_count"]["/orders",] >= 1
        for name in ("waiting", "pending_settles"):
            assert now[f"holdfast_idempotency_{name}"] == before[f"holdfast_idempotency_{name}"]


async def test_routes_beyond_all_reason_are_not_timed() -> None:
    it = Desk(":memory:", allow_memory=True)
    for n in range(1100):
        it.guard.events.handled(f"/made/up/{n}", 1.0)
    assert it.guard.events.p90_us("/made/up/1000") == 1_000_000
    assert it.guard.events.p90_us("/made/up/1099") is None


# --- through the middleware ---


async def test_waiters_replay_when_the_first_answers(store: LocalStore, clock: ManualClock) -> None:
    """HA-26."""
    app = Gated()
    async with desk(store, clock) as it:
        middleware = IdempotencyMiddleware(app, it.guard, rule=WAIT)
        first = asyncio.ensure_future(ask(middleware, "a-key-that-many-send"))
        await until(lambda: app.runs)
        others = [asyncio.ensure_future(ask(middleware, "a-key-that-many-send")) for _ in range(3)]
        await until(lambda: it.guard.events.waiting == 3)
        other_body = await ask(middleware, "a-key-that-many-send", body=b"another body")
        assert (other_body.status, other_body.code) == (422, "key_reused")
        app.free.set()
        async with asyncio.timeout(20):
            assert not (await first).replayed
            assert [(await each).replayed for each in others] == [True] * 3
        assert app.runs == 1
