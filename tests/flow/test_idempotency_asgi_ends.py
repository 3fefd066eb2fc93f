"""Runs that end without a whole answer, and claims that are lost before the answer; on every database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.exchanges import Answer, Counting, Guarded, guarded

from holdfast.core.errors import LeaseLost
from holdfast.core.points import Crashed
from holdfast.idempotency import Idem, RouteRule, State, current, keys
from holdfast.idempotency.machine import ForceExpire, ForceRelease
from holdfast.testing import crash

K = "f2b0c5de-7a6b-4f50-9d5e-000000000004"
START: dict[str, Any] = {"type": "http.response.start", "status": 201, "headers": [(b"location", b"/orders/1")]}
PIECE: dict[str, Any] = {"type": "http.response.body", "body": b"part", "more_body": True}
END: dict[str, Any] = {"type": "http.response.body", "body": b"end"}


@pytest.fixture(params=["sqlite-memory", "sqlite-file", "postgres"])
def target(request: pytest.FixtureRequest, make_target: Callable[[str], str]) -> str:
    return make_target(request.param)


class Once:
    """An application that does what it is given on its first run, and answers 201 on every later one."""

    def __init__(self, first: Callable[[Any, Any], Any]) -> None:
        self.first = first
        self.runs = 0
        self.attempts: list[int] = []
        self.derived: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        idem = scope["holdfast.idempotency"]
        assert idem is current()
        self.attempts.append(idem.attempt)
        self.derived.append(idem.derived_key("charge"))
        await receive()
        if self.runs == 1:
            await self.first(idem, send)
        else:
            await send(START)
            await send(END)


def raising(error: BaseException, *messages: dict[str, Any]) -> Callable[[Idem, Any], Any]:
    async def first(idem: Idem, send: Any) -> None:
        for message in messages:
            await send(message)
        raise error

    return first


def sending(*messages: dict[str, Any]) -> Callable[[Idem, Any], Any]:
    async def first(idem: Idem, send: Any) -> None:
        for message in messages:
            await send(message)

    return first


async def state(shop: Guarded) -> tuple[State, str | None]:
    async with shop.guard.database.read() as tx:
        (item,) = (await keys.list(tx)).items
    return item.state, item.reason


async def test_a_handler_that_raises_lets_the_retry_run_at_once(target: str) -> None:
    """HA-34."""
    error = LookupError("no such order")
    app = Once(raising(error))
    async with guarded(app, target) as shop:
        assert (await shop.ask(K)).error is error
        assert (await shop.ask(K)).status == 201
        assert (app.attempts, len(set(app.derived))) == ([1, 2], 1)
        assert shop.decisions() == ["proceed", "proceed"]
        assert (await shop.ask(K)).replayed


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseExceptionGroup("g", [SystemExit(1)])])
async def test_even_the_end_of_the_program_lets_go_of_the_key(error: BaseException) -> None:
    """HX-48."""
    app = Once(raising(error))
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)
        with pytest.raises(type(error)) as raised:
            await shop.app(made.scope, made.receive, made.send)
        assert raised.value is error
        assert await state(shop) == (State.RELEASED, None)
        assert (await shop.ask(K)).status == 201


async def test_exception_groups_reach_the_server_as_they_are() -> None:
    error = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("more", [KeyError("b")])])
    app = Once(raising(error))
    async with guarded(app, ":memory:") as shop:
        assert (await shop.ask(K)).error is error
        assert (await shop.ask(K)).status == 201


async def test_a_cancelled_request_lets_the_retry_run_at_once(target: str) -> None:
    """HA-34."""
    begun = asyncio.Event()

    async def first(idem: Idem, send: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    app = Once(first)
    async with guarded(app, target) as shop:
        running = await shop.call(K).start()
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await shop.ask(K)).status == 201
        assert app.attempts == [1, 2]


async def test_a_scope_that_cancels_again_and_again_is_outlasted(target: str) -> None:
    """HX-48 under a task group that repeats its cancellation."""
    import anyio

    begun = asyncio.Event()

    async def first(idem: Idem, send: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    app = Once(first)
    async with guarded(app, target) as shop:
        made = shop.call(K)
        async with anyio.create_task_group() as group:
            group.start_soon(made.run)
            await begun.wait()
            group.cancel_scope.cancel()
        assert (await shop.ask(K)).status == 201
        assert app.attempts == [1, 2]


async def test_a_cancellation_during_the_settle_lets_it_finish(target: str) -> None:
    """HX-49."""
    app = Counting()
    async with guarded(app, target) as shop:
        await shop.guard.ready()
        running = asyncio.ensure_future(shop.call(K).run())
        with crash("keys.settling", action=running.cancel), pytest.raises(asyncio.CancelledError):
            await running
        assert (await shop.ask(K)).replayed
        assert app.runs == 1


@pytest.mark.parametrize(
    "point",
    [
        "keys.claimed",
        "keys.acked",
        "handler.entered",
        "handler.returned",
        "keys.settled",
        "keys.settle_acked",
        "response.started",
    ],
)
async def test_a_cancellation_at_any_point_holds_up_no_retry(target: str, point: str) -> None:
    """HX-48, HX-49."""
    app = Counting()
    async with guarded(app, target) as shop:
        await shop.guard.ready()
        running = asyncio.ensure_future(shop.call(K).run())
        with crash(point, action=running.cancel):
            await asyncio.wait([running])
        again = await shop.ask(K)
        assert (again.status, again.body) == (201, b'{"run":%d}' % app.runs)
        assert (app.runs == 1) or not again.replayed


@pytest.mark.parametrize(
    ("on_5xx", "becomes"), [("release", (State.RELEASED, None)), ("ambiguous", (State.UNKNOWN, "raised"))]
)
async def test_what_a_raise_before_the_answer_becomes(
    on_5xx: Any, becomes: tuple[State, str | None], target: str
) -> None:
    error = LookupError()
    async with guarded(Once(raising(error)), target, rule=RouteRule(on_5xx=on_5xx)) as shop:
        assert (await shop.ask(K)).error is error
        assert await state(shop) == becomes


async def test_a_frozen_failure_is_replayed_as_a_problem(target: str) -> None:
    error = LookupError("secret detail")
    async with guarded(Once(raising(error)), target, rule=RouteRule(on_5xx="freeze")) as shop:
        first = await shop.ask(K)
        assert (first.error, first.messages) == (error, [])
        again = await shop.ask(K)
        assert (again.status, again.code, again.replayed) == (500, "handler_failed", True)
        assert b"secret detail" not in again.body


@pytest.mark.parametrize("end", ["raises", "returns"])
async def test_an_unfinished_answer_leaves_a_tombstone_or_what_its_status_says(target: str, end: str) -> None:
    for number, (status, reason) in enumerate(((201, "truncated"), (500, None), (429, None))):
        head = START | {"status": status}
        error = LookupError()
        app = Once(raising(error, head, PIECE) if end == "raises" else sending(head, PIECE))
        async with guarded(app, target) as shop:
            key = f"key-number-{number}-of-mine"
            first = await shop.ask(key)
            assert first.error is (error if end == "raises" else None)
            assert (first.status, first.body, first.ended) == (status, b"part", False)
            again = await shop.ask(key)
            if reason is None:
                assert (again.status, app.runs) == (201, 2)
            else:
                assert (again.code, again.json["reason"], app.runs) == ("executed", "truncated", 1)
                assert again.header("location") == "/orders/1"


async def test_an_application_that_returns_without_answering_lets_go(target: str) -> None:
    app = Once(sending())
    async with guarded(app, target) as shop:
        first = await shop.ask(K)
        assert (first.messages, first.error) == ([], None)
        assert (await shop.ask(K)).status == 201


async def test_an_irreversible_effect_is_stored_or_unknown_but_never_run_again(target: str) -> None:
    """HA-52."""

    async def too_many(idem: Idem, send: Any) -> None:
        await idem.mark_irreversible()
        idem.no_store()
        await send(START | {"status": 429})
        await send(END)

    async def fails(idem: Idem, send: Any) -> None:
        await idem.mark_irreversible()
        raise LookupError

    async def server_error(idem: Idem, send: Any) -> None:
        await idem.mark_irreversible()
        await send(START | {"status": 500})
        await send(END)

    async def by_field(idem: Idem, send: Any) -> None:
        await send(START | {"status": 429, "headers": [(b"idempotency-control", b"irreversible")]})
        await send(END)

    for number, (first, status) in enumerate(((too_many, 429), (fails, 409), (server_error, 409), (by_field, 429))):
        app = Once(first)
        async with guarded(app, target) as shop:
            key = f"key-number-{number}-of-mine"
            await shop.ask(key)
            again = await shop.ask(key)
            assert (again.status, app.runs) == (status, 1)
            assert again.replayed if status == 429 else again.code == "outcome_unknown"


async def test_a_route_of_irreversible_effects_is_unknown_after_a_failure() -> None:
    for first in (raising(LookupError()), sending(START | {"status": 500}, END)):
        async with guarded(Once(first), ":memory:", rule=RouteRule(irreversible=True)) as shop:
            await shop.ask(K)
            assert (await shop.ask(K)).code == "outcome_unknown"


async def test_a_simulated_crash_tidies_nothing_up() -> None:
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)
        with crash("handler.entered", action="raise"), pytest.raises(Crashed):
            await shop.app(made.scope, made.receive, made.send)
        assert (app.runs, shop.events) == (0, [])


@pytest.mark.parametrize("point", ["batch.begun", "batch.inserted", "batch.committed"])
@pytest.mark.parametrize("hit", [1, 2], ids=["claim", "settle"])
async def test_a_simulated_crash_of_the_journal_is_one_to_the_request(point: str, hit: int, tmp_path: Path) -> None:
    """And the guard stops at once: nothing of what it held can end any more, and its clock stands still."""
    app = Counting()
    async with asyncio.timeout(60), guarded(app, str(tmp_path / "ledger.db")) as shop:
        made = shop.call(K)
        with crash(point, hit=hit, action="raise"), pytest.raises(Crashed):
            await shop.app(made.scope, made.receive, made.send)
        assert (app.runs, shop.events) == (hit - 1, [])
        await shop.guard.stop()


async def test_a_handler_over_its_time_is_cancelled_and_answered_for(target: str) -> None:
    """HX-80."""
    begun, cancelled = asyncio.Event(), []

    async def first(idem: Idem, send: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    app = Once(first)
    async with guarded(app, target, rule=RouteRule(handler_timeout=timedelta(seconds=5))) as shop:
        running = await shop.call(K).start()
        await begun.wait()
        await shop.clock.advance(timedelta(seconds=5))
        answer = await running
        assert (answer.status, answer.code, answer.replayed, cancelled) == (504, "handler_timeout", False, [1])
        assert (await shop.ask(K)).status == 201
        assert app.attempts == [1, 2]


async def test_a_handler_over_its_time_may_leave_the_outcome_unknown_or_frozen() -> None:
    async def first(idem: Idem, send: Any) -> None:
        await send(START)
        await asyncio.Event().wait()

    for on_5xx, becomes in (("ambiguous", "executed"), ("freeze", "executed"), ("release", "executed")):
        rule = RouteRule(handler_timeout=timedelta(milliseconds=500), on_5xx=on_5xx)
        async with guarded(Once(first), ":memory:", rule=rule) as shop:
            running = await shop.call(K).start()
            await shop.clock.advance(timedelta(seconds=1))
            assert (await running).status == 504
            assert (await shop.ask(K)).code == becomes

    async def silent(idem: Idem, send: Any) -> None:
        await asyncio.Event().wait()

    for on_5xx, status, code in (("ambiguous", 409, "outcome_unknown"), ("freeze", 504, "handler_timeout")):
        rule = RouteRule(handler_timeout=timedelta(milliseconds=500), on_5xx=on_5xx)
        async with guarded(Once(silent), ":memory:", rule=rule) as shop:
            running = await shop.call(K).start()
            await shop.clock.advance(timedelta(seconds=1))
            assert (await running).status == 504
            again = await shop.ask(K)
            assert (again.status, again.code, again.replayed) == (status, code, on_5xx == "freeze")


async def test_a_handler_that_makes_do_without_being_stopped_has_its_answer() -> None:
    async def first(idem: Idem, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        await send(START)
        await send(END)

    async with guarded(Once(first), ":memory:", rule=RouteRule(handler_timeout=timedelta(seconds=5))) as shop:
        running = await shop.call(K).start()
        await shop.clock.advance(timedelta(seconds=5))
        assert (await running).body == b"end"
        assert (await shop.ask(K)).replayed


async def test_background_work_is_not_timed() -> None:
    go_on = asyncio.Event()

    async def first(idem: Idem, send: Any) -> None:
        await send(START)
        await send(END)
        await go_on.wait()

    async with guarded(Once(first), ":memory:", rule=RouteRule(handler_timeout=timedelta(seconds=5))) as shop:
        running = await shop.call(K).start()
        await shop.clock.advance(timedelta(seconds=50))
        assert not running.done()
        go_on.set()
        assert (await running).error is None


# --- lost claims


async def forced(shop: Guarded, action: Any) -> None:
    async with shop.guard.database.write() as tx:
        (item,) = (await keys.list(tx)).items
        assert await keys.force(tx, item.key_id, action, actor="test", reason="a test", now=shop.clock.now())


class Slow(Once):
    """Waits in its first run until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def _wait(self, idem: Idem, send: Any) -> None:
        self.begun.set()
        await self.go_on.wait()
        await send(START)
        await send(END)


