"""Keys and answers: what runs, what is replayed, what is refused, and what passes untouched, on every database."""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import timedelta

import pytest
from tests.flow.exchanges import Counting, ask, guarded

from holdfast.core.clock import micros
from holdfast.idempotency import IdempotencyMiddleware, Principal, RouteRule
from holdfast.idempotency.errors import IdentityUnproven
from holdfast.idempotency.headers import imf_date

K = "f2b0c5de-7a6b-4f50-9d5e-000000000001"


@pytest.fixture(params=["sqlite-memory", "sqlite-file", "postgres"])
def target(request: pytest.FixtureRequest, make_target: Callable[[str], str]) -> str:
    return make_target(request.param)


async def test_a_repeated_request_is_answered_from_the_record(target: str) -> None:
    """HA-1."""
    app = Counting(headers=[(b"Content-Type", b"application/json"), (b"x-made-by", b"test")])
    async with guarded(app, target) as shop:
        first = await shop.ask(K)
        assert (first.status, first.replayed, app.runs) == (201, False, 1)
        assert first.headers == app.headers

        again = await shop.ask(K)
        assert (again.status, again.body, again.replayed, app.runs) == (201, first.body, True, 1)
        assert again.headers == [
            (b"content-type", b"application/json"), (b"x-made-by", b"test"),
            (b"content-length", str(len(first.body)).encode()), (b"idempotency-replayed", b"true"),
        ]  # fmt: skip
        assert shop.decisions() == ["proceed", "replay"]


async def test_another_request_under_the_key_is_refused(target: str) -> None:
    """HA-2."""
    app = Counting()
    async with guarded(app, target) as shop:
        await shop.ask(K)
        for other in ({"body": b'{"amount":6}'}, {"path": "/orders?dry=1"}, {"path": "/carts"}, {"method": "PUT"}):
            refused = await shop.ask(K, **other)
            assert (refused.status, refused.code) == (422, "key_reused")
            assert refused.header("cache-control") == "no-store"
            assert refused.header("content-length") == str(len(refused.body))
            assert refused.header("link") is not None
            assert refused.header("link").endswith('; rel="describedby"')
            assert b"amount" not in refused.body
        assert app.runs == 1
        assert shop.decisions() == ["proceed", *["reused"] * 4]


@pytest.mark.parametrize("request_", [{"method": "GET", "key": K}, {"method": "POST", "key": None}])
async def test_what_is_not_keyed_gets_the_very_objects_of_the_server(target: str, request_: dict[str, str]) -> None:
    """HA-3, HA-4."""
    app = Counting()
    async with guarded(app, target) as shop:
        for run in (1, 2):
            made = shop.call(**request_)
            headers = made.scope["headers"]
            await made.run()
            seen = app.seen[-1]
            assert app.runs == run
            assert seen["scope"] is made.scope
            assert seen["receive"] == made.receive
            assert seen["send"] == made.send
            assert made.scope["headers"] is headers
            assert "http.response.pathsend" in seen["extensions"]
        assert shop.guard._opened is None, "the ledger was not even opened"
        assert shop.events == []


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "webtransport"])
async def test_other_protocols_pass_untouched(kind: str) -> None:
    seen = []

    async def app(*given: object) -> None:
        seen.append(given)

    async with guarded(app, ":memory:", rule=RouteRule(methods=None, key="required")) as shop:
        given = ({"type": kind}, object(), object())
        await shop.app(*given)
        assert seen[0][0] is given[0]
        assert seen[0][1:] == given[1:]


async def test_a_required_key_that_is_missing_is_named_before_the_body_is_read(target: str) -> None:
    """HA-5."""
    app = Counting()
    async with guarded(app, target, rule=RouteRule(key="required")) as shop:
        refused = await shop.ask(None)
        assert (refused.status, refused.code, refused.received) == (400, "key_missing", 0)
        assert refused.header("link") is not None
        assert "key_ref" not in refused.json
        assert (app.runs, shop.decisions()) == (0, ["refused"])
        assert (await shop.ask(K)).status == 201


