"""How a keyed request's body is taken in, and how the application receives it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.flow.exchanges import Counting, ask, call, guarded

from holdfast.idempotency import IdempotencyMiddleware, RouteRule, request
from holdfast.idempotency.fingerprint import Hasher

K = "f2b0c5de-7a6b-4f50-9d5e-000000000002"
MEBIBYTE = 1024 * 1024


async def test_a_body_in_many_chunks_is_one_message_for_the_application() -> None:
    """HX-53."""
    got: list[dict[str, Any]] = []

    async def app(scope: object, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        got.append(await receive())
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        got.append(await receive())

    async with guarded(app, ":memory:") as shop:
        made = shop.call(K, chunks=[b"a", b"", b"b" * 70_000, b"c"])
        made.leave()
        await made.run()
        whole = b"a" + b"b" * 70_000 + b"c"
        assert got == [{"type": "http.request", "body": whole, "more_body": False}, {"type": "http.disconnect"}]
        assert (await shop.ask(K, body=whole)).replayed


async def test_an_empty_body_is_a_message_too() -> None:
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        assert (await shop.ask(K, body=b"")).status == 201
        assert app.bodies == [b""]


async def test_a_client_that_leaves_while_it_sends_leaves_no_trace() -> None:
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K, chunks=[b"half"], whole=False)
        made.leave()
        assert (await made.run()).messages == []
        assert (app.runs, await shop.rows(), shop.decisions()) == (0, 0, ["abandoned"])
        assert request.buffered.size == 0


async def test_a_body_that_takes_too_long_is_refused_and_the_server_may_close() -> None:
    app = Counting()
    async with guarded(app, ":memory:", body_timeout=timedelta(seconds=3)) as shop:
        made = shop.call(K, chunks=[b"half"], whole=False)
        running = await made.start()
        await shop.clock.advance(timedelta(seconds=2))
        assert made.answer.messages == []
        await shop.clock.advance(timedelta(seconds=1))
        refused = await running
        assert (refused.status, refused.code, refused.header("connection")) == (408, "body_timeout", "close")
        assert (app.runs, await shop.rows(), request.buffered.size) == (0, 0, 0)
        made = shop.call(K, chunks=[b"half"], whole=False, http_version="2")
        running = await made.start()
        await shop.clock.advance(timedelta(seconds=3))
        assert (await running).header("connection") is None


async def test_a_cancellation_while_the_body_arrives_stays_one() -> None:
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K, chunks=[b"half"], whole=False)
        running = await made.start()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (app.runs, shop.decisions(), request.buffered.size) == (0, ["refused"], 0)


async def test_bytes_held_are_limited_for_the_whole_process() -> None:
    app = Counting()
    async with guarded(app, ":memory:", buffered_bytes_max=100) as shop:
        slow = shop.call(K, chunks=[b"x" * 60], whole=False)
        running = await slow.start()
        refused = await shop.ask("another-key-of-mine", chunks=[b"x" * 30, b"x" * 20, b"x"])
        assert (refused.status, refused.code, refused.received) == (503, "overloaded", 2)
        assert refused.header("retry-after") == "1"
        slow.feed(b"y")
        assert (await running).status == 201
        assert request.buffered.size == 0
        assert (await shop.ask("another-key-of-mine", chunks=[b"x" * 50, b"x" * 50])).status == 201


async def test_bytes_no_longer_count_once_the_application_has_them() -> None:
    counted = []

    async def app(scope: object, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        counted.append(request.buffered.size)
        await receive()
        counted.append(request.buffered.size)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with guarded(app, ":memory:") as shop:
        await shop.ask(K, body=b"x" * 100)
        assert counted == [100, 0]


async def test_a_body_of_tiny_chunks_costs_what_its_bytes_cost() -> None:
    """HX-33."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K, chunks=[b"x"] * 20_000)
        assert (await made.run()).status == 201
        assert (await shop.ask(K, body=b"x" * 20_000)).replayed


