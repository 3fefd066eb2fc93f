"""Captured conversations over HTTP: sessions, turns and totals.

Invariants:
    - Every question is asked for the org of the credential; what is another's is not there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, cast

import msgspec
from litestar import Response, delete, get, patch
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Schema
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from holdfast.server import timeline as timelines
from holdfast.server.answers import Asked, shown, there
from holdfast.server.backend import Backend, aware
from holdfast.server.timeline import SessionTimeline
from holdfast.sessions.asking import Payload
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.parents import ParentState
from holdfast.sessions.reports import DeleteReport
from holdfast.sessions.values import Principal
from holdfast.sessions.views import Branches, GroupBy, Session, SessionFilters, StatsRow, Tree, Turn

__all__ = ["HANDLERS"]

Sort = Literal[
    "last_seen", "-last_seen", "started", "-started", "turns", "-turns", "cost", "-cost", "tokens", "-tokens"
]
Limit = Annotated[int, QueryParameter(ge=1, le=200)]
Depth = Annotated[int, QueryParameter(ge=0, le=10_000)]
Hash = Annotated[str, QueryParameter(pattern=r"^[0-9a-f]{64}$")]

READS = {"tagged": True, "codes": ("sessions.not_found",)}
LISTS = {"tagged": True, "codes": ("sessions.cursor_mismatch",)}
OPERATES = {"scope": "admin", "codes": ("sessions.not_found",)}
PART_BYTES = 256 * 1024
USD_MAX = Decimal(9_000_000)
"""What the ledger's integers can hold of pico-dollars."""


@dataclass(frozen=True, slots=True)
class Sessions:
    """A page of sessions."""

    items: list[Session]
    next: str | None


@dataclass(frozen=True, slots=True)
class Turns:
    """A page of turns, as they were captured."""

    items: list[Turn]
    next: str | None


