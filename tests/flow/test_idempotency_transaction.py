"""Mode A: claim, business writes, outbox and outcome in one commit, on every driver."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import apsw
import pytest
from tests.flow.exchanges import Answer, Call
from tests.flow.units import KINDS, ON_POSTGRES, ON_SQLITE, RULE, Shop, World, counter, opened, world

from holdfast.core.points import Crashed
from holdfast.idempotency import current
from holdfast.idempotency.errors import TransactionMisused
from holdfast.testing import ManualClock

MakeTarget = Callable[[str], str]


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, make_target: MakeTarget) -> AsyncIterator[World]:
    """An application's database, on each driver."""
    async with world(request.param, make_target) as made:
        yield made


@pytest.fixture(params=ON_POSTGRES)
async def served(request: pytest.FixtureRequest, make_target: MakeTarget) -> AsyncIterator[World]:
    """The same, where writers do not wait for each other."""
    async with world(request.param, make_target) as made:
        yield made


@pytest.fixture(params=ON_SQLITE)
async def filed(request: pytest.FixtureRequest, make_target: MakeTarget) -> AsyncIterator[World]:
    """The same, where only one writes at a time."""
    async with world(request.param, make_target) as made:
        yield made


async def orders(shop: Shop) -> int:
    await shop.order()
    return 201


def answering(*statuses: int) -> Callable[[Shop], Any]:
    """A handler that orders, and answers with one status after the other."""

    async def handler(shop: Shop) -> int:
        await shop.order(f"milk {shop.runs}")
        return statuses[min(shop.runs, len(statuses)) - 1]

    return handler


class Gate:
    """A handler that waits in its transaction until it is let go."""

    def __init__(self, *statuses: int) -> None:
        self.entered = asyncio.Event()
        self.free = asyncio.Event()
        self._answer = answering(*statuses)

    async def __call__(self, shop: Shop) -> int:
        status: int = await self._answer(shop)
        self.entered.set()
        if shop.runs == 1:
            await self.free.wait()
        return status


def started(call: Call) -> asyncio.Task[Answer]:
    """Make a request in a task of its own, which a test may cancel."""
    return asyncio.ensure_future(call.run())


# --- what is one commit


async def test_a_first_run_commits_everything_and_a_retry_replays(place: World) -> None:
    shop = Shop(place, orders)
    async with counter(shop, place) as desk:
        first = await desk.ask()
        assert (first.status, first.body, first.replayed, first.error) == (201, b"run 1", False, None)
        assert await desk.left() == (["milk"], ["milk"], ["COMPLETED"])
        again = await desk.ask()
        assert (again.status, again.body, again.replayed) == (201, b"run 1", True)
        assert (await desk.ask(body=b"else")).code == "key_reused"
        assert shop.runs == 1
        assert desk.kinds() == ["proceed", "replay", "reused"]
        [record] = await desk.records()
        assert (record.mode, record.attempt) == ("transaction", 1)


async def test_a_keyless_request_gets_no_unit(place: World) -> None:
    seen: list[object] = []

    async def look(shop: Shop) -> int:
        seen.append(current())
        return 200

    async with counter(Shop(place, look), place) as desk:
        assert (await desk.ask(None)).status == 200
        assert seen == [None]
        assert await desk.records() == []


@pytest.mark.parametrize("status", [401, 409, 429, 500, 503])
async def test_a_status_that_is_released_leaves_nothing(place: World, status: int) -> None:
    shop = Shop(place, answering(status, 201))
    async with counter(shop, place) as desk:
        assert (await desk.ask()).status == status
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).status == 201
        assert await desk.left() == (["milk 2"], ["milk 2"], ["COMPLETED"])


async def test_a_recorded_4xx_undoes_the_writes(place: World) -> None:
    """HA-56."""
    shop = Shop(place, answering(422))
    async with counter(shop, place) as desk:
        assert (await desk.ask()).status == 422
        assert await desk.left() == ([], [], ["COMPLETED"])
        again = await desk.ask()
        assert (again.status, again.replayed, shop.runs) == (422, True, 1)


async def test_a_rule_may_keep_the_writes_of_a_recorded_4xx(place: World) -> None:
    """HA-56."""
    shop = Shop(place, answering(422))
    async with counter(shop, place, rule=replace(RULE, on_4xx_writes="commit")) as desk:
        assert (await desk.ask()).status == 422
        assert await desk.left() == (["milk 1"], ["milk 1"], ["COMPLETED"])