@pytest.mark.parametrize("form", ["raw", "json"])
async def test_large_bodies_are_hashed_off_the_loop(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HX-33, HX-115."""
    threads: dict[str, set[int]] = {"update": set(), "finish": set()}
    for name in threads:
        inner = getattr(Hasher, name)

        def noted(self: Hasher, data: bytes = b"", *, name: str = name, inner: Any = inner) -> Any:
            if len(data) > 256 * 1024:
                threads[name].add(threading.get_ident())
            return inner(self, data)

        monkeypatch.setattr(Hasher, name, noted)
    app = Counting()
    body = b'"' + b"x" * MEBIBYTE + b'"'
    async with guarded(app, ":memory:", rule=RouteRule(body=form)) as shop:
        assert (await shop.ask(K, body=body)).status == 201
        assert (await shop.ask(K, chunks=[body[:9], body[9:]])).replayed
        working = "update" if form == "raw" else "finish"
        assert threads[working]
        assert threading.get_ident() not in threads[working]


async def test_a_disconnect_is_neither_invented_nor_delayed() -> None:
    """HX-53: `is_disconnected()` as Starlette asks it."""
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse

    told = []
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = Request(scope, receive, send)
        await asked.body()
        told.append(await asked.is_disconnected())
        await go_on.wait()
        told.append(await asked.is_disconnected())
        await PlainTextResponse("done")(scope, receive, send)

    async with guarded(app, ":memory:") as shop:
        made = shop.call(K)
        running = await made.start()
        made.leave()
        await asyncio.sleep(0)
        go_on.set()
        assert (await running).status == 200
        assert told == [False, True]
        assert (await shop.ask(K)).replayed


async def test_what_was_heard_while_waiting_reaches_the_application() -> None:
    """HX-53, HX-81: a receive that was started while the request waited is not lost."""
    first, second = asyncio.Event(), asyncio.Event()
    heard = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if not first.is_set():
            first.set()
            await second.wait()
            await send({"type": "http.response.start", "status": 500, "headers": []})
        else:
            heard.append(await receive())
            await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with guarded(app, ":memory:", rule=RouteRule(on_in_flight="wait")) as shop:
        leader = await shop.call(K).start()
        await first.wait()
        waiter = shop.call(K)
        waiting = await waiter.start()
        await shop.clock.advance(timedelta(milliseconds=100))
        assert waiter.answer.received == 2, "it listens while it waits"
        second.set()
        assert (await leader).status == 500
        await shop.clock.advance(timedelta(milliseconds=100))
        assert waiter.answer.received == 2, "the application is given the receive that waits"
        waiter.leave()
        assert (await waiting).status == 201
        assert heard == [{"type": "http.disconnect"}]
        assert "waited" in shop.notices()


async def test_a_waiter_whose_client_leaves_gives_up() -> None:
    app_runs = []
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        app_runs.append(1)
        await go_on.wait()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with guarded(app, ":memory:", rule=RouteRule(on_in_flight="wait")) as shop:
        leader = await shop.call(K).start()
        assert app_runs == [1]
        waiter = shop.call(K)
        waiting = await waiter.start()
        await shop.clock.advance(timedelta(milliseconds=100))
        waiter.leave()
        await shop.clock.advance(timedelta(milliseconds=100))
        assert (await waiting).messages == []
        go_on.set()
        assert (await leader).status == 201
        assert (len(app_runs), shop.decisions()) == (1, ["abandoned", "proceed"])


async def test_another_body_under_a_key_in_flight_is_refused_at_once() -> None:
    """HA-27."""
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with guarded(app, ":memory:") as shop:
        leader = await shop.call(K).start()
        await begun.wait()
        waiting = IdempotencyMiddleware(app, shop.guard, rule=RouteRule(on_in_flight="wait"))
        assert (await shop.ask(K, body=b"other")).code == "key_reused"
        assert (await ask(waiting, K, body=b"other")).code == "key_reused"
        in_flight = await shop.ask(K)
        assert (in_flight.status, in_flight.code) == (409, "in_flight")
        assert int(in_flight.header("retry-after") or 0) >= 1
        waited = await call(waiting, K).start()
        await shop.clock.advance(timedelta(milliseconds=100))
        go_on.set()
        assert (await leader).status == 201
        await shop.clock.advance(timedelta(milliseconds=100))
        assert (await waited).replayed