async def test_a_key_is_refused_where_none_belongs_and_passed_by_where_it_is_ignored() -> None:
    app = Counting()
    async with guarded(app, ":memory:", rule=RouteRule(key="forbidden")) as shop:
        refused = await shop.ask("}{ no key")
        assert (refused.status, refused.code, refused.received, app.runs) == (400, "key_forbidden", 0, 0)
        assert (await shop.ask(None)).status == 201
    async with guarded(app, ":memory:", rule=RouteRule(key="ignored")) as shop:
        assert [(await shop.ask(K)).body for _ in range(2)] == [b'{"run":2}', b'{"run":3}']
        assert shop.events == []


async def test_a_quoted_and_a_bare_key_are_one(target: str) -> None:
    """HA-6."""
    app = Counting()
    async with guarded(app, target) as shop:
        assert not (await shop.ask('"abc"')).replayed
        assert (await shop.ask("abc")).replayed
        assert (await shop.ask(' "abc"\t')).replayed
    async with guarded(app, ":memory:", strict_sf=True) as shop:
        assert (await shop.ask('"abc"')).status == 201
        refused = await shop.ask("abc")
        assert (refused.status, refused.code) == (400, "key_invalid")


@pytest.mark.parametrize(
    "key", ["", "   ", '""', "k" * 256, "sch\xf6n", "a\x01b", "a,b", 'a"b', "a;b=1", "(a)", '"a', '"a" "b"', '"\\a"']
)
async def test_a_malformed_key_is_refused_without_a_row(key: str) -> None:
    """HA-7."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        refused = await shop.ask(key)
        assert (refused.status, refused.code, refused.received, app.runs) == (400, "key_invalid", 0, 0)
        assert await shop.rows() == 0


async def test_a_key_of_255_characters_is_accepted(target: str) -> None:
    """HA-7."""
    app = Counting()
    async with guarded(app, target) as shop:
        assert (await shop.ask("k" * 255)).status == 201
        assert await shop.rows() == 1


@pytest.mark.parametrize(
    "lines",
    [
        [(b"idempotency-key", b"a" * 20), (b"idempotency-key", b"a" * 20)],
        [(b"Idempotency-Key", b"a" * 20), (b"idempotency-key", b"b" * 20)],
        [(b"idempotency_key", b"a" * 20)],
        [(b"IDEMPOTENCY_KEY", b"a" * 20), (b"idempotency-key", b"a" * 20)],
    ],
)
async def test_two_lines_or_an_underscore_are_refused_without_a_row(lines: list[tuple[bytes, bytes]]) -> None:
    """HA-7."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        refused = await shop.ask(headers=lines)
        assert (refused.status, refused.code, app.runs) == (400, "key_invalid", 0)
        assert await shop.rows() == 0


async def test_header_names_are_compared_in_lower_case() -> None:
    app = Counting()
    async with guarded(app, ":memory:", headers=("Idempotency-Key", "X-Request-Key")) as shop:
        await shop.ask(headers=[(b"IDEMPOTENCY-KEY", K.encode())])
        assert (await shop.ask(headers=[(b"X-REQUEST-KEY", K.encode())])).replayed
        both = [(b"x-request-key", K.encode()), (b"idempotency-key", K.encode())]
        assert (await shop.ask(headers=both)).replayed
        disagree = [(b"x-request-key", K.encode()), (b"idempotency-key", b"another-key-of-mine")]
        assert (await shop.ask(headers=disagree)).code == "key_invalid"


