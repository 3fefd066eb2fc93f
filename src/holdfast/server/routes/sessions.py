"""Captured conversations over HTTP: sessions, turns, messages and totals.

Invariants:
    - Every question is asked for the org of the credential; what is another's is not there.
    - An answer carries the hash of its bytes as a strong ETag, and is not sent to who has it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from blake3 import blake3
from litestar import Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, Operation, Schema
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from holdfast.server.backend import Backend
from holdfast.sessions import cursors
from holdfast.sessions.archive import reading
from holdfast.sessions.cursors import Listing
from holdfast.sessions.errors import CursorMismatch, InvalidField, NotFound
from holdfast.sessions.identity import parse_id, shown_id
from holdfast.sessions.instants import moment
from holdfast.sessions.values import Principal
from holdfast.sessions.views import SessionFilters, Turn, document

if TYPE_CHECKING:
    from holdfast.store.database import Tx

__all__ = ["HANDLERS"]

T = TypeVar("T")

Asked = Request[Any, Any, Any]
Shown = Response[dict[str, Any]]
Payload = Literal["none", "preview", "full"]
Sort = Literal[
    "last_seen", "-last_seen", "started", "-started", "turns", "-turns", "cost", "-cost", "tokens", "-tokens"
]
Limit = Annotated[int, QueryParameter(ge=1, le=200)]
Depth = Annotated[int, QueryParameter(ge=0, le=10_000)]
Hash = Annotated[str, QueryParameter(pattern=r"^[0-9a-f]{64}$")]
EventState = Literal["pending", "derived", "unparsed", "refused", "dead"]
Grouping = Literal["day", "model", "harness", "subject", "session"]

OPERATOR = {"scope": "admin"}
USD_MAX = Decimal(9_000_000)
"""What the ledger's integers can hold of pico-dollars."""


@get("/v1/sessions", summary="List sessions", tags=["sessions"])
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
    parent_state: FromQuery[str | None] = None,
    thread: FromQuery[str | None] = None,
    since: FromQuery[datetime | None] = None,
    until: FromQuery[datetime | None] = None,
    min_cost: FromQuery[str | None] = None,
    include_placeholders: FromQuery[bool] = False,
    sort: FromQuery[Sort] = "-last_seen",
    limit: Limit = 50,
    cursor: FromQuery[str] = "",
) -> Shown:
    filters = SessionFilters(
        harness_id=harness_id, harness_session_id=harness_session_id, auth_subject=auth_subject, model=model,
        provider=provider, agent_name=agent_name, tag=tag, parent_state=parent_state, thread=thread,
        since=_aware(since), until=_aware(until), min_cost=_usd(min_cost), include_placeholders=include_placeholders,
    )  # fmt: skip
    page = await backend.archive.list(filters, sort=sort, limit=limit, cursor=cursor, principal=principal)
    return await _shown(request, page)