async def displaced(app: Slow, shop: Guarded, meanwhile: Callable[[], Any]) -> Answer:
    running = await shop.call(K).start()
    await app.begun.wait()
    await forced(shop, ForceRelease())
    await meanwhile()
    app.go_on.set()
    return await running


async def nothing() -> None:
    return None


async def test_a_response_whose_claim_was_released_by_an_operator_is_not_sent(target: str) -> None:
    """HA-64."""
    app = Slow()
    async with guarded(app, target) as shop:
        answer = await displaced(app, shop, nothing)
        assert (answer.status, answer.code) == (409, "outcome_unknown")
        assert "lease_lost" in shop.notices()
        assert shop.decisions() == ["proceed"]


async def test_a_response_that_was_overtaken_is_answered_from_the_record(target: str) -> None:
    """HA-64, HX-75."""
    app = Slow()
    async with guarded(app, target) as shop:
        answer = await displaced(app, shop, lambda: shop.ask(K))
        assert (answer.body, answer.replayed, app.attempts) == (b"end", True, [1, 2])
    app = Slow()
    async with guarded(app, ":memory:") as shop:

        async def other_body() -> None:
            assert (await shop.ask(K, body=b"other")).status == 201

        assert (await displaced(app, shop, other_body)).code == "outcome_unknown"