async def test_what_a_server_appends_to_the_headers_while_the_body_arrives_does_not_count() -> None:
    """HX-23."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        made = shop.call(K, chunks=[b"{", b"}"])
        inner = made.receive

        async def receive() -> object:
            message = await inner()
            if not message["more_body"]:
                made.scope["headers"].append((b"idempotency-key", b"a-trailer-of-the-request"))
                made.scope["headers"].append((b"if-match", b'"late"'))
            return message

        await shop.app(made.scope, receive, made.send)
        assert made.answer.status == 201
        assert (await shop.ask(K, body=b"{}")).replayed


async def test_a_handlers_own_marker_is_removed(target: str) -> None:
    """HA-8."""
    app = Counting(headers=[(b"idempotency-replayed", b"true"), (b"x-kept", b"1")])
    async with guarded(app, target) as shop:
        assert (await shop.ask(K)).headers == [(b"x-kept", b"1")]
        assert (await shop.ask(K)).lines("idempotency-replayed") == ["true"]


async def test_end_to_end_fields_are_replayed_in_their_order(target: str) -> None:
    """HA-9."""
    kept = [
        (b"location", b"/orders/1"), (b"etag", b'"v1"'), (b"cache-control", b"private"), (b"link", b"</a>; rel=next"),
        (b"link", b"</b>; rel=prev"), (b"x-latin", b"caf\xe9"),
    ]  # fmt: skip
    dropped = [(b"date", b"today"), (b"connection", b"x-hop"), (b"x-hop", b"1"), (b"www-authenticate", b"Basic")]
    app = Counting(status=303, headers=[*kept[:3], *dropped, *kept[3:]], body=b"")
    async with guarded(app, target) as shop:
        first = await shop.ask(K)
        assert first.headers == app.headers
        again = await shop.ask(K)
        assert again.headers == [*kept, (b"content-length", b"0"), (b"idempotency-replayed", b"true")]


async def test_cookies_are_dropped_refused_or_kept_as_the_rule_says(target: str) -> None:
    """HA-10."""
    cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    app = Counting(headers=list(cookies))
    async with guarded(app, target) as shop:
        assert (await shop.ask(K)).lines("set-cookie") == ["a=1", "b=2"]
        assert (await shop.ask(K)).lines("set-cookie") == []
        keep = IdempotencyMiddleware(app, shop.guard, rule=RouteRule(set_cookie="keep"))
        await ask(keep, "another-key-of-mine-1")
        assert (await ask(keep, "another-key-of-mine-1")).lines("set-cookie") == ["a=1", "b=2"]
        refuse = IdempotencyMiddleware(app, shop.guard, rule=RouteRule(set_cookie="refuse"))
        assert (await ask(refuse, "another-key-of-mine-2")).lines("set-cookie") == ["a=1", "b=2"]
        executed = await ask(refuse, "another-key-of-mine-2")
        assert (executed.status, executed.code, executed.json["reason"]) == (409, "executed", "set_cookie")
        assert executed.json["executed_status"] == 201
        assert app.runs == 3


async def test_a_body_of_every_byte_is_replayed_as_it_was(target: str) -> None:
    """HA-11."""
    every = bytes(range(256)) * 3
    app = Counting(body=every)
    async with guarded(app, target) as shop:
        assert (await shop.ask(K, body=every)).body == every
        assert (await shop.ask(K, body=every)).body == every
        assert app.bodies == [every]


async def test_callers_do_not_see_each_others_keys(target: str) -> None:
    """HA-12."""
    app = Counting()
    async with guarded(app, target) as shop:
        for user, body in (("ann", b'{"run":1}'), ("bob", b'{"run":2}')):
            assert (await shop.ask(K, headers={"x-user": user})).body == body
        for user, body in (("ann", b'{"run":1}'), ("bob", b'{"run":2}')):
            again = await shop.ask(K, headers={"x-user": user})
            assert (again.body, again.replayed) == (body, True)
        assert app.runs == 2
        assert len({event.scope_ref for event in shop.events}) == 2


async def test_an_unproven_caller_is_refused_before_the_body_and_the_ledger(target: str) -> None:
    """HA-13."""
    app = Counting()
    async with guarded(app, target) as shop:
        refused = await shop.ask(K, headers={"x-user": "nobody"})
        assert (refused.status, refused.code, refused.received, app.runs) == (403, "identity_unproven", 0, 0)
        assert refused.header("www-authenticate") is None
        assert shop.guard._opened is None
    async with guarded(app, ":memory:", challenge='Bearer realm="shop"', principal=lambda scope: "") as shop:
        refused = await shop.ask(K)
        assert (refused.status, refused.code, refused.header("www-authenticate")) == (
            401,
            "identity_unproven",
            'Bearer realm="shop"',
        )
        assert await shop.rows() == 0


async def test_a_principal_may_be_found_asynchronously_and_refuse_by_raising() -> None:
    async def principal(scope: dict[str, object]) -> Principal:
        raise IdentityUnproven("the token of ann is revoked")

    app = Counting()
    async with guarded(app, ":memory:", principal=principal) as shop:
        refused = await shop.ask(K)
        assert (refused.status, refused.code) == (403, "identity_unproven")
        assert b"ann" not in refused.body


async def test_what_else_a_principal_function_raises_reaches_the_server() -> None:
    def principal(scope: dict[str, object]) -> Principal:
        raise LookupError("no session store")

    app = Counting()
    async with guarded(app, ":memory:", principal=principal) as shop:
        answer = await shop.ask(K)
        assert isinstance(answer.error, LookupError)
        assert (answer.messages, app.runs, shop.decisions()) == ([], 0, ["refused"])


async def test_a_refreshed_credential_replays_and_a_revoked_one_does_not() -> None:
    """HA-14."""
    tokens = {b"old": "ann", b"new": "ann"}

    def principal(scope: dict[str, list[tuple[bytes, bytes]]]) -> str | None:
        return tokens.get(dict(scope["headers"]).get(b"authorization", b""))

    app = Counting()
    async with guarded(app, ":memory:", principal=principal) as shop:
        await shop.ask(K, headers={"authorization": "old"})
        assert (await shop.ask(K, headers={"authorization": "new"})).replayed
        del tokens[b"new"]
        refused = await shop.ask(K, headers={"authorization": "new"})
        assert (refused.status, refused.code) == (403, "identity_unproven")


async def test_principals_whose_parts_join_alike_are_two() -> None:
    """HA-17."""
    who = iter([Principal("a", "bc"), Principal("ab", "c")])
    app = Counting()
    async with guarded(app, ":memory:", principal=lambda scope: next(who)) as shop:
        assert [(await shop.ask(K)).replayed for _ in range(2)] == [False, False]
        assert app.runs == 2


async def test_raw_and_json_bodies_are_compared_by_their_form(target: str) -> None:
    """HA-20, HA-21."""
    app = Counting()
    async with guarded(app, target) as shop:
        await shop.ask(K, body=b'{"a":1,"b":2}')
        assert (await shop.ask(K, body=b'{"a":1, "b":2}')).code == "key_reused"
        app_json = IdempotencyMiddleware(app, shop.guard, rule=RouteRule(body="json"))
        await ask(app_json, "another-key-of-mine", body=b'{"a":1,"b":2}')
        for same in (b'{"a":1, "b":2}', b' {"b":2,"a":1}\n', b'{"\\u0061":1,"b":2}'):
            assert (await ask(app_json, "another-key-of-mine", body=same)).replayed
        assert (await ask(app_json, "another-key-of-mine", body=b'{"a":1.0,"b":2}')).code == "key_reused"
        for bad in (b'{"a":1,"a":1}', b"{", b"\xef\xbb\xbf{}", b"[" * 65 + b"]" * 65):
            refused = await ask(app_json, "a-third-key-of-mine", body=bad)
            assert (refused.status, refused.code) == (400, "body_not_canonical")
            assert refused.json["key_ref"] == shop.events[-1].key_ref
        assert (app.runs, await shop.rows()) == (2, 2)


async def test_multipart_bodies_are_compared_by_their_parts(target: str) -> None:
    """HA-22."""

    def form(boundary: str, content: str) -> dict[str, object]:
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="f"\r\n\r\n{content}\r\n--{boundary}--\r\n'
        return {"body": body.encode(), "headers": {"content-type": f"multipart/form-data; boundary={boundary}"}}

    app = Counting()
    async with guarded(app, target, rule=RouteRule(body="multipart")) as shop:
        await shop.ask(K, **form("one", "pay 5"))
        assert (await shop.ask(K, **form("two", "pay 5"))).replayed
        assert (await shop.ask(K, **form("two", "pay 6"))).code == "key_reused"


async def test_configured_fields_belong_to_the_request(target: str) -> None:
    """HA-23."""
    app = Counting()
    async with guarded(app, target, fingerprint_headers=("api-version",)) as shop:
        await shop.ask(K, headers={"api-version": "1"})
        assert (await shop.ask(K, headers={"api-version": "2"})).code == "key_reused"
        assert (await shop.ask(K)).code == "key_reused"
        assert (await shop.ask(K, headers={"api-version": "1", "if-match": '"v2"'})).replayed
    async with guarded(app, ":memory:") as shop:
        await shop.ask(K, headers={"if-match": '"v1"'})
        assert (await shop.ask(K, headers={"if-match": '"v2"'})).code == "key_reused"


async def test_one_key_on_two_routes_is_two_operations_if_the_rules_say_so(target: str) -> None:
    """HA-24."""
    app = Counting()
    routes = tuple(RouteRule(path=path, key_scope="route") for path in ("/orders", "/carts"))
    async with guarded(app, target, routes=routes) as shop:
        assert not (await shop.ask(K, path="/orders")).replayed
        assert not (await shop.ask(K, path="/carts")).replayed
        assert (await shop.ask(K, path="/carts")).replayed
        assert (await shop.ask("another-key-of-mine", path="/a")).status == 201
        assert (await shop.ask("another-key-of-mine", path="/b")).code == "key_reused"
        assert {event.route for event in shop.events} == {"/orders", "/carts", "*"}


async def test_a_body_over_the_limit_is_refused_with_a_key_only(target: str) -> None:
    """HA-43."""
    app = Counting()
    async with guarded(app, target, rule=RouteRule(request_bytes_max=10)) as shop:
        declared = await shop.ask(K, body=b"x" * 11, headers={"content-length": "11"})
        assert (declared.status, declared.code, declared.received) == (413, "request_too_large", 0)
        assert declared.json["limit_bytes"] == 10
        assert declared.json["key_ref"] == shop.events[-1].key_ref
        counted = await shop.ask(K, chunks=[b"x" * 6, b"x" * 5, b"x" * 100])
        assert (counted.status, counted.code, counted.received) == (413, "request_too_large", 2)
        assert (app.runs, await shop.rows()) == (0, 0)
        assert (await shop.ask(None, body=b"x" * 11)).status == 201
        assert (await shop.ask(K, body=b"x" * 10)).status == 201


async def test_a_request_first_sent_before_outcomes_are_kept_only_looks(target: str) -> None:
    """HA-39."""
    app = Counting()
    async with guarded(app, target, rule=RouteRule(ttl=timedelta(hours=1))) as shop:
        await shop.ask(K)
        old = {"idempotency-first-sent": imf_date(shop.clock.now() - micros(timedelta(hours=2))).decode()}
        assert (await shop.ask(K, headers=old)).replayed
        late = await shop.ask("another-key-of-mine", headers=old)
        assert (late.status, late.code) == (412, "key_window_passed")
        assert (await shop.ask(K, headers=old, body=b"other")).code == "key_reused"
        assert (app.runs, await shop.rows()) == (1, 1)
        fresh = {"idempotency-first-sent": imf_date(shop.clock.now()).decode()}
        assert (await shop.ask("another-key-of-mine", headers=fresh)).status == 201
        for bad in ("yesterday", imf_date(shop.clock.now() + micros(timedelta(minutes=6))).decode()):
            refused = await shop.ask("a-third-key-of-mine", headers={"idempotency-first-sent": bad})
            assert (refused.status, refused.code) == (400, "first_sent_invalid")


async def test_an_expired_key_is_new() -> None:
    """HA-39."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        await shop.ask(K)
        shop.clock.advance(timedelta(hours=24))
        again = await shop.ask(K)
        assert (again.body, again.replayed) == (b'{"run":2}', False)
        assert shop.events[-1].attempt == 1


