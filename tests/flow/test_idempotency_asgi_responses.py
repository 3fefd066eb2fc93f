"""What becomes of a handler's response: held, streamed, recorded, let go; on every database where the record counts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from tests.flow.exchanges import Call, Counting, Guarded, guarded

from holdfast.core.clock import micros
from holdfast.idempotency import (
    Completed,
    IdempotencyEvent,
    KeyRecord,
    RouteRule,
    State,
    Tombstone,
    current,
    keys,
    opened,
)
from holdfast.testing import crash

K = "f2b0c5de-7a6b-4f50-9d5e-000000000003"
START: dict[str, Any] = {"type": "http.response.start", "status": 201, "headers": [(b"location", b"/orders/1")]}


@pytest.fixture(params=["sqlite-memory", "sqlite-file", "postgres"])
def target(request: pytest.FixtureRequest, make_target: Callable[[str], str]) -> str:
    return make_target(request.param)


def piece(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Script:
    """An application that sends what it is told; a callable in the list is awaited in its place."""

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.runs = 0
        self.raised: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        await receive()
        for step in self.script:
            if callable(step):
                made = step()
                if asyncio.iscoroutine(made) or asyncio.isfuture(made):
                    await made
            else:
                await send(dict(step))


def _note_body(made: Call, into: list[bytes]) -> None:
    into.append(made.answer.body)


async def record(shop: Guarded) -> KeyRecord:
    """The only record there is, opened."""
    async with shop.guard.database.read() as tx:
        (item,) = (await keys.list(tx)).items
        found = await keys.get(tx, item.key_id)
    assert found is not None
    assert shop.guard._opened is not None
    return await shop.guard._opened.unsealed(found)


async def test_a_response_in_pieces_leaves_as_one(target: str) -> None:
    app = Script(START, piece(b"a", more=True), piece(b"", more=True), piece(b"b", more=True), piece(b""))
    async with guarded(app, target) as shop:
        first = await shop.ask(K)
        assert first.messages == [START, {"type": "http.response.body", "body": b"ab", "more_body": False}]
        assert (await shop.ask(K)).body == b"ab"


@pytest.mark.parametrize("status", [200, 201, 302, 400, 402, 404, 410, 422, 451])
async def test_deterministic_answers_are_replayed(status: int) -> None:
    """HA-49."""
    app = Counting(status=status)
    async with guarded(app, ":memory:") as shop:
        await shop.ask(K)
        assert (await shop.ask(K)).replayed
        assert app.runs == 1


@pytest.mark.parametrize("status", [401, 403, 407, 408, 409, 413, 421, 423, 425, 428, 429, 431, 500, 502, 503])
async def test_answers_about_the_moment_let_the_retry_run(status: int) -> None:
    """HA-49, HA-50."""
    app = Counting(status=status)
    async with guarded(app, ":memory:") as shop:
        await shop.ask(K)
        assert (await shop.ask(K)).body == b'{"run":2}'
        assert shop.notices() == ["released", "released"]
        assert [event.attempt for event in shop.events if event.kind == "proceed"] == [1, 2]


@pytest.mark.parametrize("status", [500, 503])
async def test_a_server_error_is_released_frozen_or_left_unknown(target: str, status: int) -> None:
    """HA-50."""
    app = Counting(status=status)
    async with guarded(app, target, rule=RouteRule(on_5xx="freeze")) as shop:
        first = await shop.ask(K)
        again = await shop.ask(K)
        assert (again.status, again.body, again.replayed, app.runs) == (status, first.body, True, 1)
        shop.app.rulebook._only = RouteRule(on_5xx="ambiguous")
        shop.app.rulebook._cache.clear()
        assert (await shop.ask("another-key-of-mine")).status == status
        unknown = await shop.ask("another-key-of-mine")
        assert (unknown.status, unknown.code, unknown.header("retry-after")) == (409, "outcome_unknown", None)
        assert (app.runs, shop.decisions()[-1]) == (2, "unknown")


async def test_statuses_override_the_table(target: str) -> None:
    app = Counting(status=409)
    rule = RouteRule(statuses={409: "store", "4xx": "release", "5xx": "unknown"})
    async with guarded(app, target, rule=rule) as shop:
        await shop.ask("key-number-1-of-mine")
        assert (await shop.ask("key-number-1-of-mine")).replayed
        app.status = 422
        await shop.ask("key-number-2-of-mine")
        assert not (await shop.ask("key-number-2-of-mine")).replayed
        app.status = 502
        await shop.ask("key-number-3-of-mine")
        assert (await shop.ask("key-number-3-of-mine")).code == "outcome_unknown"


async def test_no_store_and_ttl_by_call_and_by_field(target: str) -> None:
    """HA-51."""

    def no_store() -> None:
        idem = current()
        assert idem is not None
        idem.no_store()

    def ttl() -> None:
        idem = current()
        assert idem is not None
        idem.ttl(timedelta(seconds=60))

    by_field = [(b"Idempotency-Control", b"no-store, whatever")]
    for app in (Script(no_store, START, piece(b"")), Script(START | {"headers": by_field}, piece(b""))):
        async with guarded(app, ":memory:") as shop:
            first = await shop.ask(K)
            assert first.lines("idempotency-control") == []
            assert not (await shop.ask(K)).replayed
            assert app.runs == 2
    by_field = [(b"idempotency-control", b"ttl=60")]
    for number, app in enumerate((Script(ttl, START, piece(b"")), Script(START | {"headers": by_field}, piece(b"")))):
        async with guarded(app, target, expires_header=True) as shop:
            key = f"key-number-{number}-of-mine"
            first = await shop.ask(key)
            assert first.lines("idempotency-control") == []
            assert first.header("idempotency-expires") is not None
            ticket_at = shop.clock.now()
            async with shop.guard.database.read() as tx:
                newest = (await keys.list(tx)).items[0]
            assert newest.expires_at == ticket_at + micros(timedelta(seconds=60))


async def test_a_response_over_the_limit_arrives_whole_and_leaves_a_tombstone(target: str) -> None:
    """HA-44."""
    body = bytes(range(256)) * 8
    app = Script(START, *(piece(body[at : at + 100], more=True) for at in range(0, len(body), 100)), piece(b""))
    async with guarded(app, target, rule=RouteRule(response_bytes_max=1000)) as shop:
        first = await shop.ask(K)
        assert (first.body, first.ended, first.replayed) == (body, True, False)
        executed = await shop.ask(K)
        assert (executed.status, executed.code, executed.replayed) == (409, "executed", True)
        assert (executed.header("location"), executed.json["executed_status"]) == ("/orders/1", 201)
        assert executed.json["reason"] == "oversize"
        assert (app.runs, shop.decisions(), shop.notices()) == (1, ["proceed", "executed"], ["tombstoned"])


async def test_the_last_byte_may_cross_the_limit(target: str) -> None:
    app = Script(START, piece(b"x" * 11))
    async with guarded(app, target, rule=RouteRule(response_bytes_max=10)) as shop:
        assert (await shop.ask(K)).body == b"x" * 11
        assert (await shop.ask(K)).json["reason"] == "oversize"
        kept = (await record(shop)).outcome
        assert kept == Tombstone(201, [(b"location", b"/orders/1")], "oversize", 11, hashlib.sha256(b"x" * 11).digest())


async def test_an_event_stream_flows_from_its_first_event(target: str) -> None:
    """HA-47."""
    go_on = asyncio.Event()
    head = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
    app = Script(head, piece(b"data: 1\n\n", more=True), go_on.wait, piece(b"data: 2\n\n", more=True), piece(b""))
    async with guarded(app, target) as shop:
        made = shop.call(K)
        running = await made.start()
        await made.until(lambda answer: answer.body == b"data: 1\n\n")
        executed = await shop.ask(K)
        assert (executed.status, executed.code, executed.json["reason"]) == (409, "executed", "stream")
        go_on.set()
        whole = await running
        assert (whole.body, whole.ended, app.runs) == (b"data: 1\n\ndata: 2\n\n", True, 1)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_response_that_takes_its_time_becomes_a_stream(target: str, begun: bool) -> None:
    go_on = asyncio.Event()
    held = [piece(b"begun", more=True)] if begun else []
    app = Script(START, *held, go_on.wait, piece(b"over"))
    async with guarded(app, target, rule=RouteRule(stream_after=timedelta(seconds=2))) as shop:
        made = shop.call(K)
        running = await made.start()
        while app.runs == 0:  # the ledger of some databases is another thread's
            await asyncio.wait([running], timeout=0.01)
        await shop.clock.advance(timedelta(seconds=1))
        assert made.answer.messages == []
        await shop.clock.advance(timedelta(seconds=1))
        await made.until(lambda answer: len(answer.messages) == 1 + begun)
        assert (await shop.ask(K)).json["reason"] == "stream"
        go_on.set()
        whole = await running
        assert (whole.body, whole.ended, app.runs) == (b"begunover" if begun else b"over", True, 1)


async def test_a_route_of_streams_and_declared_trailers_flow_at_once() -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False}
    declared = START | {"trailers": True}
    for app, rule in (
        (Script(START, piece(b"a", more=True), piece(b"b")), RouteRule(stream=True)),
        (Script(declared, piece(b"a", more=True), piece(b"b"), trailers), RouteRule()),
    ):
        async with guarded(app, ":memory:", rule=rule) as shop:
            first = await shop.ask(K)
            assert [m["type"] for m in first.messages] == [m["type"] for m in app.script]
            assert first.body == b"ab"
            assert (await shop.ask(K)).json["reason"] == "stream"


async def test_a_stream_that_is_not_kept_holds_its_claim_until_its_last_byte() -> None:
    go_on = asyncio.Event()
    head = {"type": "http.response.start", "status": 500, "headers": [(b"content-type", b"text/event-stream")]}
    app = Script(head, piece(b"a", more=True), go_on.wait, piece(b"b"))
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)
        running = await made.start()
        assert made.answer.body == b"a"
        assert (await shop.ask(K)).code == "in_flight"
        go_on.set()
        assert (await running).body == b"ab"
        assert not (await shop.ask(K)).replayed
        assert app.runs == 2


async def test_early_bytes_leave_at_once_but_the_last_one_waits_for_the_record(target: str) -> None:
    go_on = asyncio.Event()
    for number, length in enumerate(([], [(b"content-length", b"7")])):
        go_on.clear()
        key = f"key-number-{number}-of-mine"
        app = Script(
            START | {"headers": length}, piece(b"one", more=True), go_on.wait, piece(b"twoo", more=True), piece(b"")
        )
        async with guarded(app, target, rule=RouteRule(flush="early", stream_after=timedelta(hours=1))) as shop:
            made = shop.call(key)
            running = await made.start()
            await made.until(lambda answer: len(answer.messages) == 2)
            assert made.answer.body == (b"one" if length else b"on")
            assert (await shop.ask(key)).code == "in_flight"
            before_settling: list[bytes] = []
            note = partial(_note_body, made, before_settling)
            go_on.set()
            with crash("keys.settling", action=note):
                whole = await running
            assert before_settling == [b"onetwo"], "its last byte leaves after the record"
            assert (whole.body, whole.ended) == (b"onetwoo", True)
            assert (await shop.ask(key)).body == b"onetwoo"


async def test_interim_responses_debug_and_early_hints_pass_at_once_and_are_not_recorded() -> None:
    info = {"type": "http.response.debug", "info": {"template": "t"}}
    hint = {"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]}
    interim = {"type": "http.response.start", "status": 103, "headers": []}
    seen: list[int] = []
    shop: Guarded
    app = Script(info, hint, interim, piece(b""), lambda: seen.append(len(made.answer.messages)), START, piece(b"x"))
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)
        first = await made.run()
        assert seen == [4]
        assert first.messages == [info, hint, interim, piece(b""), START, piece(b"x")]
        again = await shop.ask(K)
        assert (len(again.messages), again.body) == (2, b"x")


async def test_an_unknown_message_passes_in_order_after_a_tombstone(target: str) -> None:
    strange = {"type": "http.response.pathsend", "path": "/tmp/x"}  # noqa: S108 - nobody opens it
    push = {"type": "http.response.push", "path": "/style.css", "headers": []}
    for number, (script, told) in enumerate(
        (
            ((START, strange), [START, strange]),
            (
                (START, piece(b"a", more=True), strange, piece(b"b")),
                [START, piece(b"a", more=True), strange, piece(b"b")],
            ),
            ((push, START, piece(b"b")), [push, START, piece(b"b")]),
        )
    ):
        app = Script(*script)
        async with guarded(app, target) as shop:
            key = f"key-number-{number}-of-mine"
            assert (await shop.ask(key)).messages == told
            executed = await shop.ask(key)
            assert (executed.code, executed.json["reason"], app.runs) == ("executed", "message", 1)


async def test_changing_the_protocol_leaves_a_tombstone() -> None:
    app = Script({"type": "http.response.start", "status": 101, "headers": [(b"upgrade", b"x")]}, piece(b""))
    async with guarded(app, ":memory:") as shop:
        assert (await shop.ask(K)).messages[0]["status"] == 101
        executed = await shop.ask(K)
        assert (executed.json["reason"], executed.json["executed_status"]) == ("upgrade", 101)


async def test_a_forbidden_sequence_raises_in_the_application() -> None:
    """HX-56; what the raise means for the record follows from how far the response was."""
    expected: list[tuple[tuple[Any, ...], str | None]] = [
        ((piece(b"a"),), None),
        ((START, START, piece(b"a")), "truncated"),
        ((START, piece(b"a"), piece(b"b")), "replayed"),
    ]
    for script, becomes in expected:
        app = Script(*script)
        async with guarded(app, ":memory:") as shop:
            assert isinstance((await shop.ask(K)).error, RuntimeError)
            again = await shop.ask(K)
            if becomes is None:
                assert (isinstance(again.error, RuntimeError), app.runs) == (True, 2)
            elif becomes == "truncated":
                assert (again.json["reason"], app.runs) == ("truncated", 1)
            else:
                assert (again.body, again.replayed, app.runs) == (b"a", True, 1)


@pytest.mark.parametrize(
    "head",
    [
        {"headers": [(b"x", b"a\r\nset-cookie: b")]}, {"headers": [(b"sp ace", b"a")]}, {"headers": [(b"x", b"\x00")]},
        {"status": 600}, {"headers": [(b"x", bytearray(b"a\n"))]},
    ],
)  # fmt: skip
async def test_a_head_that_may_not_be_sent_again_is_not_recorded(head: dict[str, Any]) -> None:
    """HX-63."""
    app = Script(START | head, piece(b"x"))
    async with guarded(app, ":memory:") as shop:
        assert (await shop.ask(K)).messages[1] == piece(b"x")
        executed = await shop.ask(K)
        assert (executed.code, executed.json["reason"]) == ("executed", "message")


async def test_bodies_of_other_types_are_kept_as_bytes() -> None:
    lent = bytearray(b"lent")
    app = Script(START, piece(lent, more=True), lambda: lent.__setitem__(slice(None), b"gone"), piece(memoryview(b"!")))
    async with guarded(app, ":memory:") as shop:
        assert (await shop.ask(K)).body == b"lent!"
        kept = (await record(shop)).outcome
        assert isinstance(kept, Completed)
        assert kept.body == b"lent!"


async def test_background_work_neither_delays_nor_undoes_the_outcome(target: str) -> None:
    """HA-28."""
    go_on = asyncio.Event()

    def fail() -> None:
        raise LookupError("in the background")

    app = Script(START, piece(b"done"), go_on.wait, fail)
    async with guarded(app, target) as shop:
        made = shop.call(K)
        running = await made.start()
        await made.until(lambda answer: answer.ended)
        assert shop.decisions() == ["proceed"]
        assert (await shop.ask(K)).replayed
        go_on.set()
        assert isinstance((await running).error, LookupError)
        assert (await shop.ask(K)).replayed
        assert (app.runs, (await record(shop)).state) == (1, State.COMPLETED)


async def test_a_retry_from_within_the_last_byte_is_a_replay() -> None:
    """HA-29."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        replayed = 0
        for number in range(1000):
            made = shop.call(f"key-number-{number}-of-mine")

            async def retry(message: dict[str, Any], number: int = number) -> None:
                nonlocal replayed
                if message["type"] == "http.response.body":
                    replayed += (await shop.ask(f"key-number-{number}-of-mine")).replayed

            made.on_send = retry
            await made.run()
        assert (replayed, app.runs) == (1000, 1000)


