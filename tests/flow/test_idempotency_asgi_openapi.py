"""What OpenAPI documents say of guarded operations, and that drift is found."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Header
from litestar import Litestar, get, post
from litestar.params import FromPath
from starlette.applications import Starlette
from tests.flow.exchanges import ask, config

from holdfast.idempotency import Idempotency, IdempotencyConfig, RouteRule, idempotent, openapi_for
from holdfast.idempotency.answers import SITUATIONS
from holdfast.idempotency.errors import KeyInvalid
from holdfast.idempotency.identity import parse_key
from holdfast.idempotency.openapi import contribute, merge, problem_schema
from holdfast.integrations import fastapi as fastapi_integration
from holdfast.integrations.litestar import IdempotencyPlugin
from holdfast.testing import assert_openapi_matches

Document = dict[str, Any]


def fastapi_app(guard: Idempotency) -> Any:
    app, router = FastAPI(), APIRouter()

    @app.post("/orders/{order_id}", status_code=201)
    @idempotent(required=True, ttl=timedelta(hours=72))
    async def order(order_id: int, body: dict[str, int]) -> dict[str, int]:
        return body

    @router.put("/carts/{name}")
    async def cart(name: str, idempotency_key: str = Header()) -> str:
        return name

    @app.post("/batch")
    @idempotent(key="forbidden")
    async def batch() -> int:
        return 1

    @app.post("/search")
    @idempotent(key="ignored")
    async def search() -> int:
        return 1

    @app.get("/orders/{order_id}")
    async def show(order_id: int) -> int:
        return order_id

    app.include_router(router, prefix="/v1")
    fastapi_integration.install(app, guard)
    return app


def litestar_app(guard: Idempotency) -> Any:
    @post("/orders/{order_id:int}")
    @idempotent(required=True, ttl=timedelta(hours=72))
    async def order(order_id: FromPath[int]) -> int:
        return order_id

    @post("/v1/carts/{name:str}")
    async def cart(name: FromPath[str]) -> str:
        return name

    @post("/batch")
    @idempotent(key="forbidden")
    async def batch() -> int:
        return 1

    @post("/search")
    @idempotent(key="ignored")
    async def search() -> int:
        return 1

    @get("/orders/{order_id:int}")
    async def show(order_id: FromPath[int]) -> int:
        return order_id

    return Litestar([order, cart, batch, search, show], plugins=[IdempotencyPlugin(guard)])


def document_of(app: Any) -> Document:
    made = app.openapi() if isinstance(app, FastAPI) else app.openapi_schema.to_schema()
    return copy.deepcopy(made)


def guard_of(**settings: Any) -> Idempotency:
    return Idempotency(":memory:", config(**settings))


@pytest.mark.parametrize("build", [fastapi_app, litestar_app])
async def test_every_guarded_operation_has_header_answers_and_lifetime(build: Callable[[Idempotency], Any]) -> None:
    """HA-69."""
    guard = guard_of()
    app = build(guard)
    document = document_of(app)
    assert_openapi_matches(document, guard, app)
    order = document["paths"]["/orders/{order_id}"]["post"]
    header = next(each for each in order["parameters"] if each["name"] == "Idempotency-Key")
    assert (header["required"], header["schema"]["minLength"], header["schema"]["maxLength"]) == (True, 1, 255)
    assert {"400", "403", "409", "413", "422", "429", "503"} <= set(order["responses"])
    assert order["x-idempotency"] == {"key": "required", "lifetime": "P3D"}
    assert "Idempotency-Replayed" in order["responses"]["201"]["headers"]
    assert "Retry-After" in order["responses"]["409"]["headers"]
    problem = order["responses"]["409"]["content"]["application/problem+json"]["schema"]
    assert problem == {"$ref": "#/components/schemas/IdempotencyProblem"}
    assert document["components"]["schemas"]["IdempotencyProblem"] == problem_schema()

    (cart,) = document["paths"]["/v1/carts/{name}"].values()
    assert [each["required"] for each in cart["parameters"] if each["name"].lower() == "idempotency-key"] == [False]
    batch = document["paths"]["/batch"]["post"]
    assert (batch["x-idempotency"]["key"], batch.get("parameters", [])) == ("forbidden", [])
    for path, method in (("/search", "post"), ("/orders/{order_id}", "get")):
        assert "x-idempotency" not in document["paths"][path][method]
    assert document_of(app) == document, "merging again changes nothing"
    await guard.stop()


@pytest.mark.parametrize("build", [fastapi_app, litestar_app])
async def test_drift_is_found_and_named(build: Callable[[Idempotency], Any]) -> None:
    """HA-69."""
    guard = guard_of()
    app = build(guard)

    def without_header(document: Document) -> None:
        order = document["paths"]["/orders/{order_id}"]["post"]
        order["parameters"] = [each for each in order["parameters"] if each["name"] != "Idempotency-Key"]

    def without_answer(document: Document) -> None:
        del document["paths"]["/orders/{order_id}"]["post"]["responses"]["409"]

    def another_answer(document: Document) -> None:
        document["paths"]["/orders/{order_id}"]["post"]["responses"]["422"]["content"].pop("application/problem+json")

    def without_marker(document: Document) -> None:
        del document["paths"]["/orders/{order_id}"]["post"]["responses"]["201"]["headers"]

    def another_lifetime(document: Document) -> None:
        document["paths"]["/orders/{order_id}"]["post"]["x-idempotency"]["lifetime"] = "P1D"

    def without_schema(document: Document) -> None:
        del document["components"]["schemas"]["IdempotencyProblem"]

    def says_too_much(document: Document) -> None:
        document["paths"]["/search"]["post"]["x-idempotency"] = {"key": "optional", "lifetime": "P1D"}

    for spoil in (
        without_header, without_answer, another_answer, without_marker, another_lifetime, without_schema, says_too_much,
    ):  # fmt: skip
        document = document_of(app)
        spoil(document)
        with pytest.raises(AssertionError) as raised:
            assert_openapi_matches(document, guard, app)
        named = {"without_schema": "IdempotencyProblem", "says_too_much": "POST /search"}
        assert named.get(spoil.__name__, "POST /orders/{order_id}") in str(raised.value)
    await guard.stop()


async def test_the_document_that_is_served_says_it() -> None:
    guard = guard_of()
    for build, path in ((fastapi_app, "/openapi.json"), (litestar_app, "/schema/openapi.json")):
        app = build(guard)
        served = await ask(app, None, method="GET", path=path)
        assert_openapi_matches(json.loads(served.body), guard, app)
    await guard.stop()


async def test_contribute_speaks_for_a_litestar_application_that_exists() -> None:
    @post("/orders")
    async def order() -> int:
        return 1

    guard, app = guard_of(), Litestar([order])
    contribute(app, guard)
    assert_openapi_matches(document_of(app), guard, app)
    other = Litestar([order])
    assert "x-idempotency" not in document_of(other)["paths"]["/orders"]["post"]
    contribute(Starlette(), guard)  # it has no document


async def test_a_guarded_route_that_is_added_later_is_in_the_document() -> None:
    guard = guard_of()
    app = fastapi_app(guard)
    app.openapi()

    @app.post("/late")
    async def late() -> int:
        return 1

    assert_openapi_matches(document_of(app), guard, app)
    assert "x-idempotency" in app.openapi()["paths"]["/late"]["post"]


def test_merging_keeps_what_the_application_says() -> None:
    document: Document = {
        "paths": {
            "/a": {
                "parameters": [],
                "post": {
                    "parameters": [{"name": "x", "in": "query"}, {"name": "idempotency-key", "in": "header"}],
                    "responses": {
                        "200": {"description": "mine", "headers": {"x": {}}},
                        "422": {"description": "mine", "content": {"application/json": {}}},
                        "429": {"$ref": "#/components/responses/Slow"},
                    },
                },
            }
        }
    }
    guard = guard_of(challenge="Bearer", echo_key=True, expires_header=True, mark_first=True)
    operation = merge(document, guard, None)["paths"]["/a"]["post"]
    assert [each["name"] for each in operation["parameters"]] == ["x", "Idempotency-Key", "Idempotency-First-Sent"]
    assert operation["responses"]["200"]["description"] == "mine"
    success = operation["responses"]["200"]["headers"]
    assert set(success) == {"x", "Idempotency-Replayed", "Idempotency-Key", "Idempotency-Expires"}
    assert success["Idempotency-Replayed"]["schema"]["enum"] == ["true", "false"]
    assert set(operation["responses"]["422"]["content"]) == {"application/json", "application/problem+json"}
    assert operation["responses"]["429"] == {"$ref": "#/components/responses/Slow"}
    assert "WWW-Authenticate" in operation["responses"]["401"]["headers"]
    assert_openapi_matches(document, guard, None)


def codes(rule: RouteRule, settings: IdempotencyConfig) -> set[str]:
    described = " ".join(each["description"] for each in openapi_for(rule, settings)["responses"].values())
    return set(re.findall(r"`(\w+)`", described))


def test_each_rule_names_the_codes_that_it_may_answer_with() -> None:
    """HX-117."""
    plain = codes(RouteRule(), config())
    assert plain.isdisjoint(
        {"key_missing", "body_not_canonical", "handler_timeout", "handler_failed", "store_busy", "replay_forbidden"}
    )
    rich = RouteRule(key="required", body="json", on_5xx="freeze", handler_timeout=timedelta(seconds=2))
    settings = config(authorize_replay=lambda record, principal, scope: True)
    assert codes(rich, settings) == set(SITUATIONS) - {"key_forbidden", "transaction_misused", "store_busy"}
    assert codes(RouteRule(key="forbidden"), config()) == {"key_forbidden"}
    assert openapi_for(RouteRule(key="ignored"), config()) == {}
    assert problem_schema()["properties"]["code"]["enum"] == list(SITUATIONS)
    assert "409" in openapi_for(RouteRule(), config(profile={"key_reused": 409}))["responses"]
    assert "423" in openapi_for(RouteRule(), config(profile="lock423"))["responses"]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("key_format", ["any", "uuid", "uuid4", "uuid7", re.compile(r"ord-[0-9]+")])
def test_the_pattern_of_the_header_is_what_is_accepted(key_format: Any, strict: bool) -> None:
    settings = config(key_format=key_format, strict_sf=strict)
    parameter = openapi_for(RouteRule(), settings)["parameters"][0]
    pattern = re.compile(parameter["schema"]["pattern"])
    four, seven = "f2b0c5de-7a6b-4f50-9d5e-000000000005", "0199c5de-7a6b-7f50-9d5e-000000000005"
    bare = [
        "abc",
        "a b",
        'a"b',
        "a,b",
        "(a",
        "a(",
        "?a",
        ":a",
        "@a",
        "a;b",
        "a\\b",
        "~!",
        "ord-7",
        "ord-",
        four,
        seven,
        four.upper(),
        "",
    ]
    for sent in [*bare, *(f'"{key}"' for key in bare), '"a\\"b"', '" a"', '"a "', '"(a"', '"a', '"a\\\\"']:
        try:
            accepted = parse_key([(b"idempotency-key", sent.encode())], settings) is not None
        except KeyInvalid:
            accepted = False
        assert (pattern.search(sent) is not None) == accepted, sent