async def test_the_middleware_inside_itself_claims_once() -> None:
    """HA-30."""
    app = Counting()
    async with guarded(app, ":memory:") as shop:
        inner = IdempotencyMiddleware(app, shop.guard, rule=RouteRule(key="required"))
        outer = IdempotencyMiddleware(IdempotencyMiddleware(inner, shop.guard), shop.guard)
        assert [(await ask(outer, K)).replayed for _ in range(2)] == [False, True]
        assert (app.runs, await shop.rows(), shop.decisions()) == (1, 1, ["proceed", "replay"])
        assert (await ask(outer, None)).code == "key_missing"


async def test_observing_refuses_nothing_and_counts_duplicates() -> None:
    """HA-63."""
    app = Counting()
    async with guarded(app, ":memory:", observe=True, rule=RouteRule(key="required", request_bytes_max=100)) as shop:
        assert [(await shop.ask(K)).body for _ in range(3)] == [b'{"run":%d}' % run for run in (1, 2, 3)]
        assert shop.decisions() == ["proceed", "observed", "observed"]
        assert (await shop.ask(K, body=b"other")).status == 201
        assert (await shop.ask(None)).status == 201
        assert (await shop.ask("(no key)")).status == 201
        assert (await shop.ask(K, headers={"x-user": "nobody"})).status == 201
        large = [b"x" * 60, b"y" * 60, b"z"]
        assert (await shop.ask(K, chunks=large)).status == 201
        assert (await shop.ask(K, chunks=large, headers={"content-length": "121"})).status == 201
        assert app.bodies[-2:] == [b"".join(large)] * 2
        assert app.runs == 9
        told = [(event.kind, event.code, event.status) for event in shop.events[3:]]
        assert told == [
            ("observed", code, 201)
            for code in ("key_reused", "key_missing", "key_invalid", "identity_unproven", *["request_too_large"] * 2)
        ]


