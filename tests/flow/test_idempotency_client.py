"""Requests that take effect once, sent by both transports over real sockets to a server that misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tests.flow.callers import KINDS, Caller, Kind, Patient, inner_of
from tests.flow.origin import Hang, Origin, Reply, Reset, Seen, Torn, problem
from tests.flow.served import Served

import holdfast
from holdfast import ConfigError
from holdfast.core.clock import to_datetime
from holdfast.idempotency import Idempotency, IdempotencyConfig, IdempotencyMiddleware, errors, shared_principal
from holdfast.idempotency.client import (
    AsyncIdempotentTransport,
    CallInfo,
    IdempotentTransport,
    RetryPolicy,
    call_info,
)  # fmt: skip
from holdfast.idempotency.retry import PROBLEM_BYTES_MAX, read_date
from holdfast.testing import Crashed, ManualClock, crash

CREATED = Reply(201, {"Content-Type": "application/json"}, b'{"order":1}')
REPLAYED = Reply(201, {"Idempotency-Replayed": "true"}, b'{"order":1}')
HELD_UP = httpx.Timeout(5, read=0.2)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast("Kind", request.param)


# Which requests carry a key, and which


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_a_request_that_changes_something_gets_a_key_of_its_own(kind: Kind, method: str) -> None:
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            responses = [await caller.request(method, "/orders") for _ in range(2)]
    assert len(set(origin.keys)) == 2
    assert {uuid.UUID(key).version for key in origin.keys if key} == {7}
    assert [call_info(response).key for response in responses] == origin.keys


async def test_a_request_that_only_reads_gets_none(kind: Kind) -> None:
    with Origin(Reply(503)) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.request("GET", "/orders")
    assert call_info(response) == CallInfo(None, 1, False, None)
    assert [(seen.key, seen.get("idempotency-first-sent")) for seen in origin.seen] == [(None, None)]


async def test_a_callers_own_key_is_kept(kind: Kind) -> None:
    with Origin(Reply(503), CREATED) as origin:
        async with Caller(kind, origin.url, key_source=lambda request: "other") as caller:
            response = await caller.post(headers={"idempotency-key": '"order-1"'})
    assert origin.keys == ['"order-1"'] * 2
    assert call_info(response).key == "order-1"


async def test_two_lines_of_a_caller_stay_two(kind: Kind) -> None:
    """The server is to refuse them, and cannot if they become one."""
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            await caller.post(headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    assert origin.seen[0].values("idempotency-key") == ["a", "b"]


async def test_a_key_can_be_sent_as_a_structured_field_string(kind: Kind) -> None:
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, quoted=True, header="X-Idempotency-Key") as caller:
            response = await caller.post()
    assert origin.seen[0].get("x-idempotency-key") == f'"{call_info(response).key}"'
    assert origin.seen[0].key is None


async def test_a_key_source_gives_the_key_and_may_leave_it_to_us(kind: Kind) -> None:
    def source(request: httpx.Request) -> str | None:
        return "order-7" if request.url.path == "/orders" else None

    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, key_source=source) as caller:
            await caller.post()
            await caller.post("/other")
    assert origin.keys[0] == "order-7"
    assert uuid.UUID(origin.keys[1] or "").version == 7


async def test_a_key_source_that_gives_no_key_is_told_before_anything_is_sent(kind: Kind) -> None:
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, key_source=lambda request: "") as caller:
            with pytest.raises(errors.KeyInvalid):
                await caller.post()
    assert origin.seen == []


async def test_a_request_sent_twice_by_its_caller_is_one_call(kind: Kind) -> None:
    with Origin(CREATED, REPLAYED) as origin:
        async with Caller(kind, origin.url) as caller:
            request = caller.build()
            first, second = await caller.send(request), await caller.send(request)
    assert len(set(origin.keys)) == 1
    assert (call_info(first).replayed, call_info(second).replayed) == (False, True)
    assert "idempotency-key" not in request.headers


async def test_a_request_is_not_sent_again_after_its_server_may_have_forgotten_it(kind: Kind) -> None:
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            request = caller.build()
            await caller.send(request)
            caller.clock.advance(timedelta(hours=24))
            with pytest.raises(errors.KeyWindowPassed):
                await caller.send(request)
    assert len(origin.seen) == 1


async def test_every_attempt_says_when_the_first_was_sent(kind: Kind) -> None:
    with Origin(Reply(503, {"Retry-After": "7"}), CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            began = caller.clock.now()
            response = await caller.post()
        async with Caller(kind, origin.url, send_first_sent=False) as quiet:
            await quiet.post()
    said = [seen.get("idempotency-first-sent") for seen in origin.seen]
    assert [said[0], said[2]] == [said[1], None]
    assert read_date(said[0] or "") == began
    assert call_info(response).first_sent_at == to_datetime(began)


async def test_a_callers_own_first_sent_is_kept(kind: Kind) -> None:
    with Origin(Reply(503), CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            then = "Wed, 31 Dec 2025 23:00:00 GMT"
            response = await caller.post(headers={"Idempotency-First-Sent": then})
    assert [seen.get("idempotency-first-sent") for seen in origin.seen] == [then] * 2
    assert str(call_info(response).first_sent_at) == "2025-12-31 23:00:00+00:00"


async def test_what_its_caller_knows_to_be_old_goes_out_once_for_the_server_to_decide(kind: Kind) -> None:
    with Origin(Reply(503)) as origin:
        async with Caller(kind, origin.url) as caller:
            then = "Mon, 01 Dec 2025 00:00:00 GMT"
            response = await caller.post(headers={"Idempotency-First-Sent": then})
    assert (response.status_code, len(origin.seen)) == (503, 1)


# Hops


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_within_the_origin_keeps_the_key(kind: Kind, status: int) -> None:
    with Origin(Reply(status, {"Location": "/v2/orders"}), CREATED) as origin:
        async with Caller(kind, origin.url, client={"follow_redirects": True}) as caller:
            response = await caller.post(content=b"one")
    assert [(seen.target, seen.body) for seen in origin.seen] == [("/orders", b"one"), ("/v2/orders", b"one")]
    assert len(set(origin.keys)) == 1
    assert call_info(response).key == origin.keys[0]


async def test_a_minted_key_does_not_go_to_another_origin(kind: Kind) -> None:
    with Origin(Reply(503)) as other, Origin(Reply(307, {"Location": f"{other.url}/orders"})) as origin:
        async with Caller(kind, origin.url, client={"follow_redirects": True}) as caller:
            response = await caller.post(content=b"one")
    assert origin.keys != [None]
    assert [(seen.key, seen.get("idempotency-first-sent"), seen.body) for seen in other.seen] == [(None, None, b"one")]
    assert (response.status_code, call_info(response).key) == (503, None)


async def test_a_callers_key_goes_where_httpx_takes_it(kind: Kind) -> None:
    with Origin(CREATED) as other, Origin(Reply(307, {"Location": f"{other.url}/orders"})) as origin:
        async with Caller(kind, origin.url, client={"follow_redirects": True}) as caller:
            await caller.post(headers={"Idempotency-Key": "mine"})
    assert origin.keys == other.keys == ["mine"]


async def test_a_minted_key_comes_home_with_its_call(kind: Kind) -> None:
    def script(seen: Seen) -> Reply:
        if seen.target == "/orders":
            return Reply(307, {"Location": f"{other.url}/orders"})
        return CREATED

    with Origin(script=script) as origin, Origin(Reply(307, {"Location": f"{origin.url}/v2/orders"})) as other:
        async with Caller(kind, origin.url, client={"follow_redirects": True}) as caller:
            await caller.post()
    assert len(set(origin.keys)) == 1
    assert other.keys == [None]


@pytest.mark.parametrize("status", [302, 303])
async def test_a_minted_key_is_gone_when_the_redirect_makes_it_a_get(kind: Kind, status: int) -> None:
    with Origin(Reply(status, {"Location": "/orders/1"}), Reply(200, {}, b"one")) as origin:
        async with Caller(kind, origin.url, client={"follow_redirects": True}) as caller:
            response = await caller.post()
    assert [(seen.method, seen.key is None) for seen in origin.seen] == [("POST", False), ("GET", True)]
    assert call_info(response.history[0]).key == origin.keys[0]


async def test_an_answer_to_a_challenge_carries_the_same_key(kind: Kind) -> None:
    challenge = Reply(401, {"WWW-Authenticate": 'Digest realm="shop", nonce="n", qop="auth", algorithm=SHA-256'})
    with Origin(challenge, Reply(503), CREATED) as origin:
        async with Caller(kind, origin.url, client={"auth": httpx.DigestAuth("me", "secret")}) as caller:
            response = await caller.post()
    assert [seen.get("authorization") is None for seen in origin.seen] == [True, False, False]
    assert len(set(origin.keys)) == 1
    assert (response.status_code, call_info(response).attempts) == (201, 2)


# What is tried again


async def test_a_timeout_and_then_a_replay_is_one_result_in_two_attempts(kind: Kind) -> None:
    """HA-66."""
    with Origin(Hang(), REPLAYED) as origin:
        async with Caller(kind, origin.url, client={"timeout": HELD_UP}) as caller:
            response = await caller.post(json={"item": "milk"})
    info = call_info(response)
    assert (info.attempts, info.replayed, response.json()) == (2, True, {"order": 1})
    assert len(set(origin.keys)) == 1
    assert [seen.body for seen in origin.seen] == [b'{"item":"milk"}'] * 2


@pytest.mark.parametrize(
    "turn", [Reset(), Torn(problem(409, "in_flight")), *map(Reply, (408, 425, 429, 500, 502, 503, 504))]
)
async def test_what_passes_is_tried_again(kind: Kind, turn: Any) -> None:
    with Origin(turn, turn, CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.post(content=b"one")
    assert (response.status_code, call_info(response).attempts) == (201, 3)
    assert (len(set(origin.keys)), len(origin.seen)) == (1, 3)
    assert len(caller.clock.naps) == 2
    assert caller.clock.naps[0] <= 0.2
    assert caller.clock.naps[1] <= 0.4


async def test_the_last_error_is_raised_as_it_came(kind: Kind) -> None:
    with Origin(CREATED) as origin:
        url = origin.url  # nobody listens there any more
    async with Caller(kind, url) as caller:
        request = caller.build()
        with pytest.raises(httpx.ConnectError) as caught:
            await caller.send(request)
    assert caught.value.request is request
    assert len(caller.clock.naps) == 4


async def test_an_error_that_would_come_again_is_raised_at_once(kind: Kind) -> None:
    async with Caller(kind, "ftp://shop.example") as caller:
        with pytest.raises(httpx.UnsupportedProtocol):
            await caller.post()
    assert caller.clock.naps == []


async def test_a_call_in_flight_is_asked_again_when_its_server_says(kind: Kind) -> None:
    """HA-67."""
    with Origin(problem(409, "in_flight", Retry_After="2"), REPLAYED) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.post()
    assert [nap >= 2 for nap in caller.clock.naps] == [True]
    assert (response.status_code, len(origin.seen)) == (201, 2)


async def test_a_call_that_stays_in_flight_is_an_error_in_the_end(kind: Kind) -> None:
    with Origin(problem(423, "in_flight", Retry_After="2")) as origin:
        async with Caller(kind, origin.url) as caller:
            with pytest.raises(errors.KeyInFlight) as caught:
                await caller.post()
        async with Caller(kind, origin.url, raise_outcomes=False) as caller:
            returned = await caller.post()
    assert (caught.value.info.attempts, caught.value.retry_after) == (5, 2)
    assert (returned.status_code, call_info(returned).attempts) == (423, 5)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (422, "key_reused", errors.KeyReused),
        (409, "outcome_unknown", errors.OutcomeUnknown),
        (409, "executed", errors.AlreadyExecuted),
        (412, "key_window_passed", errors.KeyWindowPassed),
        (503, "outcome_unknown", holdfast.OutcomeUnknown),
    ],
)
async def test_what_the_server_knows_of_the_key_is_raised_at_once(
    kind: Kind, status: int, code: str, error: type[errors.IdempotencyError]
) -> None:
    """HA-67."""
    with Origin(problem(status, code, Location="/orders/1")) as origin:
        async with Caller(kind, origin.url) as caller:
            request = caller.build()
            with pytest.raises(error) as caught:
                await caller.send(request)
        async with Caller(kind, origin.url, raise_outcomes=False) as caller:
            returned = await caller.post()
    refused = cast("errors.IdempotencyError", caught.value)
    assert (refused.response.status_code, refused.response.json()["code"]) == (status, code)
    assert (refused.response.request, refused.response.is_closed) == (request, True)
    assert refused.response.headers["location"] == "/orders/1"
    assert refused.info == call_info(refused.response)
    assert refused.info.attempts == 1
    assert (returned.status_code, len(origin.seen)) == (status, 2)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(422, {"Content-Type": "application/json"}, b'{"code":"key_reused"}'),
        Reply(409, {"Content-Type": "application/problem+json"}, b'{"code":"sold_out","type":"/sold-out"}'),
        Reply(409, {"Content-Type": "application/problem+json"}, b'{"code":"in_flight","type":"/plane"}'),
        Reply(409),
        Reply(412),
        Reply(404),
        Reply(501),
        Reply(503, {"Idempotent-Replayed": "True"}),
    ],
)
async def test_answers_of_others_are_answers(kind: Kind, reply: Reply) -> None:
    with Origin(reply) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.post()
    assert (response.status_code, response.content) == (reply.status, reply.body)
    assert len(origin.seen) == 1


async def test_a_409_of_others_that_says_when_is_asked_again(kind: Kind) -> None:
    with Origin(Reply(409, {"Retry-After": "1"}), CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            assert (await caller.post()).status_code == 201
    assert caller.clock.naps == [1]


async def test_too_long_a_pause_ends_the_call(kind: Kind) -> None:
    with Origin(Reply(503, {"Retry-After": "61"})) as origin:
        async with Caller(kind, origin.url) as caller:
            assert (await caller.post()).status_code == 503
    assert len(origin.seen) == 1


async def test_no_attempt_begins_past_the_deadline(kind: Kind) -> None:
    policy = RetryPolicy(attempts_max=100, deadline=timedelta(seconds=10))
    with Origin(Reply(503, {"Retry-After": "3"})) as origin:
        async with Caller(kind, origin.url, policy=policy) as caller:
            response = await caller.post()
    assert (response.status_code, len(origin.seen)) == (503, 4)


async def test_no_attempt_begins_after_the_server_forgets(kind: Kind) -> None:
    expiry = {"Idempotency-Expires": "Thu, 01 Jan 2026 00:00:05 GMT", "Retry-After": "3"}
    with Origin(Reply(503, expiry)) as origin:
        async with Caller(kind, origin.url) as caller:
            await caller.post()
    assert len(origin.seen) == 2


async def test_a_server_in_trouble_gets_few_retries(kind: Kind) -> None:
    with Origin(Reply(503)) as origin:
        async with Caller(kind, origin.url, policy=RetryPolicy(budget=0.5)) as caller:
            for _ in range(20):
                await caller.post()
    assert len(origin.seen) == 20 + 10 + 10


async def test_an_open_ended_body_goes_out_once(kind: Kind) -> None:
    """HA-67."""

    def pieces() -> Iterator[bytes]:
        yield b"one"

    async def pieces_later() -> AsyncIterator[bytes]:
        yield b"one"

    with Origin(Reply(503)) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.post(content=pieces() if kind == "sync" else pieces_later())
    assert (response.status_code, call_info(response).attempts) == (503, 1)
    assert [(seen.body, seen.key is None) for seen in origin.seen] == [(b"one", False)]


async def test_a_form_with_files_goes_out_again_from_their_beginning(kind: Kind) -> None:
    with Origin(Reply(503), Reset(), CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            files = {"a": io.BytesIO(b"bytes of a"), "b": ("b.txt", "text of b")}
            response = await caller.post(data={"note": "n"}, files=files)
    assert response.status_code == 201
    assert len({seen.body for seen in origin.seen}) == 1
    assert b"bytes of a" in origin.seen[2].body


class Pipe(io.RawIOBase):
    """A file that cannot be rewound."""

    def __init__(self) -> None:
        self._pieces = [b"one", b""]

    def read(self, size: int = -1) -> bytes:
        return self._pieces.pop(0)

    def seekable(self) -> bool:
        return False


async def test_a_form_with_a_pipe_goes_out_once(kind: Kind) -> None:
    with Origin(Reply(503)) as origin:
        async with Caller(kind, origin.url) as caller:
            await caller.post(files={"a": Pipe()})
    assert len(origin.seen) == 1


# Responses


async def test_a_small_response_that_breaks_off_is_asked_for_again(kind: Kind) -> None:
    with Origin(Torn(CREATED), REPLAYED) as origin:
        async with Caller(kind, origin.url) as caller:
            info = call_info(await caller.post())
    assert (info.attempts, info.replayed, len(set(origin.keys))) == (2, True, 1)


async def test_a_large_response_that_breaks_off_is_its_readers_and_can_be_asked_for_again(kind: Kind) -> None:
    with Origin(Torn(Reply(201, {}, b"x" * 100_000)), REPLAYED) as origin:
        async with Caller(kind, origin.url) as caller:
            request = caller.build()
            with pytest.raises(httpx.TransportError):
                await caller.send(request)
            assert call_info(await caller.send(request)).replayed
    assert len(set(origin.keys)) == 1


async def test_responses_of_failed_attempts_are_closed(kind: Kind) -> None:
    """One connection must do: what is not closed would keep it."""
    failed = Reply(503, {}, b"x" * 100_000)
    document = problem(409, "in_flight")
    with Origin(failed, document, failed, CREATED) as origin:
        inner = inner_of(kind, limits=httpx.Limits(max_connections=1))
        async with Caller(kind, origin.url, inner=inner) as caller:
            assert (await caller.post()).status_code == 201
            origin.say(problem(422, "key_reused"))
            with pytest.raises(errors.KeyReused):
                await caller.post()
            origin.say(CREATED)
            assert (await caller.post()).status_code == 201


async def test_a_document_too_large_to_look_at_is_read_by_its_reader(kind: Kind) -> None:
    body = json.dumps({"code": "in_flight", "detail": "x" * PROBLEM_BYTES_MAX * 4}).encode()
    with Origin(Reply(409, {"Content-Type": "application/problem+json"}, body)) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.send(caller.build(), stream=True)
            assert await caller.read(response) == body
    assert (response.status_code, len(origin.seen)) == (409, 1)


async def test_no_more_than_a_document_is_read_ahead(kind: Kind) -> None:
    """Of a body that does not say how long it is."""
    taken: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            taken.append(number)
            yield b"x" * 1024

    async def pieces_later() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    def script(request: httpx.Request) -> httpx.Response:
        content = pieces() if kind == "sync" else pieces_later()
        return httpx.Response(409, headers={"Content-Type": "application/problem+json"}, content=content)

    async with Caller(kind, "http://shop.example", inner=httpx.MockTransport(script)) as caller:
        response = await caller.send(caller.build(), stream=True)
        assert len(taken) == PROBLEM_BYTES_MAX // 1024
        assert len(await caller.read(response)) == 1_024_000


async def test_a_document_that_was_looked_at_is_read_by_its_reader(kind: Kind) -> None:
    body = json.dumps({"code": "sold_out", "detail": "x" * 5000}).encode()
    headers = {"Content-Type": "application/problem+json", "Content-Encoding": "gzip"}
    with Origin(Reply(409, headers, gzip.compress(body))) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.send(caller.build(), stream=True)
            assert await caller.read(response) == body
            unread = await caller.send(caller.build(), stream=True)
            await caller.close(unread)


async def test_a_compressed_document_is_understood(kind: Kind) -> None:
    plain = problem(422, "key_reused")
    headers = {"Content-Type": "application/problem+json", "Content-Encoding": "gzip"}
    with Origin(Reply(422, headers, gzip.compress(plain.body))) as origin:
        async with Caller(kind, origin.url) as caller:
            with pytest.raises(errors.KeyReused):
                await caller.post()


@pytest.mark.parametrize(
    "body", [gzip.compress(b'{"code":"key_reused"}' + b" " * 30_000_000), b"no gzip"], ids=["bomb", "garbage"]
)
async def test_a_document_that_cannot_be_decoded_is_left_to_its_reader(kind: Kind, body: bytes) -> None:
    headers = {"Content-Type": "application/problem+json", "Content-Encoding": "gzip"}
    with Origin(Reply(422, headers, body)) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.send(caller.build(), stream=True)
            assert response.status_code == 422
            await caller.close(response)


async def test_a_stream_is_passed_on_as_it_comes(kind: Kind) -> None:
    body = bytes(range(256)) * 4096
    with Origin(Reply(200, {}, body)) as origin:
        async with Caller(kind, origin.url) as caller:
            response = await caller.send(caller.build(), stream=True)
            assert not response.is_stream_consumed
            assert await caller.read(response) == body


def test_a_response_of_another_transport_has_no_info() -> None:
    with pytest.raises(ConfigError):
        call_info(httpx.Response(200))


# What the program may do to an attempt


async def test_every_attempt_can_be_signed_anew(kind: Kind) -> None:
    prepared: list[tuple[int, str, bytes]] = []

    def sign(request: httpx.Request, attempt: int) -> None:
        assert "x-signature" not in request.headers
        prepared.append((attempt, request.headers["idempotency-key"], request.content))
        request.headers["X-Signature"] = f"s{attempt}"

    async def sign_later(request: httpx.Request, attempt: int) -> None:
        await asyncio.sleep(0)
        sign(request, attempt)

    prepare: Callable[[httpx.Request, int], Awaitable[None] | None] = sign if kind == "sync" else sign_later
    with Origin(Reply(503), CREATED) as origin:
        async with Caller(kind, origin.url, prepare=prepare) as caller:
            request = caller.build(content=b"one")
            await caller.send(request)
    assert prepared == [(1, origin.keys[0], b"one"), (2, origin.keys[0], b"one")]
    assert [seen.get("x-signature") for seen in origin.seen] == ["s1", "s2"]
    assert "x-signature" not in request.headers


async def test_a_request_without_a_key_is_signed_too(kind: Kind) -> None:
    def sign(request: httpx.Request, attempt: int) -> None:
        request.headers["X-Signature"] = f"s{attempt}"

    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url, prepare=sign) as caller:
            request = caller.build("GET")
            await caller.send(request)
    assert origin.seen[0].get("x-signature") == "s1"
    assert "x-signature" not in request.headers


async def test_a_name_without_a_journal_is_refused(kind: Kind) -> None:
    with Origin(CREATED) as origin:
        async with Caller(kind, origin.url) as caller:
            with pytest.raises(ConfigError, match="journal"):
                await caller.post(extensions={"holdfast.call": "order-1"})
    assert origin.seen == []


# Surroundings


class Watched(ManualClock):
    """A clock that says when somebody waits on it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_on = threading.Event()

    def _set(self, seconds: float, timer: Any) -> None:
        super()._set(seconds, timer)
        self.waited_on.set()


