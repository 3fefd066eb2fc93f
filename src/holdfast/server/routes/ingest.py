"""Captured calls come in: one, or a batch of them.

Invariants:
    - What is answered with 200, 202 or a result of a batch is on disk.
    - A body reaches the archive as the very bytes that were sent, without their content coding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import msgspec
from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

from holdfast.server.backend import Backend
from holdfast.server.problems import problem_of
from holdfast.sessions import intake
from holdfast.sessions.errors import SessionError
from holdfast.sessions.values import Duplicate, Principal, Stored

__all__ = ["HANDLERS"]

NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
WAIT_S_MAX = 10
"""How long an answer may be held for a call's turn."""

_PREFER = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?=$|[,;\s])")


class Taken(msgspec.Struct, omit_defaults=True, frozen=True):
    """A call that is on disk. What is not known yet is null."""

    status: Literal["accepted", "stored_unparsed", "duplicate"]
    event_id: str
    turn_id: str
    session_id: str | None
    derived: bool | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class Result(msgspec.Struct, omit_defaults=True, frozen=True):
    """What became of one element of a batch: what it would have been answered by itself."""

    index: int
    status: Literal["accepted", "stored_unparsed", "duplicate", "rejected"]
    http_status: int
    event_id: str = ""
    turn_id: str = ""
    session_id: str = ""
    derived: bool = False
    reason: str = ""
    code: str = ""
    detail: str = ""
    field: str = ""
    limit: str = ""
    hint: str = ""


class Results(msgspec.Struct, frozen=True):
    """What became of a batch."""

    results: list[Result]
    accepted: int
    duplicates: int
    rejected: int


def _texts(*names: str) -> dict[str, Any]:
    return {name: Schema(type=OpenAPIType.STRING) for name in names}


CALL = Schema(
    type=OpenAPIType.OBJECT,
    description="A call to a provider and what came back; unknown members are kept.",
    required=["provider", "request"],
    properties={
        **_texts("capture_id", "endpoint", "agent_name", "thread_id", "parent_tool_use_id"),
        "provider": Schema(type=OpenAPIType.STRING, pattern=r"^[a-z0-9_.-]{1,64}$"),
        "source": Schema(enum=["wire", "sdk"]),
        "captured_at": Schema(type=[OpenAPIType.STRING, OpenAPIType.INTEGER]),
        "started_at": Schema(type=[OpenAPIType.STRING, OpenAPIType.INTEGER]),
        "ended_at": Schema(type=[OpenAPIType.STRING, OpenAPIType.INTEGER]),
        "request": Schema(description="JSON, or an object with base64, content_type and content_encoding"),
        "response": Schema(description="As request; null where there was none"),
        "reduced": Schema(type=OpenAPIType.OBJECT),
        "upstream": Schema(type=OpenAPIType.OBJECT),
        "usage": Schema(type=OpenAPIType.OBJECT),
        "cost": Schema(type=OpenAPIType.OBJECT),
        "capture": Schema(enum=["full", "metadata"]),
        "tags": Schema(type=OpenAPIType.ARRAY, items=Schema(type=OpenAPIType.STRING)),
        "session": Schema(type=[OpenAPIType.OBJECT, OpenAPIType.NULL]),
    },
)
CALLS = Schema(type=OpenAPIType.ARRAY, items=CALL, min_items=1)
BATCH = Schema(type=OpenAPIType.OBJECT, required=["items"], properties={"items": CALLS})


@dataclass
class OneCall(Operation):
    """The operation whose body is a call."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(CALL)}, required=True)


@dataclass
class ManyCalls(Operation):
    """The operation whose body is a batch."""

    def __post_init__(self) -> None:
        lines = OpenAPIMediaType(Schema(type=OpenAPIType.STRING, description="One call to a line"))
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(BATCH), NDJSON[0]: lines}, required=True)


@post(
    "/v1/ingest", opt={"scope": "ingest"}, status_code=202, operation_class=OneCall, tags=["sessions"],
    summary="Store a call", responses={200: ResponseSpec(Taken, description="It was stored before")},
)  # fmt: skip
async def ingest(request: Request[Any, Any, Any]) -> Response[Taken]:
    backend, principal = _given(request)
    data = await request.scope["holdfast.body"].read()  # type: ignore[typeddict-item]  # the door's
    request.state.counted = True  # the archive counts what it refuses by itself
    taken = await backend.archive.receive(
        data, header=request.headers.get("idempotency-key", ""), wait=_wait(request), principal=principal
    )
    return Response(_taken(taken), status_code=200 if isinstance(taken, Duplicate) else 202)


@post(
    "/v1/ingest/batch", opt={"scope": "ingest", "accepts": ("application/json", *NDJSON)},
    status_code=207, operation_class=ManyCalls, tags=["sessions"], summary="Store up to a thousand calls",
)  # fmt: skip
async def ingest_batch(request: Request[Any, Any, Any]) -> Results:
    backend, principal = _given(request)
    data = await request.scope["holdfast.body"].read()  # type: ignore[typeddict-item]  # the door's
    lines = request.headers.get("content-type", "").partition(";")[0].strip().lower() in NDJSON
    parts = intake.batch(data, items_max=backend.archive.config.batch_items_max, lines=lines)
    found = await backend.archive.receive_many(parts, principal=principal)
    results = [_result(index, each) for index, each in enumerate(found)]
    rejected = sum(each.status == "rejected" for each in results)
    duplicates = sum(each.status == "duplicate" for each in results)
    return Results(results, len(results) - rejected - duplicates, duplicates, rejected)


def _given(request: Request[Any, Any, Any]) -> tuple[Backend, Principal]:
    """Return what other routes have injected, which would cost these a tenth of their time."""
    return request.app.state.backend, request.state.principal


def _wait(request: Request[Any, Any, Any]) -> timedelta | None:
    """Return how long the client would like to wait for its turn."""
    found = _PREFER.search(request.headers.get("prefer", ""))
    return timedelta(seconds=min(int(found[1]), WAIT_S_MAX)) if found else None


def _taken(taken: Stored | Duplicate) -> Taken:
    if isinstance(taken, Duplicate):
        return Taken("duplicate", taken.event_id, taken.turn_id, taken.session_id)
    reason = taken.reason or msgspec.UNSET
    return Taken(taken.state, taken.event_id, taken.turn_id, taken.session_id, taken.derived, reason)


def _result(index: int, each: Stored | Duplicate | SessionError) -> Result:
    if isinstance(each, SessionError):
        told = problem_of(each)
        return Result(
            index, "rejected", told.status, code=told.code, detail=told.detail, field=told.field, limit=told.limit,
            hint=told.hint,
        )  # fmt: skip
    ids: Any = {"event_id": each.event_id, "turn_id": each.turn_id, "session_id": each.session_id or ""}
    if isinstance(each, Duplicate):
        return Result(index, "duplicate", 200, **ids)
    return Result(index, each.state, 202, **ids, derived=each.derived, reason=each.reason)


HANDLERS = [ingest, ingest_batch]