async def test_each_request_is_told_of_once_and_names_no_key() -> None:
    """HA-60."""
    app = Counting(status=201)
    async with guarded(app, ":memory:", routes=(RouteRule(path="/orders/{id}"),)) as shop:
        for number in range(1000):
            made = {"path": f"/orders/{number % 7}"} if number % 3 else {"headers": {"x-user": "nobody"}}
            await shop.ask(f"a-key-of-the-test-{number % 5}", **made)
        assert len(shop.decisions()) == 1000
        assert set(shop.decisions()) == {"proceed", "replay", "reused", "refused"}
        assert {event.route for event in shop.events} == {"/orders/{id}", "*"}
        assert all(event.latency_us is not None and event.status is not None for event in shop.events)
        assert "a-key-of-the-test" not in repr(shop.events)
        assert "user-1" not in repr(shop.events)


async def test_the_first_answer_can_name_key_marker_and_expiry() -> None:
    app = Counting(headers=[])
    settings = {"mark_first": True, "echo_key": True, "expires_header": True}
    async with guarded(app, ":memory:", **settings) as shop:
        first = await shop.ask('"a \\"key\\" of mine"')
        assert first.header("idempotency-replayed") == "false"
        assert first.header("idempotency-key") == '"a \\"key\\" of mine"'
        assert first.header("idempotency-expires") == imf_date(shop.clock.now() + micros(timedelta(hours=24))).decode()
        again = await shop.ask('"a \\"key\\" of mine"')
        assert again.header("idempotency-replayed") == "true"
        app.status = 429
        assert (await shop.ask(K)).header("idempotency-expires") is None


