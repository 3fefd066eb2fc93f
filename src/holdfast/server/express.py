"""The short way to the one route that is asked for a thousand times a second: past the framework's own work.

What lets a request in, the route's own function and what answers an error are those that the framework would call;
only its routing, its middleware and its kinds of responses are left out.

Invariants:
    - A request is answered as the framework would answer it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar, Request

from holdfast.server.problems import answer
from holdfast.server.routes.ingest import ingest

if TYPE_CHECKING:
    from litestar import Response
    from litestar.types import Guard

    from holdfast.server.bodies import Receive, Scope, Send

__all__ = ["Express"]


class Express:
    """An ASGI application before the framework's."""

    def __init__(self, app: Litestar, guard: Guard) -> None:
        self._app: Any = app  # its scopes are typed dicts
        self._guard: Any = guard
        [self._path] = ingest.paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._path and scope["method"] == "POST":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["litestar_app"] = self._app
        request: Request[Any, Any, Any] = Request(scope, receive, send)  # type: ignore[arg-type]  # as above
        response: Response[Any]
        try:
            await self._guard(request, ingest)
            response = await ingest.fn(request)
            body = msgspec.json.encode(response.content)
        except Exception as error:  # noqa: BLE001 - as the framework does: whatever it is, it is answered
            response = answer(request, error)
            body = response.content
        headers = [
            (b"content-type", (response.media_type or "application/json").encode()),
            (b"content-length", b"%d" % len(body)),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()),
        ]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body})