async def test_an_exception_leaves_nothing_and_reaches_the_server(place: World) -> None:
    failure = ZeroDivisionError("no change")

    async def failing(shop: Shop) -> int:
        await shop.order()
        if shop.runs == 1:
            raise failure
        return 201

    async with counter(Shop(place, failing), place) as desk:
        first = await desk.ask()
        assert first.error is failure
        assert first.messages == []
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).status == 201


async def test_a_handler_that_says_nothing_leaves_nothing(place: World) -> None:
    shop = Shop(place, orders)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def half(message: Any) -> None:
            if message["type"] == "http.response.start":
                await send(message)

        await shop(scope, receive, half if shop.runs == 0 else send)

    async with counter(app, place) as desk:
        first = await desk.ask()
        assert (first.status, first.ended, first.error) == (201, False, None)
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).body == b"run 2"


async def test_no_store_commits_the_writes_and_no_row(place: World) -> None:
    async def unkept(shop: Shop) -> int:
        await shop.order(f"milk {shop.runs}")
        idem = current()
        assert idem is not None
        idem.no_store()
        return 201

    async with counter(Shop(place, unkept), place) as desk:
        assert (await desk.ask()).status == 201
        assert await desk.left() == (["milk 1"], ["milk 1"], [])
        assert (await desk.ask()).body == b"run 2"
        assert await place.orders() == ["milk 1", "milk 2"]


async def test_a_set_result_is_what_is_recorded(place: World) -> None:
    async def declared(shop: Shop) -> int:
        await shop.order()
        idem = current()
        assert idem is not None
        await idem.set_result(202, [(b"content-type", b"text/plain")], b"declared")
        return 500

    async with counter(Shop(place, declared), place) as desk:
        assert (await desk.ask()).status == 500
        assert await desk.left() == (["milk"], ["milk"], ["COMPLETED"])
        again = await desk.ask()
        assert (again.status, again.body) == (202, b"declared")


async def test_an_ambiguous_5xx_undoes_the_writes_and_is_unknown(place: World) -> None:
    async with counter(Shop(place, answering(500)), place, rule=replace(RULE, on_5xx="ambiguous")) as desk:
        assert (await desk.ask()).status == 500
        assert await desk.left() == ([], [], ["UNKNOWN"])
        assert (await desk.ask()).code == "outcome_unknown"
        assert desk.kinds() == ["marked_unknown", "proceed", "unknown"]


async def test_a_frozen_5xx_is_recorded_with_its_writes(place: World) -> None:
    async with counter(Shop(place, answering(500)), place, rule=replace(RULE, on_5xx="freeze")) as desk:
        assert (await desk.ask()).status == 500
        assert await desk.left() == (["milk 1"], ["milk 1"], ["COMPLETED"])
        assert (await desk.ask()).replayed


async def test_a_handler_over_its_time_leaves_nothing(place: World) -> None:
    gate = Gate(201)
    rule = replace(RULE, handler_timeout=timedelta(milliseconds=200), lease=timedelta(seconds=1))
    async with counter(Shop(place, gate), place, rule=rule) as desk:
        assert (await desk.ask()).code == "handler_timeout"
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).status == 201


async def test_a_cancelled_request_leaves_nothing_and_its_retry_runs_at_once(place: World) -> None:
    gate = Gate(201)
    async with counter(Shop(place, gate), place) as desk:
        task = started(desk.call())
        await gate.entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).body == b"run 2"


async def test_two_secrets_claim_record_and_alias_in_the_one_commit(place: World) -> None:
    secrets = [bytes(range(32)), bytes(range(1, 33))]
    shop = Shop(place, answering(409, 201))
    async with counter(shop, place, secrets=secrets) as desk:
        assert (await desk.ask()).status == 409
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).status == 201
    async with counter(shop, place, secrets=secrets[::-1]) as desk:
        assert (await desk.ask()).replayed


# --- streams and large responses


