"""Captured events over HTTP, by what became of them.

Invariants:
    - Only an operator comes here, and sees the events of its org.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from holdfast.server.answers import Asked, shown, there
from holdfast.server.backend import Backend
from holdfast.sessions.deriver import DeriveReport
from holdfast.sessions.machine import DeriveState
from holdfast.sessions.values import Principal
from holdfast.sessions.views import CapturedEvent, Event

__all__ = ["HANDLERS"]

Limit = Annotated[int, QueryParameter(ge=1, le=200)]

LISTS = {"scope": "admin", "tagged": True, "codes": ("sessions.cursor_mismatch",)}


@dataclass(frozen=True, slots=True)
class Events:
    """A page of events in the order they came."""

    items: list[Event]
    next: str | None


@get("/v1/raw", opt=LISTS, summary="List captured events as they came", tags=["sessions"])
async def events(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    wanted: Annotated[DeriveState | None, QueryParameter(name="state")] = None,
    limit: Limit = 50,
    cursor: FromQuery[str] = "",
) -> Response[Events]:
    return await shown(request, await _page(backend, principal, wanted, limit, cursor))


@get("/v1/dead-letters", opt=LISTS, summary="List events that were set aside", tags=["sessions"])
async def dead_letters(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    limit: Limit = 50,
    cursor: FromQuery[str] = "",
) -> Response[Events]:
    return await shown(request, await _page(backend, principal, "dead", limit, cursor))


@get(
    "/v1/raw/{id:str}",
    opt={"scope": "admin", "tagged": True, "codes": ("sessions.not_found",)},
    summary="Show a captured event",
    tags=["sessions"],
)
async def event(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> Response[CapturedEvent]:
    return await shown(request, there(await backend.archive.event(id, principal=principal), "event"))


@post(
    "/v1/dead-letters/{id:str}/replay",
    opt={"scope": "admin", "codes": ("sessions.not_found",)},
    status_code=202,
    summary="Try an event again",
    tags=["sessions"],
)
async def replay(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> DeriveReport:
    return await backend.archive.replay([id], principal=principal)


async def _page(backend: Backend, principal: Principal, state: DeriveState | None, limit: int, cursor: str) -> Events:
    page = await backend.archive.events(state=state, limit=limit, cursor=cursor, principal=principal)
    return Events(list(page.items), page.next)


HANDLERS = [events, event, dead_letters, replay]
