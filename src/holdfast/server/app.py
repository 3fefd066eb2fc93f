"""The application: the one place where the slices meet, by value.

Invariants:
    - Every route but those of health names the scope it needs; one that names none needs `read`.
    - Whatever is raised anywhere is answered by a problem document.
"""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, Router
from litestar.config.compression import CompressionConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from holdfast.core.version import VERSION
from holdfast.server.answers import GZIP_FROM_BYTES
from holdfast.server.backend import Backend
from holdfast.server.bodies import WITH_BODY, admit
from holdfast.server.problems import MEDIA_TYPE, Problem, answer, status_of
from holdfast.server.routes import admin, durable, events, health, ingest, keys, nodes, sessions
from holdfast.sessions.values import Principal

__all__ = ["build", "guard"]

_REFUSALS = {
    400: "The request breaks a rule",
    401: "There is no access key, or no good one",
    403: "The key has not the scope, or the request comes from another place",
    404: "There is no such thing",
    409: "It is not in a state for this",
    410: "It was deleted, or is too old",
    413: "Something is beyond a limit",
    415: "The body is of another type or coding",
    422: "A value does not fit",
    429: "Too much at a time",
    503: "Not now",
}
_ANYWHERE = ("sessions.forbidden", "sessions.stopping", "sessions.store_unavailable")
_WITH_KEY = ("sessions.unauthenticated", "sessions.invalid_field")
_WITH_A_BODY = (
    "sessions.malformed_json", "sessions.undecodable_body", "sessions.too_large", "sessions.unsupported_media_type",
    "sessions.unsupported_encoding", "sessions.saturated_items", "sessions.saturated_bytes",
)  # fmt: skip
"""The codes that any route of a kind may refuse with; a route's own are in its `codes`."""


def build(backend: Backend) -> Litestar:
    """Make the application over a ledger that is open."""
    modules = (health, ingest, sessions, nodes, events, durable, keys, admin)
    handlers: list[Any] = [handler for module in modules for handler in module.HANDLERS]
    for handler in handlers:
        _tell_refusals(handler)
        handler.opt.setdefault("exact", handler.opt.get("tagged", False))  # these pack themselves, off the loop
    return Litestar(
        handlers,
        state=State({"backend": backend}),
        dependencies={
            "backend": Provide(lambda: backend, sync_to_thread=False),
            "principal": Provide(_principal, sync_to_thread=False),
        },
        guards=[guard],
        exception_handlers={HTTPException: answer, Exception: answer},
        openapi_config=OpenAPIConfig(
            title="Holdfast", version=VERSION, openapi_router=_Nowhere("/openapi", route_handlers=[]),
            render_plugins=[JsonRenderPlugin()],
            components=Components(
                security_schemes={"accessKey": SecurityScheme(type="http", scheme="bearer", bearer_format="hfk_…")}
            ),
            security=[{"accessKey": []}],
        ),
        compression_config=CompressionConfig(backend="gzip", minimum_size=GZIP_FROM_BYTES, exclude_opt_key="exact"),
        logging_config=None,
        request_max_body_size=None,  # the door has limits of its own
        debug=False,
        pdb_on_exception=False,
    )  # fmt: skip


class _Nowhere(Router):
    """Takes the pages that the framework would serve of the document, whose errors are no problem documents."""

    def register(self, value: Any) -> list[Any]:
        return []


async def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let a request in, or not."""
    backend: Backend = connection.app.state.backend
    scope: Any = connection.scope
    connection.state.principal = await admit(backend, scope, handler.opt)


def _principal(request: Request[Any, Any, Any]) -> Principal:
    found: Principal = request.state.principal
    return found


def _tell_refusals(handler: Any) -> None:
    """Let the OpenAPI document say with what an operation may be refused."""
    codes = {*_ANYWHERE, *handler.opt.get("codes", ())}
    if handler.opt.get("scope", "read") is not None:
        codes.update(_WITH_KEY)
    if handler.http_methods & set(WITH_BODY):
        codes.update(_WITH_A_BODY)
    bare: dict[int, list[str]] = {}
    for code in sorted(codes):
        bare.setdefault(status_of(code), []).append(code.partition(".")[2])
    specs = {
        status: ResponseSpec(
            Problem, description=f"{_REFUSALS[status]}: {', '.join(names)}", media_type=MEDIA_TYPE,
            generate_examples=False,
        )
        for status, names in sorted(bare.items())
    }  # fmt: skip
    if handler.opt.get("tagged"):
        specs[304] = ResponseSpec(None, description="Who asks has just this", generate_examples=False)
    handler.responses = {**specs, **(handler.responses or {})}