@pytest.mark.parametrize("kind", ["stream", "oversize"])
async def test_what_is_not_kept_is_committed_before_its_first_byte(place: World, kind: str) -> None:
    """HX-72."""
    shop = Shop(place, orders)
    there: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await shop.order()
        content = b"text/event-stream" if kind == "stream" else b"text/plain"
        headers = [(b"content-type", content), (b"location", b"/orders/1"), (b"x-more", b"1")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        for part in (b"one,", b"two,", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": part != b"three"})

    async with counter(app, place, rule=replace(RULE, response_bytes_max=5)) as desk:
        asked = desk.call()

        async def on_send(message: Any) -> None:
            if not there:
                there.append(await desk.left())

        asked.on_send = on_send
        first = await asked.run()
        assert (first.status, first.body) == (201, b"one,two,three")
        assert there == [(["milk"], ["milk"], ["TOMBSTONE"])]
        again = await desk.ask()
        assert (again.status, again.code, again.json["reason"]) == (409, "executed", kind)
        assert (again.header("location"), again.header("x-more")) == ("/orders/1", None)
        assert desk.kinds() == ["tombstoned", "proceed", "executed"]


# --- work after the response


async def test_background_work_runs_once_after_the_commit_and_keeps_no_connection(place: World) -> None:
    shop = Shop(place, orders)
    looked, done = asyncio.Event(), asyncio.Event()
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await shop(scope, receive, send)
        seen.append(await desk.left())
        looked.set()
        await done.wait()
        raise ZeroDivisionError

    async with counter(app, place) as desk:
        task = started(desk.call())
        await looked.wait()
        assert seen == [(["milk"], ["milk"], ["COMPLETED"])]
        assert (await desk.ask()).replayed
        async with place.unit.begin(isolation=None, lock_timeout=timedelta(seconds=1)) as work:
            await work.rollback()
        done.set()
        assert isinstance((await task).error, ZeroDivisionError)
        assert (await desk.ask()).replayed
        assert shop.runs == 1


# --- duplicates meanwhile


async def test_another_body_is_refused_at_once_while_the_first_runs(place: World) -> None:
    """HA-27."""
    gate = Gate(201)
    async with counter(Shop(place, gate), place, rule=replace(RULE, lock_timeout=timedelta(seconds=30))) as desk:
        first = started(desk.call())
        await gate.entered.wait()
        assert (await desk.ask(body=b"else")).code == "key_reused"
        gate.free.set()
        assert (await first).status == 201


async def test_a_duplicate_waits_for_the_first_and_replays_it(place: World) -> None:
    gate = Gate(201)
    shop = Shop(place, gate)
    async with counter(shop, place, rule=replace(RULE, lock_timeout=timedelta(seconds=30))) as desk:
        first = started(desk.call())
        await gate.entered.wait()
        others = [started(desk.call()) for _ in range(3)]
        await asyncio.sleep(0.05)
        gate.free.set()
        assert not (await first).replayed
        assert all([(await other).replayed for other in others])
        assert shop.runs == 1


async def test_a_duplicate_of_a_first_that_is_rolled_back_runs(place: World) -> None:
    gate = Gate(503, 201)
    shop = Shop(place, gate)
    async with counter(shop, place, rule=replace(RULE, lock_timeout=timedelta(seconds=30))) as desk:
        first = started(desk.call())
        await gate.entered.wait()
        other = started(desk.call())
        await asyncio.sleep(0.05)
        gate.free.set()
        assert (await first).status == 503
        assert (await other).body == b"run 2"
        assert await desk.left() == (["milk 2"], ["milk 2"], ["COMPLETED"])


async def test_a_duplicate_that_waited_long_enough_is_told_so(place: World) -> None:
    gate = Gate(201)
    shop = Shop(place, gate)
    async with counter(shop, place) as desk:
        first = started(desk.call())
        await gate.entered.wait()
        other = await desk.ask()
        assert (other.status, other.code) == (409, "in_flight")
        assert 1 <= int(other.header("retry-after") or "0") <= 30
        gate.free.set()
        assert (await first).status == 201
        assert shop.runs == 1


async def test_a_duplicate_in_another_process_waits_too(served: World) -> None:
    """On PostgreSQL it waits on the key itself, wherever the first runs."""
    gate = Gate(201)
    shop = Shop(served, gate)
    async with counter(shop, served) as desk, opened(served.kind, served.target) as elsewhere:
        rule = replace(RULE, lock_timeout=timedelta(seconds=30))
        async with counter(shop, elsewhere, rule=rule, database=desk.guard.database) as far:
            first = started(desk.call())
            await gate.entered.wait()
            other = started(far.call())
            await asyncio.sleep(0.1)
            gate.free.set()
            assert (await first).status == 201
            assert (await other).replayed
            assert shop.runs == 1


def lock(place: World) -> Any:
    """Write to the file from outside; close what comes back to let go."""
    if place.kind == "apsw":
        connection: Any = apsw.Connection(place.target)
    else:
        connection = sqlite3.connect(place.target, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return contextlib.closing(connection)


async def test_a_busy_file_is_no_claim_in_flight(filed: World) -> None:
    """HX-67."""
    shop = Shop(filed, orders)
    async with counter(shop, filed) as desk:
        with lock(filed):
            busy = await desk.ask()
        assert (busy.status, busy.code) == (503, "store_busy")
        assert busy.header("retry-after") == "1"
        assert (await desk.ask()).status == 201
        assert shop.runs == 1


async def test_a_replay_does_not_wait_for_the_writer(filed: World) -> None:
    async with counter(Shop(filed, orders), filed, rule=replace(RULE, lock_timeout=timedelta(seconds=30))) as desk:
        await desk.ask()
        with lock(filed):
            assert (await desk.ask()).replayed


async def test_other_keys_wait_for_their_turn_in_the_order_they_came(filed: World) -> None:
    shop = Shop(filed, answering(201))
    async with counter(shop, filed, rule=replace(RULE, lock_timeout=timedelta(seconds=30))) as desk:
        answers = await asyncio.gather(*(desk.ask(f"order-{n}-of-this-may") for n in range(12)))
        assert [answer.body for answer in answers] == [b"run %d" % n for n in range(1, 13)]


# --- misuse


@pytest.mark.parametrize("more", [False, True])
async def test_a_handler_that_commits_is_told_so_and_never_runs_again(place: World, more: bool) -> None:
    """HA-55."""

    async def commits(shop: Shop) -> int:
        await shop.order()
        await place.commit(shop.handle)
        if more and place.kind != "apsw":
            await place.insert(shop.handle, "cheese")
        return 201

    shop = Shop(place, commits)
    async with counter(shop, place) as desk:
        first = await desk.ask()
        assert isinstance(first.error, TransactionMisused)
        assert first.error.code == "idempotency.transaction_misused"
        assert first.messages == []
        again = await desk.ask()
        assert (again.code, again.json["reason"], again.json["executed_status"]) == ("executed", "handler_commit", 201)
        assert shop.runs == 1
        assert (await place.orders())[-1:] == ["milk"]
        assert desk.kinds() == ["transaction_misused", "proceed", "executed"]


async def test_a_handler_that_rolls_back_is_told_so(place: World) -> None:
    async def rolls_back(shop: Shop) -> int:
        await shop.order()
        if shop.runs == 1:
            await place.rollback(shop.handle)
        return 201

    shop = Shop(place, rolls_back)
    async with counter(shop, place) as desk:
        assert isinstance((await desk.ask()).error, TransactionMisused)
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).status == 201


async def test_a_handler_that_closes_is_told_so(place: World) -> None:
    async def closes(shop: Shop) -> int:
        await shop.order()
        if shop.runs == 1:
            await place.close(shop.handle)
        return 201

    shop = Shop(place, closes)
    async with counter(shop, place) as desk:
        assert isinstance((await desk.ask()).error, TransactionMisused)
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).status == 201


async def test_a_handler_that_commits_and_raises_never_runs_again(place: World) -> None:
    async def commits(shop: Shop) -> int:
        await shop.order()
        await place.commit(shop.handle)
        raise ZeroDivisionError

    shop = Shop(place, commits)
    async with counter(shop, place) as desk:
        first = await desk.ask()
        assert isinstance(first.error, TransactionMisused)
        assert isinstance(first.error.__cause__, ZeroDivisionError)
        assert (await desk.ask()).code == "executed"
        assert shop.runs == 1


async def test_a_committed_claim_found_later_is_unknown_and_never_run(place: World) -> None:
    """HX-71: as a handler leaves it that committed, and whose process died then."""

    async def dies(shop: Shop) -> int:
        await shop.order()
        await place.commit(shop.handle)
        raise Crashed("in the handler")

    shop, clock = Shop(place, dies), ManualClock()
    async with counter(shop, place, clock=clock) as desk:
        with pytest.raises(Crashed):
            await desk.ask()
        assert await desk.left() == (["milk"], ["milk"], ["RESERVED"])
        assert (await desk.ask()).code == "in_flight"
        await clock.advance(timedelta(seconds=31))
        assert (await desk.ask()).code == "outcome_unknown"
        assert shop.runs == 1
