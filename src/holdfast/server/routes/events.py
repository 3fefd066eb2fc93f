"""Captured events over HTTP, by what became of them.

Invariants:
    - Only an operator comes here, and sees the events of its org.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from holdfast.server.answers import Asked, shown
from holdfast.server.backend import Backend
from holdfast.sessions import cursors
from holdfast.sessions.archive import Listed
from holdfast.sessions.cursors import Listing
from holdfast.sessions.deriver import DeriveReport
from holdfast.sessions.identity import shown_id
from holdfast.sessions.instants import moment
from holdfast.sessions.values import Principal, Source

__all__ = ["HANDLERS", "Event", "event_of"]

EventState = Literal["pending", "derived", "unparsed", "refused", "dead"]
Limit = Annotated[int, QueryParameter(ge=1, le=200)]

LISTS = {"scope": "admin", "tagged": True, "codes": ("sessions.cursor_mismatch",)}


@dataclass(frozen=True, slots=True)
class Event:
    """One captured event, without its bodies.

    Attributes:
        request_bytes, response_bytes: What is kept of the bodies.
        reason: Why it has no turn.
        retry_at: When it is tried again.
    """

    event_id: str
    capture_id: str
    source: Source
    provider: str
    captured_at: datetime
    received_at: datetime
    request_bytes: int
    response_bytes: int
    flags: list[str]
    state: EventState
    attempts: int
    reason: str | None
    retry_at: datetime | None


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
    wanted: Annotated[EventState | None, QueryParameter(name="state")] = None,
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


async def _page(backend: Backend, principal: Principal, state: EventState | None, limit: int, cursor: str) -> Events:
    listing = Listing(principal.org_id, "events", "seq", False, {"state": state})  # noqa: FBT003 - ascending
    [after] = cursors.decode(listing, cursor, secret=backend.secret) if cursor else [0]
    assert isinstance(after, int)  # nobody but this can have written it
    found = await backend.archive.events(state=state, after=after, limit=limit + 1, principal=principal)
    more = cursors.encode(listing, [found[limit - 1].seq], secret=backend.secret) if len(found) > limit else None
    return Events(list(map(event_of, found[:limit])), more)


def event_of(listed: Listed) -> Event:
    """Return an event as it is shown."""
    return Event(
        event_id=shown_id("cap", listed.event_id), capture_id=listed.capture_id, source=listed.source,
        provider=listed.provider, captured_at=moment(listed.captured_at), received_at=moment(listed.received_at),
        request_bytes=listed.request_bytes, response_bytes=listed.response_bytes, flags=listed.flags,
        state=listed.state, attempts=listed.attempts, reason=listed.reason or None,
        retry_at=None if listed.retry_at is None else moment(listed.retry_at),
    )  # fmt: skip


HANDLERS = [events, dead_letters, replay]
