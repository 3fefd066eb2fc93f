"""The short way to the one route that is asked for a thousand times a second: past the framework's own work.

What lets a request in, what the route does and what answers an error are those that the framework would call; only its
routing, its middleware and its kinds of requests and responses are left out.

Invariants:
    - A request is answered as the framework would answer it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Request

from holdfast.server.bodies import admit
from holdfast.server.problems import answer
from holdfast.server.routes.ingest import PATH, ingest, take

if TYPE_CHECKING:
    from holdfast.server.bodies import Receive, Scope, Send

__all__ = ["Express"]


class Express:
    """An ASGI application before the framework's."""

    def __init__(self, app: Litestar) -> None:
        self._app: Any = app  # its scopes are typed dicts
        self._backend = app.state.backend
        self._wants = ingest.opt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})
        try:
            principal = await admit(self._backend, scope, self._wants)
            status, taken = await take(self._backend, principal, scope)
        except Exception as error:  # noqa: BLE001 - as the framework does: whatever it is, it is answered
            scope["litestar_app"] = self._app
            response = answer(Request(scope, receive, send), error)  # type: ignore[arg-type]  # as above
            status, body, kind = response.status_code or 500, response.content, response.media_type or ""
            more = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
        else:
            body, kind, more = msgspec.json.encode(taken), "application/json", []
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), *more]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
