"""The same journey under every framework, and the rules that endpoints declare in each."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from litestar import Controller, Litestar
from litestar import Request as LitestarRequest
from litestar import post as litestar_post
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import DefineMiddleware
from quart import Quart
from quart import request as quart_request
from quart.views import MethodView
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Host, Mount, Route, Router
from tests.flow.exchanges import ask, call, config

from holdfast.core.errors import ConfigError
from holdfast.idempotency import (
    Idem,
    Idempotency,
    IdempotencyMiddleware,
    RouteRule,
    current,
    idempotent,
    principal_from_user,
)
from holdfast.idempotency.declare import Fields, declared, endpoints
from holdfast.integrations import fastapi as fastapi_integration
from holdfast.integrations import quart as quart_integration
from holdfast.integrations import starlette as starlette_integration
from holdfast.integrations.litestar import IdempotencyPlugin
from holdfast.testing import ManualClock

K = "f2b0c5de-7a6b-4f50-9d5e-000000000005"
LARGE = b"x" * 3000
App = Callable[[Any, Any, Any], Any]
Runs = list[bytes]


def bare_app(guard: Idempotency, runs: Runs) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        runs.append(message["body"])
        body = LARGE if scope["path"] == "/large" else b'{"run":%d}' % len(runs)
        head = [(b"content-type", b"application/json"), (b"location", b"/orders/1")]
        await send({"type": "http.response.start", "status": 201, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return IdempotencyMiddleware(app, guard)


def starlette_app(guard: Idempotency, runs: Runs) -> App:
    async def order(request: Any) -> Response:
        runs.append(await request.body())
        body = LARGE if request.url.path == "/large" else b'{"run":%d}' % len(runs)
        return Response(body, 201, {"location": "/orders/1"}, media_type="application/json")

    app = Starlette(routes=[Route(path, order, methods=["POST"]) for path in ("/orders", "/large")])
    app.add_middleware(IdempotencyMiddleware, guard=guard)
    return app


def fastapi_app(guard: Idempotency, runs: Runs) -> App:
    app = FastAPI()

    @app.post("/orders", status_code=201)
    @app.post("/large", status_code=201)
    async def order(request: Request) -> Response:
        runs.append(await request.body())
        body = LARGE if request.url.path == "/large" else b'{"run":%d}' % len(runs)
        return Response(body, 201, {"location": "/orders/1"}, media_type="application/json")

    fastapi_integration.install(app, guard)
    return app


def litestar_app(guard: Idempotency, runs: Runs) -> App:
    @litestar_post(["/orders", "/large"])
    async def order(request: LitestarRequest[Any, Any, Any]) -> Any:
        from litestar import Response as LitestarResponse

        runs.append(await request.body())
        body = LARGE if request.url.path == "/large" else b'{"run":%d}' % len(runs)
        return LitestarResponse(body, status_code=201, headers={"location": "/orders/1"}, media_type="application/json")

    return Litestar([order], middleware=[DefineMiddleware(IdempotencyMiddleware, guard=guard)])


def quart_app(guard: Idempotency, runs: Runs) -> App:
    app = Quart(__name__)

    @app.post("/orders")
    @app.post("/large")
    async def order() -> Any:
        runs.append(await quart_request.get_data())
        body = LARGE if quart_request.path == "/large" else b'{"run":%d}' % len(runs)
        return body, 201, {"location": "/orders/1", "content-type": "application/json"}

    quart_integration.install(app, guard)
    return app


@pytest.mark.parametrize("kind", ["sqlite-memory", "sqlite-file", "postgres"])
@pytest.mark.parametrize("build", [bare_app, starlette_app, fastapi_app, litestar_app, quart_app])
async def test_the_journey_is_the_same_under_every_framework(
    build: Callable[[Idempotency, Runs], App], kind: str, make_target: Callable[[str], str]
) -> None:
    """HA-70: HA-1, HA-2, HA-12, HA-44."""
    runs: Runs = []
    rule = RouteRule(response_bytes_max=2000)
    async with Idempotency(make_target(kind), config(rule=rule)) as guard:
        app = build(guard, runs)
        first = await ask(app, K)
        assert (first.status, first.body, first.replayed, runs) == (201, b'{"run":1}', False, [b'{"amount":5}'])
        again = await ask(app, K)
        assert (again.status, again.body, again.replayed, len(runs)) == (201, first.body, True, 1)
        assert again.header("content-type") == first.header("content-type")
        assert again.header("location") == "/orders/1"
        assert (await ask(app, K, body=b"other")).code == "key_reused"
        assert (await ask(app, K, path="/orders?dry=1")).code == "key_reused"

        other = await ask(app, K, headers={"x-user": "bob"})
        assert (other.body, other.replayed) == (b'{"run":2}', False)
        assert (await ask(app, K, headers={"x-user": "bob"})).body == b'{"run":2}'
        assert (await ask(app, K)).body == first.body

        large = await ask(app, "another-key-of-mine", path="/large")
        assert (large.body, large.ended) == (LARGE, True)
        executed = await ask(app, "another-key-of-mine", path="/large")
        assert (executed.code, executed.json["reason"], executed.header("location")) == (
            "executed",
            "oversize",
            "/orders/1",
        )
        assert len(runs) == 3
        assert (await ask(app, None)).body == b'{"run":4}'


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("outside", [False, True])
async def test_base_http_middleware_may_stand_on_either_side(inside: bool, outside: bool) -> None:
    """HA-46."""

    async def dispatch(request: Any, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["x-passed"] = "1"
        return response

    runs = []

    async def order(request: Any) -> Response:
        runs.append(await request.body())
        idem = current()
        assert idem is not None
        return StreamingResponse(iter([b"a", b"b", b"%d" % idem.attempt]), 201)

    async with Idempotency(":memory:", config()) as guard:
        app = Starlette(routes=[Route("/orders", order, methods=["POST"])])
        if inside:
            app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
        app.add_middleware(IdempotencyMiddleware, guard=guard)
        if outside:
            app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
        for replayed in (False, True):
            answer = await ask(app, K)
            assert (answer.status, answer.body, answer.replayed) == (201, b"ab1", replayed)
        assert runs == [b'{"amount":5}']


async def test_gzip_may_stand_outside() -> None:
    async def order(request: Any) -> Response:
        assert "accept-encoding" not in request.headers
        return Response(b"hello" * 1000, 201)

    async with Idempotency(":memory:", config()) as guard:
        app = Starlette(routes=[Route("/orders", order, methods=["POST"])])
        app.add_middleware(IdempotencyMiddleware, guard=guard)
        app.add_middleware(GZipMiddleware)
        first = await ask(app, K, headers={"accept-encoding": "gzip"})
        again = await ask(app, K, headers={"accept-encoding": "gzip"})
        assert first.header("content-encoding") == again.header("content-encoding") == "gzip"
        plain = await ask(app, K)
        assert (plain.body, plain.replayed, plain.header("content-encoding")) == (b"hello" * 1000, True, None)


async def test_background_tasks_of_fastapi_run_after_the_outcome_is_settled() -> None:
    """HA-28."""
    go_on, ended = asyncio.Event(), []

    async with Idempotency(":memory:", config()) as guard:
        app = FastAPI()

        async def later() -> None:
            await go_on.wait()
            ended.append(1)

        @app.post("/orders")
        async def order(background: BackgroundTasks) -> dict[str, int]:
            background.add_task(later)
            return {"n": 1}

        fastapi_integration.install(app, guard)
        made = call(app, K)
        running = await made.start()
        await made.until(lambda answer: answer.ended)
        assert (await ask(app, K)).replayed
        assert ended == []
        go_on.set()
        await running
        assert ended == [1]


async def test_the_handler_can_ask_for_its_request_in_plain_functions_and_dependencies() -> None:
    seen: list[Idem | None] = []
    async with Idempotency(":memory:", config()) as guard:
        app = FastAPI()

        @app.post("/orders")
        def order(idem: Annotated[Any, Depends(current)]) -> dict[str, int]:
            seen.extend([idem, current()])
            return {"n": 1}

        fastapi_integration.install(app, guard)
        await ask(app, K)
        assert isinstance(seen[0], Idem)
        assert seen[0] is seen[1]
        await ask(app, None)
        assert seen[2:] == [None, None]
        assert current() is None


async def test_what_routing_writes_into_the_scope_is_visible_outside() -> None:
    """HX-52."""
    seen = {}

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        seen.update(scope)

    async def order(request: Any) -> Response:
        return Response(b"", 201)

    async with Idempotency(":memory:", config()) as guard:
        app = IdempotencyMiddleware(Starlette(routes=[Route("/orders/{n}", order, methods=["POST"])]), guard)
        await ask(outer, K, path="/orders/7")
        assert seen["path_params"] == {"n": "7"}
        assert seen["endpoint"] is order


# --- declarations


def ok(request: Any = None) -> JSONResponse:
    return JSONResponse({"n": 1}, 201)


def test_a_declaration_returns_what_it_is_given_and_takes_the_fields_of_a_rule() -> None:
    declare = idempotent(required=True, ttl=timedelta(hours=72))

    def function() -> None: ...

    class Thing:
        def method(self) -> None: ...

    for endpoint in (
        function,
        Thing,
        Thing.method,
        functools.partial(function),
        Thing().method,
        staticmethod(function),
    ):
        assert declare(endpoint) is endpoint
    assert declared(function, "POST") is declared(functools.partial(function), "POST")
    assert set(Fields.__annotations__) == set(RouteRule.__dataclass_fields__) - {"path", "methods"}
    with pytest.raises(ConfigError):
        idempotent(lease=timedelta(0))
    with pytest.raises(ConfigError):
        idempotent(path="/orders")  # never a declaration's
    with pytest.raises(ConfigError):
        idempotent(required=True, key="forbidden")
    with pytest.raises(ConfigError):
        idempotent()(3)


async def test_only_declared_and_listed_routes_are_guarded_without_a_rule() -> None:
    @idempotent(ttl=timedelta(hours=72))
    async def pay(request: Any) -> Response:
        return ok()

    async def note(request: Any) -> Response:
        return ok()

    settings = config(rule=None, routes=(RouteRule(path="/listed/{id}", key="required"),))
    async with Idempotency(":memory:", settings) as guard:
        routes = [Route("/pay/{id:int}", pay, methods=["GET", "POST"]), Route("/note", note, methods=["POST"])]
        app = Starlette(routes=[*routes, Route("/listed/{id}", note, methods=["POST"])])
        app.add_middleware(IdempotencyMiddleware, guard=guard)
        assert [(await ask(app, K, path="/pay/1")).replayed for _ in range(2)] == [False, True]
        assert [(await ask(app, K, path="/note")).replayed for _ in range(2)] == [False, False]
        assert (await ask(app, None, path="/listed/1")).code == "key_missing"
        assert [(await ask(app, K, path="/pay/1", method="GET")).replayed for _ in range(2)] == [False, False]
        assert (await ask(app, K, path="/nowhere")).status == 404
        async with guard.database.read() as tx:
            from holdfast.idempotency import keys

            (record,) = (await keys.list(tx)).items
        assert record.route == "/pay/{id}"


async def test_a_declaration_fills_only_what_it_names() -> None:
    @idempotent(on_5xx="freeze")
    async def fail(request: Any) -> Response:
        return Response(b"", 500)

    async with Idempotency(":memory:", config(rule=RouteRule(key="required"))) as guard:
        app = Starlette(routes=[Route("/fail", fail, methods=["POST"])])
        app.add_middleware(IdempotencyMiddleware, guard=guard)
        assert (await ask(app, None, path="/fail")).code == "key_missing"
        assert [(await ask(app, K, path="/fail")).replayed for _ in range(2)] == [False, True]


async def required_everywhere(app: App, *paths: str) -> None:
    for path in paths:
        assert (await ask(app, None, path=path)).code == "key_missing", path
        assert (await ask(app, K + path, path=path)).status == 201, path
        assert (await ask(app, K + path, path=path)).replayed, path


async def test_declarations_are_found_in_starlette_wherever_they_are() -> None:
    class Whole(HTTPEndpoint):
        async def post(self, request: Any) -> Response:
            return ok()

    class Part(HTTPEndpoint):
        @idempotent(required=True)
        async def post(self, request: Any) -> Response:
            return ok()

        async def put(self, request: Any) -> Response:
            return ok()

    @idempotent(required=True)
    def plain(request: Any, extra: int = 0) -> Response:
        return ok()

    idempotent(required=True)(Whole)
    inner = Starlette(routes=[Route("/plain", plain, methods=["POST"])], middleware=[Middleware(GZipMiddleware)])
    deep = Route("/whole", Whole)
    routes = [
        Route("/whole", Whole), Route("/part", Part), Route("/plain", plain, methods=["POST"]),
        Route("/partial", functools.partial(plain, extra=1), methods=["POST"]),
        Mount("/mounted", routes=[Route("/plain", plain, methods=["POST"]), Mount("/deep", routes=[deep])]),
        Mount("/app", app=inner),
        Host("api.test", app=Router([Route("/hosted", plain, methods=["POST"])])),
    ]  # fmt: skip
    paths = ("/whole", "/part", "/plain", "/partial", "/mounted/plain", "/mounted/deep/whole", "/app/plain")
    async with Idempotency(":memory:", config(rule=None)) as guard:
        app = Starlette(routes=routes)
        app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
        app.add_middleware(IdempotencyMiddleware, guard=guard)
        await required_everywhere(app, *paths)
        assert (await ask(app, None, path="/part", method="PUT")).status == 201
        hosted = [(b"host", b"api.test")]
        assert (await ask(app, None, path="/hosted", headers=hosted[:0])).status == 404
        made = call(app, None, path="/hosted")
        made.scope["headers"][0] = hosted[0]
        assert (await made.run()).code == "key_missing"
        named = {endpoint.path for endpoint in endpoints(app)}
        assert {"/whole", "/mounted/plain", "/mounted/deep/whole", "/app/plain", "/hosted"} <= named
    async with Idempotency(":memory:", config(rule=None)) as guard:
        await required_everywhere(IdempotencyMiddleware(Starlette(routes=routes), guard), *paths)
    async with Idempotency(":memory:", config(rule=None)) as guard:
        layer = Middleware(IdempotencyMiddleware, guard=guard)
        at_routes = Starlette(
            routes=[
                Route("/plain", plain, methods=["POST"], middleware=[layer]),
                Mount("/mounted", routes=[Route("/plain", plain, methods=["POST"])], middleware=[layer]),
                Mount("/wrapped", app=IdempotencyMiddleware(inner, guard)),
            ]
        )
        await required_everywhere(at_routes, "/plain", "/mounted/plain", "/wrapped/plain")


async def test_declarations_are_found_in_fastapi_wherever_they_are() -> None:
    app = FastAPI()

    @app.post("/above", status_code=201)
    @idempotent(required=True)
    async def above() -> int:
        return 1

    @idempotent(required=True)
    @app.post("/below", status_code=201)
    async def below() -> int:
        return 1

    router, nested = APIRouter(prefix="/nested"), APIRouter()
    nested.post("/deep", status_code=201)(above)
    router.include_router(nested)
    router.post("/shallow", status_code=201)(above)
    app.include_router(router, prefix="/v1")
    sub = FastAPI()
    sub.post("/pay", status_code=201)(above)
    app.mount("/sub", sub)

    @app.post("/open/{n}", status_code=201)
    async def free(n: int) -> int:
        return n

    async with Idempotency(":memory:", config(rule=None)) as guard:
        fastapi_integration.install(app, guard)
        await required_everywhere(app, "/above", "/below", "/v1/nested/deep", "/v1/nested/shallow", "/sub/pay")
        assert [(await ask(app, K, path="/open/1")).replayed for _ in range(2)] == [False, False]
        app.post("/late", status_code=201)(above)
        await required_everywhere(app, "/late")
        assert {"/v1/nested/deep", "/sub/pay", "/open/{n}"} <= {endpoint.path for endpoint in endpoints(app)}


@pytest.mark.parametrize("plugin", [True, False])
async def test_declarations_are_found_in_litestar_wherever_they_are(plugin: bool) -> None:
    @litestar_post("/above")
    @idempotent(required=True)
    async def above() -> int:
        return 1

    @idempotent(required=True)
    @litestar_post("/below")
    async def below() -> int:
        return 1

    @litestar_post("/sync", sync_to_thread=True)
    @idempotent(required=True)
    def plain() -> int:
        return 1

    class Method(Controller):
        path = "/method"

        @litestar_post("/pay")
        @idempotent(required=True)
        async def pay(self) -> int:
            return 1

        @litestar_post("/free")
        async def free(self) -> int:
            return 1

    @idempotent(required=True)
    class Whole(Controller):
        path = "/whole"

        @litestar_post("/pay")
        async def pay(self) -> int:
            return 1

    handlers: list[Any] = [above, below, plain, Method, Whole]
    async with Idempotency(":memory:", config(rule=None)) as guard:
        if plugin:
            app = Litestar(handlers, plugins=[IdempotencyPlugin(guard)])
        else:
            app = Litestar(handlers, middleware=[DefineMiddleware(IdempotencyMiddleware, guard=guard)])
        await required_everywhere(app, "/above", "/below", "/sync", "/method/pay", "/whole/pay")
        assert (await ask(app, None, path="/method/free")).status == 201
        assert {"/above", "/method/pay", "/whole/pay"} <= {endpoint.path for endpoint in endpoints(app)}
        assert isinstance(above, HTTPRouteHandler)


async def test_declarations_are_found_in_quart_wherever_they_are() -> None:
    app = Quart(__name__)

    @app.post("/function/<int:n>")
    @idempotent(required=True)
    async def function(n: int) -> Any:
        return str(n), 201

    class Part(MethodView):
        @idempotent(required=True)
        async def post(self) -> Any:
            return "part", 201

    @idempotent(required=True)
    class Whole(MethodView):
        async def post(self) -> Any:
            return "whole", 201

    app.add_url_rule("/part", view_func=Part.as_view("part"))
    app.add_url_rule("/whole", view_func=Whole.as_view("whole"))
    async with Idempotency(":memory:", config(rule=None)) as guard:
        quart_integration.install(app, guard)
        await required_everywhere(app, "/function/1", "/part", "/whole")
        assert (await ask(app, None, path="/nowhere")).status == 404
        assert (await ask(app, None, path="/part", method="PUT")).status == 405


async def test_a_middleware_with_a_rule_uses_that_one_alone() -> None:
    @idempotent(key="forbidden")
    async def order(request: Any) -> Response:
        return ok()

    async with Idempotency(":memory:", config(rule=None, routes=(RouteRule(key="forbidden"),))) as guard:
        layer = Middleware(IdempotencyMiddleware, guard=guard, rule=RouteRule(path="/orders", key="required"))
        app = Starlette(
            routes=[Route(path, order, methods=["POST"]) for path in ("/orders", "/other")], middleware=[layer]
        )
        await required_everywhere(app, "/orders")
        assert [(await ask(app, K, path="/other")).replayed for _ in range(2)] == [False, False]


async def test_paths_of_rules_leave_out_the_root_path() -> None:
    async def order(request: Any) -> Response:
        return ok()

    async with Idempotency(":memory:", config(rule=None, routes=(RouteRule(path="/orders"),))) as guard:
        app = Starlette(routes=[Route("/orders", order, methods=["POST"])])
        app.add_middleware(IdempotencyMiddleware, guard=guard)
        for path, root in (("/orders", ""), ("/api/orders", "/api")):
            made = [await ask(app, K + path, path=path, root_path=root) for _ in range(2)]
            assert [answer.replayed for answer in made] == [False, True]


# --- placing


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        name = conn.headers.get("x-user")
        return (AuthCredentials(["a"]), SimpleUser(name)) if name else None


async def _order(request: Any) -> Response:
    return ok()


def authenticated(guard: Idempotency, *, first: bool) -> Starlette:
    app = Starlette(routes=[Route("/orders", _order, methods=["POST"])])
    if first:
        app.add_middleware(AuthenticationMiddleware, backend=Backend())
        app.add_middleware(CORSMiddleware, allow_origins=["*"])
    starlette_integration.install(app, guard)
    if not first:
        app.add_middleware(AuthenticationMiddleware, backend=Backend())
        app.add_middleware(CORSMiddleware, allow_origins=["*"])
    return app


@pytest.mark.parametrize("first", [True, False])
async def test_install_places_the_guard_inside_authentication_and_cors(
    first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Idempotency(":memory:", config(principal=principal_from_user)) as guard:
        app = authenticated(guard, first=first)
        callers = ("ann", "ann", "bob", "")
        answers = [await ask(app, K, headers={"origin": "https://shop.test", "x-user": user}) for user in callers]
        assert [answer.status for answer in answers] == [201, 201, 201, 403]
        assert [answer.replayed for answer in answers] == [False, True, False, False]
        assert all(answer.header("access-control-allow-origin") == "*" for answer in answers)
        assert caplog.records == []


async def test_what_stands_on_the_wrong_side_is_said_at_start_up(caplog: pytest.LogCaptureFixture) -> None:
    async with Idempotency(":memory:", config(principal=principal_from_user)) as guard:
        app = Starlette(routes=[Route("/orders", _order, methods=["POST"])])
        starlette_integration.install(app, guard)
        app.user_middleware += [Middleware(AuthenticationMiddleware, backend=Backend()), Middleware(CORSMiddleware)]
        with caplog.at_level(logging.WARNING, "holdfast.idempotency"):
            answer = await ask(app, K)
        assert isinstance(answer.error, ConfigError)
        assert answer.error.code.endswith("middleware_order")
        assert [record.message.partition(" stands")[0] for record in caplog.records] == [
            "authentication",
            "CORS handling",
        ]


async def test_a_guard_is_not_installed_in_vain() -> None:
    async with Idempotency(":memory:", config()) as guard:
        app = Starlette(routes=[Route("/orders", _order, methods=["POST"])])
        await ask(app, None)
        with pytest.raises(ConfigError):
            starlette_integration.install(app, guard)


@pytest.mark.parametrize("middlewares", [0, 1, 2])
async def test_a_handler_over_its_time_is_stopped_through_any_middleware(middlewares: int) -> None:
    """HX-80."""
    begun, stopped = asyncio.Event(), []

    async def order(request: Any) -> Response:
        if stopped:
            return ok()
        begun.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.Event().wait())
        finally:
            stopped.append(1)
        return ok()

    clock = ManualClock()
    rule = RouteRule(handler_timeout=timedelta(seconds=5))
    guard = Idempotency(":memory:", config(rule=rule), clock=clock)
    app = Starlette(routes=[Route("/orders", order, methods=["POST"])])
    for _ in range(middlewares):
        app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
    starlette_integration.install(app, guard)
    running = await call(app, K).start()
    await begun.wait()
    await clock.advance(timedelta(seconds=5))
    answer = await running
    assert (answer.status, answer.code, stopped) == (504, "handler_timeout", [1])
    assert (await ask(app, K)).status == 201
    await guard.stop(timedelta(0))