@dataclass(frozen=True, slots=True)
class Stats:
    """All groups; there is no next page."""

    items: list[StatsRow]
    next: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The ways to two messages, from their roots: what they share, and what each has alone."""

    common: list[str]
    a: list[str]
    b: list[str]


@get("/v1/sessions", opt=LISTS, summary="List sessions", tags=["sessions"])
async def list_sessions(  # noqa: PLR0913 - the filters of the list
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    *,
    harness_id: FromQuery[str | None] = None,
    harness_session_id: FromQuery[str | None] = None,
    auth_subject: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    provider: FromQuery[str | None] = None,
    agent_name: FromQuery[str | None] = None,
    tag: FromQuery[str | None] = None,
    parent_state: FromQuery[ParentState | None] = None,
    thread: FromQuery[str | None] = None,
    since: FromQuery[datetime | None] = None,
    until: FromQuery[datetime | None] = None,
    min_cost: FromQuery[str | None] = None,
    include_placeholders: FromQuery[bool] = False,
    sort: FromQuery[Sort] = "-last_seen",
    limit: Limit = 50,
    cursor: FromQuery[str] = "",
) -> Response[Sessions]:
    filters = SessionFilters(
        harness_id=harness_id, harness_session_id=harness_session_id, auth_subject=auth_subject, model=model,
        provider=provider, agent_name=agent_name, tag=tag, parent_state=parent_state, thread=thread,
        since=aware(since), until=aware(until), min_cost=_usd(min_cost), include_placeholders=include_placeholders,
    )  # fmt: skip
    page = await backend.archive.list(filters, sort=sort, limit=limit, cursor=cursor, principal=principal)
    return await shown(request, Sessions(list(page.items), page.next))


@get("/v1/sessions/{id:str}", opt=READS, summary="Show a session", tags=["sessions"])
async def show(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> Response[Session]:
    return await shown(request, there(await backend.archive.get(id, principal=principal), "session"))


@get(
    "/v1/sessions/{id:str}/turns",
    opt={"tagged": True, "codes": ("sessions.not_found", "sessions.cursor_mismatch")},
    summary="List a session's turns as they were captured",
    tags=["sessions"],
)
async def turns(  # noqa: PLR0913 - which turns, and how much of them
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    payload: FromQuery[Payload] = "none",
    limit: Limit = 50,
    cursor: FromQuery[str] = "",
) -> Response[Turns]:
    page = there(
        await backend.archive.page(id, payload=payload, limit=limit, cursor=cursor, principal=principal), "session"
    )
    return await shown(request, Turns(list(page.items), page.next))


@get("/v1/turns/{id:str}", opt=READS, summary="Show a turn", tags=["sessions"])
async def turn(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    payload: FromQuery[Payload] = "none",
) -> Response[Turn]:
    found = await backend.archive.turn(id, payload=payload, principal=principal)
    return await shown(request, there(found, "turn"))


@dataclass
class AsCaptured(Operation):
    """The operation whose answer is of whatever type was captured."""

    def __post_init__(self) -> None:
        answer: Any = (self.responses or {})["200"]
        answer.content = {"*/*": OpenAPIMediaType(Schema(description="The bytes as they were captured"))}


@get(
    "/v1/turns/{id:str}/raw",
    opt={"exact": True, "codes": ("sessions.not_found",)},
    operation_class=AsCaptured,
    summary="Give back a body as it was captured",
    tags=["sessions"],
)
async def raw(
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    part: FromQuery[Literal["request", "response"]],
) -> Response[bytes]:
    body = there(await backend.archive.raw(id, part, principal=principal), "body")
    # What was captured may be a page, or claim to be one: no browser is to run it as ours.
    headers = {"x-content-type-options": "nosniff", "content-disposition": "attachment"}
    if _sendable(body.content_encoding) == body.content_encoding:
        headers["content-encoding"] = body.content_encoding
    headers["content-length"] = str(len(body.data))
    parts = Stream(_parts(body.data), media_type=_sendable(body.content_type), headers=headers)
    return cast("Response[bytes]", parts)


@get("/v1/sessions/{id:str}/timeline", opt=READS, summary="Show what happened in a session, by time", tags=["sessions"])
async def timeline(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> Response[SessionTimeline]:
    session = there(await backend.archive.get(id, principal=principal), "session")
    found, cut = there(await backend.archive.moments(id, principal=principal), "session")
    most = backend.archive.config.graph_nodes_max
    operator = "admin" in principal.scopes
    told = await timelines.merged(backend.hf, session, found, operator=operator, cut=cut, most=most)
    return await shown(request, told)


@get(
    "/v1/sessions/{id:str}/tree",
    opt=READS,
    summary="Show what a session was forked from, and what from it",
    tags=["sessions"],
)
async def tree(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    depth: Depth = 100,
) -> Response[Tree]:
    return await shown(request, there(await backend.archive.tree(id, depth=depth, principal=principal), "session"))


@get("/v1/sessions/{id:str}/branches", opt=READS, summary="Show where a session's messages part", tags=["sessions"])
async def branches(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> Response[Branches]:
    return await shown(request, there(await backend.archive.branches(id, principal=principal), "session"))


@get("/v1/sessions/{id:str}/branches/diff", opt=READS, summary="Compare the ways to two messages", tags=["sessions"])
async def compare(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    a: Hash,
    b: Hash,
) -> Response[Difference]:
    found = await backend.archive.difference(id, a, b, principal=principal)
    return await shown(request, Difference(**there(found, "node in this session")))


@get("/v1/stats", opt={"tagged": True}, summary="Sum up turns by group", tags=["sessions"])
async def stats(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    since: FromQuery[datetime | None] = None,
    until: FromQuery[datetime | None] = None,
    group_by: FromQuery[GroupBy] = "model",
) -> Response[Stats]:
    found = await backend.archive.stats(since=aware(since), until=aware(until), group_by=group_by, principal=principal)
    return await shown(request, Stats(found, None))


class Rename(msgspec.Struct, forbid_unknown_fields=True):
    """The name that a session is shown with; null takes it away."""

    display_name: str | None


@patch("/v1/sessions/{id:str}", opt=OPERATES, summary="Name a session", tags=["sessions"])
async def rename(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    data: JSONBody[Rename],
) -> Response[Session]:
    return await shown(request, await backend.archive.rename(id, data.display_name, principal=principal))


@delete(
    "/v1/sessions/{id:str}",
    opt=OPERATES,
    summary="Delete a session for good",
    tags=["sessions"],
    responses={200: ResponseSpec(DeleteReport, description="What would be deleted, with `dry_run`")},
)
async def remove(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    reason: FromQuery[str] = "over HTTP",
    dry_run: FromQuery[bool] = False,  # noqa: FBT002 - a query parameter, always by name
) -> Response[None]:
    report: Any = await backend.archive.delete(id, reason=reason, dry_run=dry_run, principal=principal)
    return await shown(request, report) if dry_run else Response(None, status_code=204)


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    """Give a body piece by piece: whoever sends it copies no more than it sends."""
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]


def _sendable(field: str) -> str:
    """Return a field of a header as it was captured, or that of bytes where it could not be sent."""
    return field if field and field.isascii() and field.isprintable() else "application/octet-stream"


def _usd(text: str | None) -> Decimal | None:
    try:
        usd = None if text is None else Decimal(text)
    except ArithmeticError:
        usd = Decimal("NaN")
    if usd is not None and not (usd.is_finite() and 0 <= usd <= USD_MAX):
        raise InvalidField("min_cost is an amount of dollars", "such as 0.25", field="min_cost")
    return usd


HANDLERS = [list_sessions, show, turns, turn, raw, timeline, tree, branches, compare, stats, rename, remove]