async def test_profiles_change_statuses_and_the_marker() -> None:
    app = Counting()
    async with guarded(app, ":memory:", profile="stripe") as shop:
        await shop.ask(K)
        assert (await shop.ask(K)).header("idempotent-replayed") == "true"
        assert (await shop.ask(K, body=b"other")).status == 400
        app.status = 500
        await shop.ask("another-key-of-mine")
        assert (await shop.ask("another-key-of-mine")).header("idempotent-replayed") == "true"
    async with guarded(app, ":memory:", profile={"key_reused": 409}) as shop:
        app.status = 201
        await shop.ask(K)
        assert (await shop.ask(K, body=b"other")).status == 409


async def test_a_replay_needs_the_consent_of_authorize_replay(target: str) -> None:
    allowed = [True, False, True]

    async def may_see(record: object, principal: Principal, scope: dict[str, object]) -> bool:
        assert (principal.subject, scope["path"]) == ("user-1", "/orders")
        return allowed.pop(0)

    app = Counting()
    async with guarded(app, target, authorize_replay=may_see) as shop:
        await shop.ask(K)
        assert (await shop.ask(K)).replayed
        refused = await shop.ask(K)
        assert (refused.status, refused.code) == (403, "replay_forbidden")
        assert (await shop.ask(K)).replayed
        assert (app.runs, shop.decisions()) == (1, ["proceed", "replay", "refused", "replay"])