async def test_a_response_that_was_overtaken_by_one_in_flight_is_in_flight() -> None:
    app, hold, second = Slow(), asyncio.Event(), []

    async def held(scope: Any, receive: Any, send: Any) -> None:
        if app.runs:
            await hold.wait()
        await app(scope, receive, send)

    async with guarded(held, ":memory:") as shop:

        async def begin() -> None:
            second.append(await shop.call(K).start())

        answer = await displaced(app, shop, begin)
        assert (answer.status, answer.code) == (409, "in_flight")
        assert answer.header("retry-after") is not None
        hold.set()
        assert (await second[0]).body == b"end"


async def test_what_the_application_sends_after_it_was_displaced_is_dropped() -> None:
    async with guarded(app := Slow(), ":memory:", rule=RouteRule(on_lost="continue")) as shop:

        async def twice(idem: Idem, send: Any) -> None:
            app.begun.set()
            await app.go_on.wait()
            await send(START | {"headers": [(b"content-type", b"text/event-stream")]})
            await send(PIECE)
            await send({"type": "http.response.push"})
            await send(END)

        app.first = twice
        answer = await displaced(app, shop, nothing)
        assert (answer.code, answer.error, len(answer.messages)) == ("outcome_unknown", None, 2)


async def test_a_lost_claim_cancels_its_handler_if_the_rule_says_so(target: str) -> None:
    """HX-79."""
    app = Slow()
    async with guarded(app, target, rule=RouteRule(on_lost="cancel", lease=timedelta(seconds=3))) as shop:
        running = await shop.call(K).start()
        await app.begun.wait()
        await forced(shop, ForceRelease())
        for _ in range(200):
            await shop.clock.advance(timedelta(milliseconds=100))
            await asyncio.wait([running], timeout=0.01)
            if running.done():
                break
        answer = await running
        assert (answer.status, answer.code) == (409, "outcome_unknown")