async def test_pauses_are_the_clocks(kind: Kind) -> None:
    clock = Watched()
    with Origin(Reply(503, {"Retry-After": "30"}), CREATED) as origin:
        async with Caller(kind, origin.url, clock=clock) as caller, asyncio.TaskGroup() as group:
            call = group.create_task(caller.post())
            await asyncio.to_thread(clock.waited_on.wait)
            await clock.advance(timedelta(seconds=29))
            assert len(origin.seen) == 1
            clock.advance(timedelta(seconds=1))
            assert (await call).status_code == 201


async def test_the_transport_can_be_used_by_itself(kind: Kind) -> None:
    """As a context manager it opens and closes what it wraps."""
    with Origin(CREATED) as origin:
        request = httpx.Request("POST", origin.url)
        if kind == "sync":
            with IdempotentTransport() as transport:
                response = await asyncio.to_thread(transport.handle_request, request)
                assert await asyncio.to_thread(response.read) == CREATED.body
        else:
            async with AsyncIdempotentTransport() as transport:
                response = await transport.handle_async_request(request)
                assert await response.aread() == CREATED.body
    assert call_info(response).key == origin.keys[0]


async def test_a_call_that_is_cancelled_keeps_its_key() -> None:
    with Origin(Hang(), CREATED) as origin:
        async with Caller("async", origin.url) as caller:
            request = caller.build()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await caller.send(request)
            await caller.send(request)
    assert len(set(origin.keys)) == 1