async def test_a_client_that_cannot_be_reached_changes_nothing() -> None:
    """HX-57."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)

        async def broken(message: dict[str, Any]) -> None:
            raise OSError("the client is gone")

        made.on_send = broken
        assert isinstance((await made.run()).error, OSError)
        assert (await shop.ask(K)).body == b'{"run":1}'
        assert app.runs == 1


async def test_a_response_of_many_small_pieces_costs_what_its_bytes_cost() -> None:
    """HX-115: linear, in bytes as in pieces."""
    app = Script(START, *[piece(b"x" * 16, more=True)] * 65_536, piece(b""))
    async with guarded(app, ":memory:", rule=RouteRule(response_bytes_max=2**21)) as shop:
        assert len((await shop.ask(K)).body) == 2**20
        assert len((await shop.ask(K)).body) == 2**20


request_name: ContextVar[str] = ContextVar("request_name", default="nobody")


async def test_context_variables_of_the_application_are_visible_outside() -> None:
    """HX-51."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request_name.set("inside")
        await send(START)
        await send(piece(b""))

    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)
        await shop.app(made.scope, made.receive, made.send)
        assert request_name.get() == "inside"


async def test_what_a_slow_response_tells_is_told_in_its_own_context() -> None:
    """All slow responses share one timer, which belongs to whoever was first."""
    go_on, told = asyncio.Event(), []
    app = Script(START, go_on.wait, piece(b""))

    def note(event: IdempotencyEvent) -> None:
        if event.kind == "tombstoned":
            told.append(request_name.get())

    async with guarded(app, ":memory:", on_event=note) as shop:
        running = []
        for name in ("first", "second"):
            request_name.set(name)
            running.append(await shop.call(f"{K}-{name}").start())
        request_name.set("nobody")
        await shop.clock.advance(timedelta(seconds=1))
        go_on.set()
        await asyncio.gather(*running)
        assert told == ["first", "second"]


async def test_a_retry_is_answered_whether_its_key_is_remembered_or_not(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "SEEN_MAX", 2)
    app, names = Counting(), [f"remembered-or-not-{number}" for number in range(5)]
    async with guarded(app, target) as shop:
        for _ in range(2):
            answers = [await shop.ask(name) for name in names for _ in range(2)]
            assert [answer.body for answer in answers[1::2]] == [b'{"run":%d}' % run for run in range(1, 6)]
            assert all(answer.replayed for answer in answers[1::2])
            assert shop.guard._opened is not None
            assert len(shop.guard._opened._seen) <= 2
    assert app.runs == 5
