"""Executions over HTTP: what `holdfast executions` shows and does.

Invariants:
    - Only an operator comes here: an access key with the scope `admin`, or whoever is alone on the machine.
    - No value is shown unless it is asked for by name, and that is audited.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

import holdfast
from holdfast import (
    AlreadyTerminal,
    Entry,
    Execution,
    NotFound,
    Requested,
    UnknownExecution,
    Verdict,
)
from holdfast.core.plain import payload, plain
from holdfast.execution.effects import happened_json
from holdfast.execution.errors import ExecutionFinished
from holdfast.server.backend import Backend, actor, said
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.values import Principal

__all__ = ["HANDLERS"]

Status = Literal["pending", "running", "waiting", "needs_decision", "completed", "failed", "aborted", "canceled"]
Number = Annotated[int | None, QueryParameter(ge=1, le=2**31 - 1)]
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
"""What both databases take as text."""
Filter = Annotated[str | None, QueryParameter(pattern=r"^[^\x00]*$")]
Position = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9}){0,64}$")]

LISTS = {"scope": "admin", "codes": ("codec.cursor",)}
READS = {"scope": "admin", "codes": ("durable.unknown_execution",)}
OPERATES = {
    "scope": "admin",
    "codes": (
        "durable.unknown_execution",
        "durable.execution_finished",
        "durable.no_decision_open",
        "durable.busy",
        "limit.exceeded",
        "config.invalid",
    ),
}


@dataclass(frozen=True, slots=True)
class Executions:
    """A page of executions, newest first."""

    items: list[Execution]
    next: str | None


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened to an execution; how long it took as an ISO 8601 duration."""

    at: datetime
    generation: int
    position: str | None
    event: str
    name: str
    outcome: str | None
    duration: str | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened to an execution, in the order it was written."""

    items: list[Moment]


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of an execution; values only where they were asked for."""

    items: list[Entry]


@dataclass(frozen=True, slots=True)
class Shape:
    """What stands at a position, as far as a replay compares it."""

    kind: str
    name: str
    effect: str | None
    shape: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One position in two generations."""

    position: str
    change: Literal["same", "changed", "left", "right"]
    left: Shape | None
    right: Shape | None


@dataclass(frozen=True, slots=True)
class Differences:
    """Two generations, position by position."""

    left: int
    right: int
    items: list[Compared]


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a wish."""

    id: str
    outcome: Literal["canceled", "paused", "requested", "resumed"]
    status: str


@dataclass(frozen=True, slots=True)
class Decided:
    """An answered decision."""

    id: str
    position: str
    decision: str
    by: str
    note: str
    status: str
    open_decisions: list[str]


class Cancel(msgspec.Struct, forbid_unknown_fields=True):
    """Why, and whether to wait for a live owner to agree."""

    reason: Text = ""
    force: bool = False


class Resume(msgspec.Struct, forbid_unknown_fields=True):
    """A new deadline, in milliseconds from now."""

    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=36_500 * 86_400_000)] | None = None


class Decision(msgspec.Struct, forbid_unknown_fields=True):
    """What became of an effect in doubt."""

    position: Position
    decision: Literal["happened", "not_happened", "abort"]
    value: Any = None
    note: Text = ""


@get("/v1/executions", opt=LISTS, summary="List executions, newest first", tags=["executions"])
async def list_executions(  # noqa: PLR0913 - the filters of the list
    backend: NamedDependency[Backend],
    status: FromQuery[Status | None] = None,
    kind: Filter = None,
    queue: Filter = None,
    orphaned: FromQuery[bool] = False,  # noqa: FBT002 - a query parameter, always by name
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
    cursor: FromQuery[str | None] = None,
) -> Response[Executions]:
    page = await backend.hf.list(status=status, kind=kind, queue=queue, orphaned=orphaned, limit=limit, cursor=cursor)
    return said(Executions(page.items, page.next))


@get("/v1/executions/{id:str}", opt=READS, summary="Show an execution", tags=["executions"])
async def show(backend: NamedDependency[Backend], id: FromPath[str]) -> Response[Execution]:
    return said(await _require(backend, _named(id)))


@get("/v1/executions/{id:str}/timeline", opt=READS, summary="Show what happened to it", tags=["executions"])
async def timeline(backend: NamedDependency[Backend], id: FromPath[str]) -> Response[Timeline]:
    return said(Timeline([Moment(**plain(event)) for event in await backend.hf.timeline(_named(id))]))


