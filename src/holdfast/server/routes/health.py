"""Whether the server lives, whether it can work, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from litestar import MediaType, Request, Response, get
from litestar.di import NamedDependency

from holdfast.core.trace import Counter
from holdfast.server import exposition
from holdfast.server.backend import Backend
from holdfast.server.problems import Refusal
from holdfast.sessions import archive
from holdfast.sessions.errors import Stopping
from holdfast.sessions.metrics import METRICS
from holdfast.store import migrate

__all__ = ["HANDLERS"]

ANYBODY = {"scope": None}
"""Whoever balances load has no key."""


@dataclass(frozen=True, slots=True)
class Live:
    """The process is up."""

    status: Literal["live"] = "live"


@dataclass(frozen=True, slots=True)
class Loss:
    """What this process has not stored, or not as it came: how often, by reason.

    Attributes:
        refused: Requests, by code.
        dropped: Bodies of calls that were stored, by reason.
        redacted: Secrets, by rule.
    """

    refused: dict[str, int]
    dropped: dict[str, int]
    redacted: dict[str, int]


@dataclass(frozen=True, slots=True)
class Ready:
    """The server can work.

    Attributes:
        lag_seconds: How long the oldest call that is due has waited for its turn.
        dead_events: Calls that were set aside.
    """

    status: Literal["ready"]
    store: Literal["reachable"]
    schema: int
    lag_seconds: float
    dead_events: int
    loss: Loss


@get("/live", opt=ANYBODY, security=[{}], summary="Whether the process is up", tags=["health"])
async def live() -> Live:
    return Live()


@get(
    "/ready",
    opt={"scope": None, "codes": ("store.schema", "server.lagging")},
    security=[{}],
    summary="Whether the server can work",
    tags=["health"],
)
async def ready(backend: NamedDependency[Backend]) -> Ready:
    if backend.stopping:
        raise Stopping("the server is stopping")
    database = backend.hf.database
    async with database.read() as tx:  # says why when it cannot
        row = await tx.one("ledger.get", name="schema")
        waiting = await archive.list_pending(tx, now=database.clock.now(), limit=1)
    applied = migrate.decode_number(None if row is None else row.value, label=database.label)
    if migrate.status(applied, database.dialect, label=database.label).pending:
        raise migrate.behind(applied, label=database.label)
    lag_s = max(0.0, (database.clock.now() - waiting[0].received_at) / 1_000_000) if waiting else 0.0
    if lag_s * 1000 > backend.archive.config.lag_ready_ms:
        raise Refusal(
            "server.lagging",
            f"the oldest call waits for its turn since {lag_s:.0f} s",
            "what is sent is stored all the same",
        )
    dead = int(METRICS.dead.current().get((), 0))
    return Ready("ready", "reachable", applied, lag_s, dead, _loss())


def _loss() -> Loss:
    def counts(metric: Counter) -> dict[str, int]:
        return {labels[0]: int(count) for labels, count in sorted(metric.current().items())}

    return Loss(counts(METRICS.rejected), counts(METRICS.dropped), counts(METRICS.redactions))


@get("/metrics", media_type=MediaType.TEXT, summary="What was counted, for Prometheus", tags=["health"])
async def metrics() -> Response[str]:
    return Response(exposition.exposition(), media_type=exposition.MEDIA_TYPE)


@get("/openapi.json", opt=ANYBODY, include_in_schema=False)
async def openapi(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return request.app.openapi_schema.to_schema()


HANDLERS = [live, ready, metrics, openapi]