async def test_the_policy_is_served_where_it_is_configured() -> None:
    app = Counting()
    async with guarded(app, ":memory:", policy_path="/.well-known/idempotency") as shop:
        told = await shop.ask(None, method="GET", path="/.well-known/idempotency")
        assert (told.status, told.header("content-type")) == (200, "application/json")
        assert told.json == shop.guard.policy()
        assert (await shop.ask(None, method="HEAD", path="/.well-known/idempotency")).body == b""
        assert (await shop.ask(None, method="POST", path="/.well-known/idempotency")).status == 201
        mounted = await shop.ask(None, method="GET", path="/api/.well-known/idempotency", root_path="/api")
        assert mounted.status == 200


async def test_replayed_bodies_are_decoded_for_clients_that_do_not_take_their_coding() -> None:
    import gzip

    packed = gzip.compress(b"hello" * 100)
    app = Counting(headers=[(b"content-encoding", b"gzip"), (b"etag", b'"v1"')], body=packed)
    async with guarded(app, ":memory:") as shop:
        first = await shop.ask(K, headers={"accept-encoding": "gzip"})
        assert first.body == packed
        assert (await shop.ask(K, headers={"accept-encoding": "gzip, br"})).body == packed
        plain = await shop.ask(K, headers={"accept-encoding": "identity"})
        assert (plain.body, plain.header("content-encoding"), plain.header("etag")) == (b"hello" * 100, None, 'W/"v1"')


async def test_answers_without_body_replay_without_length() -> None:
    for status in (204, 304):
        app = Counting(status=status, headers=[], body=b"")
        async with guarded(app, ":memory:") as shop:
            await shop.ask(K)
            again = await shop.ask(K)
            assert (again.status, again.body, again.header("content-length"), again.replayed) == (
                status,
                b"",
                None,
                True,
            )


async def test_scope_is_reduced_while_the_application_runs_and_restored_after() -> None:
    """HX-52, HA-48."""
    seen = {}

    async def app(scope: dict[str, object], receive: object, send: Callable[..., object]) -> None:
        seen.update(scope)
        scope["endpoint"] = "found"
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with guarded(app, ":memory:") as shop:
        extensions = {
            "tls": {"version": 1},
            "http.response.debug": {},
            "http.response.early_hint": {},
            "http.response.pathsend": {},
        }
        made = shop.call(K, headers={"accept-encoding": "gzip", "x-a": "1"}, extensions=extensions)
        before = dict(made.scope)
        await made.run()
        assert seen["extensions"].keys() == {"tls", "http.response.debug", "http.response.early_hint"}
        assert seen["headers"] == [field for field in before["headers"] if field[0] != b"accept-encoding"]
        assert seen["holdfast.idempotency"].attempt == 1
        assert made.scope == before | {"endpoint": "found"}
        assert made.scope["extensions"] is extensions
        assert made.scope["headers"] is before["headers"]


async def test_a_request_leaves_nothing_behind_that_only_the_collector_finds() -> None:
    """Rings of objects are swept late: until then no memory is used twice, and every request pays for the sweep."""
    async with guarded(Counting(), ":memory:") as site:
        await site.ask("the first one opens the ledger")
        gc.collect()
        gc.disable()
        try:
            for number in range(20):
                key = f"request-number-{number:04d}"
                assert (await site.ask(key)).status == 201
                assert (await site.ask(key)).replayed
            assert gc.collect() < 20, "a ring in every request would be at least two objects each"
        finally:
            gc.enable()