@get("/v1/executions/{id:str}/journal", opt=READS, summary="Show its journal", tags=["executions"])
async def journal(
    backend: NamedDependency[Backend],
    id: FromPath[str],
    generation: Number = None,
    reveal: FromQuery[bool] = False,  # noqa: FBT002 - a query parameter, always by name
) -> Response[Journal]:
    entries = await backend.hf.history(_named(id), generation=generation, reveal=reveal)
    items: Any = [plain(asdict(entry) | {"payload": None}) | ({"payload": payload(entry.payload)} if reveal else {})
                  for entry in entries]  # fmt: skip
    return said(Journal(items))


@get("/v1/executions/{id:str}/diff", opt=READS, summary="Compare two of its generations", tags=["executions"])
async def diff(
    backend: NamedDependency[Backend],
    id: FromPath[str],
    left: Annotated[int | None, QueryParameter(name="from", ge=1, le=2**31 - 1)] = None,
    right: Annotated[int | None, QueryParameter(name="to", ge=1, le=2**31 - 1)] = None,
) -> Response[Differences]:
    execution = await _require(backend, _named(id))
    end = right or execution.generation
    start = left or max(1, end - 1)
    items = [
        Compared(each.position, each.change, each.left and Shape(*each.left), each.right and Shape(*each.right))
        for each in await backend.hf.diff(execution.id, start, end)
    ]
    return said(Differences(start, end, items))


@post("/v1/executions/{id:str}/cancel", opt=OPERATES, status_code=200, summary="Cancel it", tags=["executions"])
async def cancel(
    backend: NamedDependency[Backend], id: FromPath[str], data: JSONBody[Cancel | None] = None
) -> Response[Told]:
    asked = data or Cancel()
    return _told(_named(id), await backend.hf.cancel(_named(id), reason=asked.reason, force=asked.force))


@post("/v1/executions/{id:str}/pause", opt=OPERATES, status_code=200, summary="Pause it", tags=["executions"])
async def pause(backend: NamedDependency[Backend], id: FromPath[str]) -> Response[Told]:
    return _told(_named(id), await backend.hf.pause(_named(id)))


@post("/v1/executions/{id:str}/resume", opt=OPERATES, status_code=200, summary="Set it going", tags=["executions"])
async def resume(
    backend: NamedDependency[Backend], id: FromPath[str], data: JSONBody[Resume | None] = None
) -> Response[Told]:
    asked = data.deadline_ms if data is not None else None
    await backend.hf.resume(_named(id), deadline=None if asked is None else timedelta(milliseconds=asked))
    return said(Told(_named(id), "resumed", (await _require(backend, _named(id))).status))


@post("/v1/executions/{id:str}/decisions", opt=OPERATES, status_code=200, summary="Decide what is in doubt",
      tags=["executions"])  # fmt: skip
async def decide(
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    data: JSONBody[Decision],
) -> Response[Decided]:
    name, by = _named(id), actor(principal)
    await backend.hf.decide(name, data.position, _verdict(data), by=by, note=data.note)
    after = await _require(backend, name)
    opened = list(after.open_decisions)
    return said(Decided(name, data.position, data.decision, by, data.note, after.status, opened))


def _verdict(data: Decision) -> Verdict:
    if data.decision == "happened":
        return happened_json(msgspec.json.encode(data.value).decode())
    if data.value is not None:
        raise InvalidField(f"{data.decision} has no value", "leave the value out", field="/value")
    return holdfast.not_happened() if data.decision == "not_happened" else holdfast.abort()


def _told(id: str, outcome: Any) -> Response[Told]:
    match outcome:
        case NotFound():
            raise _unknown(id)
        case AlreadyTerminal():
            raise ExecutionFinished(f"execution {id!r} has ended: {outcome.status}", status=outcome.status)
        case Requested():
            return said(Told(id, "requested", "running"), 202)
        case holdfast.Paused():
            return said(Told(id, "paused", "waiting"))
        case _:
            return said(Told(id, "canceled", "canceled"))


def _named(segment: str) -> str:
    """Read an id from its path segment; what cannot be one names nothing."""
    try:
        id = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise _unknown(segment) from None
    if not 1 <= len(id.encode()) <= 255 or any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 for each in id):
        raise _unknown(segment)
    return id


def _unknown(id: str) -> UnknownExecution:
    return UnknownExecution(f"no execution has the id {id[:255]!r}", "GET /v1/executions shows what there is")


async def _require(backend: Backend, id: str) -> Execution:
    execution = await backend.hf.get(id)
    if execution is None:
        raise _unknown(id)
    return execution


HANDLERS = [list_executions, show, timeline, journal, diff, cancel, pause, resume, decide]
