"""Whatever a stranger sends is answered, and whatever an application sends in order reaches its client."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.flow.exchanges import Call, Counting, guarded, http_scope

from holdfast.idempotency import RouteRule

K = (b"idempotency-key", b"f2b0c5de-7a6b-4f50-9d5e-000000000008")
names = st.sampled_from(
    [b"idempotency-key", b"Idempotency-Key", b"idempotency_key", b"idempotency-first-sent", b"content-type",
     b"content-length", b"content-encoding", b"accept-encoding", b"if-match", b"x-user", b"connection", b"cookie"]
) | st.binary(max_size=8)  # fmt: skip
values = st.sampled_from(
    [K[1], b'"quoted key of mine"', b"application/json", b"multipart/form-data; boundary=b", b"gzip", b"9" * 400, b"-1",
     b"Sun, 06 Nov 1994 08:49:37 GMT", b"\xff\xfe", b"", b"a, b", b'"']
) | st.binary(max_size=40)  # fmt: skip
lines = st.lists(st.tuples(names, values), max_size=6)
requests = st.fixed_dictionaries(
    {
        "headers": st.one_of(lines, lines.map(lambda drawn: [K, *drawn])),
        "method": st.sampled_from(["POST", "PUT", "GET", "post", "PROPFIND"]),
        "path": st.sampled_from(["/orders", "/", "", "/a%2Fb", "/\u00e9", "//x", "*"]),
        "query_string": st.binary(max_size=10),
        "raw_path": st.none() | st.binary(max_size=10),
        "extensions": st.none() | st.just({}) | st.just({"http.response.push": {}}),
    }
)
chunks = st.lists(st.binary(max_size=20) | st.sampled_from([b'{"a":1}', b"--b\r\n\r\nx\r\n--b--"]), max_size=4)
forms = st.sampled_from(["raw", "json", "multipart"])


def run(coroutine: Any) -> None:
    with asyncio.Runner() as runner:
        runner.run(coroutine)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(requests, chunks, st.booleans()), min_size=1, max_size=4), forms)
def test_any_request_is_answered_or_its_client_has_left(drawn: list[Any], form: Any) -> None:
    async def check() -> None:
        app = Counting()
        async with guarded(app, ":memory:", rule=RouteRule(body=form, request_bytes_max=50)) as shop:
            for scope, body, leaves in drawn:
                wanted = {name: value for name, value in scope.items() if name != "raw_path" or value is not None}
                made = Call(shop.app, http_scope(**wanted), body, whole=not leaves)
                before = dict(made.scope)
                if leaves:
                    made.leave()
                told = len(shop.decisions())
                answer = await made.run()
                assert answer.error is None
                assert answer.messages == [] or answer.ended
                assert answer.messages or leaves
                keyed = any(name.lower().replace(b"_", b"-") == b"idempotency-key" for name, _ in wanted["headers"])
                guarded_ = keyed and wanted["method"] in ("POST", "PUT")
                assert len(shop.decisions()) - told == guarded_
                assert {name: before[name] for name in before} == made.scope

    run(check())


field_names = st.sampled_from([b"x", b"Set-Cookie", b"content-type", b"x y", b"idempotency-control"])
heads = st.fixed_dictionaries(
    {
        "status": st.sampled_from([200, 201, 301, 400, 409, 429, 500, 503, 101]),
        "headers": st.lists(st.tuples(field_names, values), max_size=4),
    }
).map(lambda head: {"type": "http.response.start"} | head)  # fmt: skip
pieces = st.lists(st.binary(max_size=12), max_size=5)
extras = st.sampled_from(
    [None, {"type": "http.response.debug", "info": {}}, {"type": "http.response.push", "path": "/"}]
)
ends = st.sampled_from(["whole", "open", "raises", "open, raises"])
policies = st.builds(
    RouteRule,
    flush=st.sampled_from(["after_settle", "early"]),
    set_cookie=st.sampled_from(["drop", "keep", "refuse"]),
    on_5xx=st.sampled_from(["release", "freeze", "ambiguous"]),
    stream=st.booleans(),
    response_bytes_max=st.sampled_from([10, 1000]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(heads, pieces, extras, st.integers(0, 3), ends, policies)
def test_any_orderly_response_reaches_the_client_byte_by_byte(
    head: Any, parts: list[bytes], extra: Any, where: int, end: str, rule: RouteRule
) -> None:
    class Failed(Exception):
        pass

    script = [head, *({"type": "http.response.body", "body": part, "more_body": True} for part in parts)]
    if not end.startswith("open"):
        script.append({"type": "http.response.body", "body": b"."})
    if extra is not None:
        script.insert(min(where, len(script) - 1), extra)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for message in script:
            await send(message)
        if end.endswith("raises"):
            raise Failed

    async def check() -> None:
        async with guarded(app, ":memory:", rule=rule) as shop:
            answer = await shop.call(K[1].decode()).run()
            assert isinstance(answer.error, Failed) == end.endswith("raises")
            assert answer.body == b"".join(parts) + (b"" if end.startswith("open") else b".")
            assert answer.ended == (not end.startswith("open"))
            starts = [message for message in answer.messages if message["type"] == "http.response.start"]
            assert [start["status"] for start in starts] == [head["status"]]
            controls = [(name, value) for name, value in head["headers"] if name != b"idempotency-control"]
            assert starts[0]["headers"] == controls
            assert (extra is None) or extra in answer.messages
            assert len(shop.decisions()) == 1
            again = await shop.call(K[1].decode()).run()
            assert again.messages
            marked = (b"idempotency-replayed", b"true") in again.headers
            if marked and (b"content-type", b"application/problem+json") not in again.headers:
                assert (again.body, again.status) == (answer.body, answer.status)

    run(check())