async def test_a_client_may_be_shared_between_threads(kind: Kind) -> None:
    with Origin(Reply(503), CREATED) as origin:
        if kind == "async":
            async with Caller(kind, origin.url) as caller:
                responses = await asyncio.gather(*(caller.post() for _ in range(16)))
        else:
            with httpx.Client(transport=IdempotentTransport(clock=Patient()), base_url=origin.url) as client:
                responses = []
                calls = [threading.Thread(target=lambda: responses.append(client.post("/"))) for _ in range(16)]
                for call in calls:
                    call.start()
                for call in calls:
                    await asyncio.to_thread(call.join)
    assert {response.status_code for response in responses} == {201}
    assert (len(set(origin.keys)), len(origin.seen)) == (16, 17)


# Against a guard


class Till:
    """A guarded application that takes money, when it is let."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self.open = threading.Event()
        config = IdempotencyConfig(principal=shared_principal("all"), secrets=[bytes(range(32))], allow_memory=True)
        self._guard = Idempotency(":memory:", config)
        self.app = IdempotencyMiddleware(Starlette(routes=[Route("/take", self._take, methods=["POST"])]), self._guard)

    async def _take(self, request: Request) -> JSONResponse:
        self.taken.append(await request.json())
        await asyncio.to_thread(self.open.wait)
        return JSONResponse({"taken": len(self.taken)}, 201)


def at_hand() -> dict[str, Any]:
    """Settings of a client whose pauses are over at once, and whose clock agrees with that of a real server."""
    clock = Patient()
    clock.set(datetime.now(UTC))
    return {"clock": clock, "policy": RetryPolicy(attempts_max=1000, deadline=timedelta(hours=1), budget=1000)}


async def test_a_guarded_application_does_once_what_a_client_had_to_send_again(kind: Kind) -> None:
    """HA-66: timeout, then in flight, then the replay."""
    till = Till()

    def let(request: httpx.Request, attempt: int) -> None:
        if attempt == 3:
            till.open.set()

    with Served(till.app) as served:
        async with Caller(kind, served.url, client={"timeout": HELD_UP}, prepare=let, **at_hand()) as caller:
            response = await caller.post("/take", json={"cents": 478})
    info = call_info(response)
    assert (response.status_code, response.json(), info.replayed) == (201, {"taken": 1}, True)
    assert info.attempts >= 3
    assert min(caller.clock.naps[1:]) >= 1
    assert till.taken == [{"cents": 478}]


async def test_a_guard_tells_a_client_that_its_key_was_used_for_something_else(kind: Kind) -> None:
    """HA-67."""
    till = Till()
    till.open.set()
    with Served(till.app) as served:
        async with Caller(kind, served.url, key_source=lambda request: "order-17", **at_hand()) as caller:
            await caller.post("/take", json={"cents": 1})
            with pytest.raises(errors.KeyReused) as caught:
                await caller.post("/take", json={"cents": 2})
    assert (caught.value.info.attempts, caught.value.response.status_code) == (1, 422)
    assert till.taken == [{"cents": 1}]


# In a durable step


async def test_a_durable_step_sends_its_own_key_in_every_life(kind: Kind, ledger: str) -> None:
    """The step's key is on the wire, and the same after a crash and replay."""
    keys: list[str] = []

    def own_key(request: httpx.Request) -> str:
        return holdfast.current_step().idempotency_key.hex()

    with Origin(CREATED, REPLAYED) as origin:
        caller = Caller(kind, origin.url, key_source=own_key)

        async def charge(cents: int) -> int:
            keys.append(holdfast.current_step().idempotency_key.hex())
            response: httpx.Response = await caller.client.post("/charges", json={"cents": cents})
            return response.status_code

        def charge_now(cents: int) -> int:
            keys.append(holdfast.current_step().idempotency_key.hex())
            response: httpx.Response = caller.client.post("/charges", json={"cents": cents})
            return response.status_code

        effect = holdfast.exactly_once("money", on_ambiguous=holdfast.rerun_with_key())
        step: Any = holdfast.step(effect=effect)(charge if kind == "async" else charge_now)

        async def order_later() -> Any:
            return await step(478)

        def order_now() -> Any:
            return step(478)

        order: Any = holdfast.durable(kind="order")(order_later if kind == "async" else order_now)

        async with holdfast.open(ledger) as hf:
            with crash("effect.returned", action="raise"), pytest.raises((Crashed, holdfast.StoreError)):
                await hf.run(order, id="order-1")
        async with holdfast.open(ledger) as hf:
            assert await hf.run(order, id="order-1") == 201
            assert await hf.run(order, id="order-1") == 201
        async with caller:
            pass
    assert origin.keys == keys
    assert (len(keys), len(set(keys))) == (2, 1)


def test_without_httpx_the_rest_of_the_slice_works_and_the_client_says_what_is_missing() -> None:
    program = """
import sys
sys.modules["httpx"] = None
import holdfast.idempotency
assert "holdfast.idempotency.client" not in sys.modules
try:
    import holdfast.idempotency.client
except holdfast.ConfigError as error:
    print(error.code, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "config.missing_extra pip install 'holdfast[client]'\n", done.stderr