async def test_an_effect_does_not_start_under_a_lost_claim(target: str) -> None:
    """HX-89."""
    told = []

    class Marking(Slow):
        async def _wait(self, idem: Idem, send: Any) -> None:
            self.begun.set()
            await self.go_on.wait()
            try:
                await idem.mark_irreversible()
            except LeaseLost:
                told.append(idem.lost)
                raise

    app = Marking()
    async with guarded(app, target) as shop:
        answer = await displaced(app, shop, nothing)
        assert (answer.code, answer.error, told) == ("outcome_unknown", None, [True])


async def test_a_lease_lost_that_is_somebody_elses_is_an_error_like_any_other() -> None:
    error = LeaseLost("of a durable execution")
    app = Once(raising(error))
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)
        with pytest.raises(LeaseLost) as raised:
            await shop.app(made.scope, made.receive, made.send)
        assert raised.value is error
        assert (await shop.ask(K)).status == 201


# --- set_result


async def test_a_result_that_was_set_is_the_outcome_whatever_is_sent(target: str) -> None:
    """HX-90."""

    async def first(idem: Idem, send: Any) -> None:
        await idem.set_result(202, [(b"content-type", b"text/plain")], b"set")
        raise LookupError

    app = Once(first)
    async with guarded(app, target) as shop:
        assert isinstance((await shop.ask(K)).error, LookupError)
        again = await shop.ask(K)
        assert (again.status, again.body, again.replayed, app.runs) == (202, b"set", True, 1)


