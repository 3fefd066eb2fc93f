"""Whether the server lives, whether it can work, and what it has counted."""

from __future__ import annotations

from typing import Any

from litestar import MediaType, Request, Response, get
from litestar.di import NamedDependency

from holdfast.server import exposition
from holdfast.server.backend import Backend
from holdfast.server.problems import Refusal
from holdfast.sessions import access
from holdfast.sessions.errors import Stopping
from holdfast.sessions.metrics import METRICS

__all__ = ["HANDLERS"]

ANYBODY = {"scope": None}
"""Whoever balances load has no key."""


@get("/live", opt=ANYBODY, summary="Whether the process is up", tags=["health"])
async def live() -> dict[str, str]:
    return {"status": "live"}


@get("/ready", opt=ANYBODY, summary="Whether the server can work", tags=["health"])
async def ready(backend: NamedDependency[Backend]) -> dict[str, str]:
    if backend.stopping:
        raise Stopping("the server is stopping")
    async with backend.hf.database.read() as tx:  # says why when it cannot
        await access.exist(tx)
    lag_s = METRICS.derive_lag.current().get((), 0.0)
    if lag_s * 1000 > backend.archive.config.lag_ready_ms:
        raise Refusal(
            "server.lagging",
            f"the oldest call waits for its turn since {lag_s:.0f} s",
            "what is sent is stored all the same",
        )
    return {"status": "ready", "store": "reachable"}


@get("/metrics", media_type=MediaType.TEXT, summary="What was counted, for Prometheus", tags=["health"])
async def metrics() -> Response[str]:
    return Response(exposition.exposition(), media_type=exposition.MEDIA_TYPE)


@get("/openapi.json", opt=ANYBODY, include_in_schema=False)
async def openapi(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return request.app.openapi_schema.to_schema()


HANDLERS = [live, ready, metrics, openapi]