@get("/v1/sessions/{id:str}", summary="Show a session", tags=["sessions"])
async def show(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> Shown:
    return await _shown(request, _there(await backend.archive.get(id, principal=principal), "session"))


@get("/v1/sessions/{id:str}/turns", summary="List a session's turns as they were captured", tags=["sessions"])
async def turns(  # noqa: PLR0913 - which turns, and how much of them
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    payload: FromQuery[Payload] = "none",
    limit: Limit = 50,
    cursor: FromQuery[str] = "",
) -> Shown:
    org, secret = principal.org_id, backend.secret
    listing = Listing(org, "turns", "captured", False, {"session": id})  # noqa: FBT003 - ascending
    after = cursors.decode(listing, cursor, secret=secret) if cursor else None
    if after is not None and not isinstance(after[0], int):
        raise CursorMismatch
    async with backend.hf.database.read() as tx:
        session_id = _there(await _session(tx, principal, id), "session")
        found, following = await reading.page_turns(tx, org, session_id, limit=limit, after=after)  # type: ignore[arg-type]  # looked at above
        items = [await _with_messages(tx, principal, turn, payload) for turn in found]
    more = None if following is None else cursors.encode(listing, following, secret=secret)
    return await _shown(request, {"items": items, "next": more})


@get("/v1/turns/{id:str}", summary="Show a turn", tags=["sessions"])
async def turn(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    payload: FromQuery[Payload] = "none",
) -> Shown:
    found = await backend.archive.turn(id, payload=payload, principal=principal)
    return await _shown(request, _there(found, "turn"))


@dataclass
class AsCaptured(Operation):
    """The operation whose answer is of whatever type was captured."""

    def __post_init__(self) -> None:
        answer: Any = (self.responses or {})["200"]
        answer.content = {"*/*": OpenAPIMediaType(Schema(description="The bytes as they were captured"))}


@get(
    "/v1/turns/{id:str}/raw",
    opt={"exact": True},
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
    body = _there(await backend.archive.raw(id, part, principal=principal), "body")
    # What was captured may be a page, or claim to be one: no browser is to run it as ours.
    headers = {"x-content-type-options": "nosniff", "content-disposition": "attachment"}
    if body.content_encoding:
        headers["content-encoding"] = body.content_encoding
    return Response(body.data, media_type=body.content_type or "application/octet-stream", headers=headers)


@get("/v1/sessions/{id:str}/tree", summary="Show what a session was forked from, and what from it", tags=["sessions"])
async def tree(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    depth: Depth = 100,
) -> Shown:
    return await _shown(request, _there(await backend.archive.tree(id, depth=depth, principal=principal), "session"))


@get("/v1/sessions/{id:str}/branches", summary="Show where a session's messages part", tags=["sessions"])
async def branches(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> Shown:
    return await _shown(request, _there(await backend.archive.branches(id, principal=principal), "session"))


@get("/v1/sessions/{id:str}/branches/diff", summary="Compare the ways to two messages", tags=["sessions"])
async def compare(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    a: Hash,
    b: Hash,
) -> Shown:
    ends = bytes.fromhex(a), bytes.fromhex(b)
    most = backend.archive.config.graph_nodes_max
    async with backend.hf.database.read() as tx:
        session_id = _there(await _session(tx, principal, id), "session")
        found = await reading.difference(tx, principal.org_id, session_id, ends, nodes_max=most)
    return await _shown(request, dict(_there(found, "node in this session")))


@get("/v1/nodes/{hash:str}", summary="Show a message, and which sessions hold it", tags=["sessions"])
async def node(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal], hash: FromPath[str]
) -> Shown:
    async with backend.hf.database.read() as tx:
        found = await reading.get_node(tx, principal.org_id, _hashed(hash))
    return await _shown(request, _there(found, "node"))


@get("/v1/nodes/{hash:str}/ancestry", summary="Show the way from a message to its root", tags=["sessions"])
async def ancestry(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    hash: FromPath[str],
    depth: Depth = 10_000,
) -> Shown:
    async with backend.hf.database.read() as tx:
        way = _there(await reading.ancestry(tx, principal.org_id, _hashed(hash), depth=depth), "node")
    told = {"items": tuple(way), "truncated": way.truncated, "missing_parent": way.missing_parent}
    return await _shown(request, told)


@get("/v1/stats", summary="Sum up turns by group", tags=["sessions"])
async def stats(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    since: FromQuery[datetime | None] = None,
    until: FromQuery[datetime | None] = None,
    group_by: FromQuery[Grouping] = "model",
) -> Shown:
    found = await backend.archive.stats(
        since=_aware(since), until=_aware(until), group_by=group_by, principal=principal
    )
    return await _shown(request, {"items": found, "next": None})


class Rename(msgspec.Struct, forbid_unknown_fields=True):
    """The name that a session is shown with; null takes it away."""

    display_name: str | None


@patch("/v1/sessions/{id:str}", opt=OPERATOR, summary="Name a session", tags=["sessions"])
async def rename(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    data: JSONBody[Rename],
) -> Shown:
    return await _shown(request, await backend.archive.rename(id, data.display_name, principal=principal))


@delete("/v1/sessions/{id:str}", opt=OPERATOR, summary="Delete a session for good", tags=["sessions"])
async def remove(
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    reason: FromQuery[str] = "over HTTP",
) -> None:
    await backend.archive.delete(id, reason=reason, principal=principal)


@get("/v1/raw", opt=OPERATOR, summary="List captured events as they came", tags=["sessions"])
async def events(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    wanted: Annotated[EventState | None, QueryParameter(name="state")] = None,
    limit: Limit = 50,
    cursor: Annotated[int, QueryParameter(ge=0, le=2**63 - 1)] = 0,
) -> Shown:
    return await _events(request, backend, principal, wanted, (limit, cursor))


@get("/v1/dead-letters", opt=OPERATOR, summary="List events that were set aside", tags=["sessions"])
async def dead_letters(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    limit: Limit = 50,
    cursor: Annotated[int, QueryParameter(ge=0, le=2**63 - 1)] = 0,
) -> Shown:
    return await _events(request, backend, principal, "dead", (limit, cursor))


@post("/v1/dead-letters/{id:str}/replay", opt=OPERATOR, status_code=202, summary="Try an event again",
      tags=["sessions"])  # fmt: skip
async def replay(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> dict[str, int]:
    report = await backend.archive.replay([id], principal=principal)
    told: dict[str, int] = document(report)
    return told


async def _events(
    request: Asked, backend: Backend, principal: Principal, state: EventState | None, page: tuple[int, int]
) -> Shown:
    """Answer with events, by their places in the order of coming."""
    limit, after = page
    found = await backend.archive.events(state=state, after=after, limit=limit + 1, principal=principal)
    items = [
        {
            "event_id": shown_id("cap", each.event_id), "capture_id": each.capture_id, "source": each.source,
            "provider": each.provider, "captured_at": moment(each.captured_at), "received_at": moment(each.received_at),
            "request_bytes": each.request_bytes, "response_bytes": each.response_bytes, "flags": each.flags,
            "state": each.state, "attempts": each.attempts, "reason": each.reason,
            "retry_at": None if each.retry_at is None else moment(each.retry_at),
        }
        for each in found[:limit]
    ]  # fmt: skip
    return await _shown(request, {"items": items, "next": found[limit - 1].seq if len(found) > limit else None})


def _aware(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _usd(text: str | None) -> Decimal | None:
    try:
        usd = None if text is None else Decimal(text)
    except ArithmeticError:
        usd = Decimal("NaN")
    if usd is not None and not (usd.is_finite() and 0 <= usd <= USD_MAX):
        raise InvalidField("min_cost is an amount of dollars", "such as 0.25", field="min_cost")
    return usd


def _hashed(text: str) -> bytes:
    try:
        found = bytes.fromhex(text) if len(text) == 64 else b""
    except ValueError:
        found = b""
    if not found:
        raise NotFound("there is no such node", "a node is named by 64 hexadecimal digits")
    return found


async def _session(tx: Tx, principal: Principal, id: str) -> bytes | None:
    raw_id = parse_id("ses", id)
    return None if raw_id is None else await reading.find_session(tx, principal.org_id, raw_id)


async def _with_messages(tx: Tx, principal: Principal, turn: Turn, payload: Payload) -> Turn:
    if payload == "none":
        return turn
    turn_id = parse_id("turn", turn.id)
    assert turn_id is not None
    chain = await reading.load_chain(tx, principal.org_id, turn_id, preview=payload == "preview")
    return replace(turn, messages=tuple(chain))


def _there(found: T | None, what: str) -> T:
    if found is None:
        raise NotFound(f"there is no such {what}", "ids are those of the lists, in this org")
    return found


async def _shown(request: Asked, value: Any) -> Shown:
    """Answer with records as JSON, or with 304 who has just these bytes."""
    data = await asyncio.to_thread(_rendered, value)
    tag = f'"{blake3(data).hexdigest(16)}"'
    content: Any = data
    wanted = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if tag in wanted or wanted == ["*"]:
        return Response(None, status_code=304, headers=headers)  # type: ignore[arg-type]  # there is no content
    return Response(content, media_type="application/json", headers=headers)


def _rendered(value: Any) -> bytes:
    return msgspec.json.encode(document(value))


HANDLERS = [
    list_sessions, show, turns, turn, raw, tree, branches, compare, node, ancestry, stats,
    rename, remove, events, dead_letters, replay,
]  # fmt: skip
