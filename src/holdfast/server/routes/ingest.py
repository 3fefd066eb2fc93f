"""Captured calls come in: one, or a batch of them.

Invariants:
    - What is answered with 200, 202 or a result of a batch is on disk.
    - A body reaches the archive as the very bytes that were sent, without their content coding.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from datetime import timedelta
from typing import Any, Literal, cast

import msgspec
from litestar import Request, Response, post
from litestar.openapi.datastructures import ResponseSpec

from holdfast.server.backend import Backend
from holdfast.server.problems import problem_of
from holdfast.server.routes.calls import NDJSON, ManyCalls, OneCall
from holdfast.sessions import intake
from holdfast.sessions.errors import SessionError
from holdfast.sessions.values import Duplicate, Principal, Stored

__all__ = ["HANDLERS", "PATH", "take"]

PATH = "/v1/ingest"

WAIT_S_MAX = 10
"""How long an answer may be held for a call's turn."""

_PREFER = re.compile(rb"(?:^|[,;\s])wait=(\d{1,6})(?=$|[,;\s])")


class Taken(msgspec.Struct, omit_defaults=True, frozen=True):
    """A call that is on disk. What is not known yet is null."""

    status: Literal["accepted", "stored_unparsed", "duplicate"]
    event_id: str
    turn_id: str
    session_id: str | None
    derived: bool | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class BatchResult(msgspec.Struct, omit_defaults=True, frozen=True):
    """What became of one element of a batch, with what it would have been answered by itself.

    Attributes:
        http_status: That answer's status.
    """

    index: int
    status: Literal["accepted", "stored_unparsed", "duplicate", "rejected"]
    http_status: int
    event_id: str | msgspec.UnsetType = msgspec.UNSET
    turn_id: str | msgspec.UnsetType = msgspec.UNSET
    session_id: str | msgspec.UnsetType | None = msgspec.UNSET
    derived: bool | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET
    type: str = ""
    title: str = ""
    code: str = ""
    detail: str = ""
    field: str = ""
    limit: str = ""
    hint: str = ""


class BatchResults(msgspec.Struct, frozen=True):
    """What became of a batch."""

    results: list[BatchResult]
    accepted: int
    duplicates: int
    rejected: int


REFUSES = (
    "sessions.capture_conflict", "sessions.org_mismatch", "sessions.session_deleted", "sessions.past_retention",
    "sessions.disk_full",
)  # fmt: skip


@post(
    PATH, opt={"scope": "ingest", "codes": REFUSES}, status_code=202, operation_class=OneCall,
    tags=["sessions"], summary="Store a call",
    responses={200: ResponseSpec(Taken, description="It was stored before")},
)  # fmt: skip
async def ingest(request: Request[Any, Any, Any]) -> Response[Taken]:
    backend, principal = _given(request)
    status, taken = await take(backend, principal, cast("dict[str, Any]", request.scope))
    return Response(taken, status_code=status)


async def take(backend: Backend, principal: Principal, scope: MutableMapping[str, Any]) -> tuple[int, Taken]:
    """Take the call of a request in, and return the status and the body of the answer."""
    # In a list, to be let go of as soon as it is read: as a name of this function it would stay to its end.
    body = scope["holdfast.body"]
    held, headers = [await body.read()], body.headers
    scope["state"]["counted"] = True  # the archive counts what it refuses by itself
    name, wait = headers.get(b"idempotency-key", b""), _wait(headers.get(b"prefer", b""))
    taken = await backend.archive.receive(held.pop(), header=name.decode("latin-1"), wait=wait, principal=principal)
    return 200 if isinstance(taken, Duplicate) else 202, _taken(taken)


@post(
    "/v1/ingest/batch", opt={"scope": "ingest", "accepts": ("application/json", *NDJSON)},
    status_code=207, operation_class=ManyCalls, tags=["sessions"], summary="Store up to a thousand calls",
)  # fmt: skip
async def ingest_batch(request: Request[Any, Any, Any]) -> BatchResults:
    backend, principal = _given(request)
    data = await request.scope["holdfast.body"].read()  # type: ignore[typeddict-item]  # the door's
    lines = request.headers.get("content-type", "").partition(";")[0].strip().lower() in NDJSON
    parts = intake.batch(data, items_max=backend.archive.config.batch_items_max, lines=lines)
    found = await backend.archive.receive_many(parts, principal=principal)
    results = [_result(index, each) for index, each in enumerate(found)]
    rejected = sum(each.status == "rejected" for each in results)
    duplicates = sum(each.status == "duplicate" for each in results)
    return BatchResults(results, len(results) - rejected - duplicates, duplicates, rejected)


def _given(request: Request[Any, Any, Any]) -> tuple[Backend, Principal]:
    """Return what other routes have injected, which would cost these a tenth of their time."""
    return request.app.state.backend, request.state.principal


def _wait(prefer: bytes) -> timedelta | None:
    """Return how long the client would like to wait for its turn."""
    found = _PREFER.search(prefer)
    return timedelta(seconds=min(int(found[1]), WAIT_S_MAX)) if found else None


def _taken(taken: Stored | Duplicate) -> Taken:
    if isinstance(taken, Duplicate):
        return Taken("duplicate", taken.event_id, taken.turn_id, taken.session_id)
    reason = taken.reason or msgspec.UNSET
    return Taken(taken.state, taken.event_id, taken.turn_id, taken.session_id, taken.derived, reason)


def _result(index: int, each: Stored | Duplicate | SessionError) -> BatchResult:
    if isinstance(each, SessionError):
        told = msgspec.structs.asdict(problem_of(each))
        return BatchResult(index, "rejected", told.pop("status"), **told)
    taken = msgspec.structs.asdict(_taken(each))
    return BatchResult(index, taken.pop("status"), 200 if isinstance(each, Duplicate) else 202, **taken)


HANDLERS = [ingest, ingest_batch]