async def test_a_live_response_that_differs_from_the_result_is_noticed(target: str) -> None:
    async def first(idem: Idem, send: Any) -> None:
        await idem.set_result(202, [], b"set")
        await send(START)
        await send(END)

    app = Once(first)
    async with guarded(app, target) as shop:
        assert (await shop.ask(K)).body == b"end"
        assert (await shop.ask(K)).body == b"set"
        assert "result_differs" in shop.notices()


async def test_a_result_set_in_the_handlers_transaction_stands_or_falls_with_it(target: str) -> None:
    """HA-57, but for the kill."""
    fate: list[str] = []
    shop: Guarded

    def roll_back() -> None:
        if fate[-1] == "rolled back":
            raise LookupError(fate[-1])

    async def first(idem: Idem, send: Any) -> None:
        try:
            async with shop.guard.database.write() as tx:
                await idem.set_result(202, [], b"set", tx=tx)
                roll_back()
        except LookupError:
            pass
        raise ValueError("after the transaction")

    for number, fate_now in enumerate(("committed", "rolled back")):
        fate.append(fate_now)
        app = Once(first)
        async with guarded(app, target) as shop:
            key = f"key-number-{number}-of-mine"
            assert isinstance((await shop.ask(key)).error, ValueError)
            again = await shop.ask(key)
            if fate_now == "committed":
                assert (again.status, again.body, app.runs) == (202, b"set", 1)
            else:
                assert (again.status, again.body, app.runs) == (201, b"end", 2)


async def test_an_expired_key_is_new_while_its_first_run_goes_on() -> None:
    """An operator's expiry takes the claim from a completed record only; a live one is released first."""
    app = Slow()
    async with guarded(app, ":memory:") as shop:

        async def expire() -> None:
            assert (await shop.ask(K)).status == 201
            await forced(shop, ForceExpire())

        answer = await displaced(app, shop, expire)
        assert answer.code in ("outcome_unknown", None)
