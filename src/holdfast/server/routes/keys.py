"""Idempotency keys over HTTP: what `holdfast keys` shows and does.

Invariants:
    - Only an operator comes here: an access key with the scope `admin`, or whoever is alone on the machine.
    - What changes a record is in its audit, with who asked for it and why, in the same transaction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from holdfast.core.clock import from_datetime
from holdfast.idempotency import keys, operating
from holdfast.idempotency.keys import Action
from holdfast.idempotency.machine import DecideOutcome, DecideRerun, ForceExpire, ForceRelease
from holdfast.idempotency.operating import KeyView, view
from holdfast.idempotency.values import State, Tombstone
from holdfast.server.backend import Backend, actor, aware, said
from holdfast.server.problems import Refusal
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.values import Principal

if TYPE_CHECKING:
    from holdfast.idempotency.values import KeyRecord
    from holdfast.store.database import Tx

__all__ = ["HANDLERS"]

_REF = re.compile(r"[0-9a-f]{8,32}")

LISTS = {"scope": "admin", "codes": ("codec.cursor",)}
READS = {"scope": "admin", "codes": ("idempotency.key_not_found", "idempotency.key_ambiguous")}
OPERATES = {"scope": "admin", "codes": (*READS["codes"], "idempotency.state_refuses", "config.reason_required")}
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
KeyState = Literal["reserved", "completed", "tombstone", "unknown", "released"]
HttpStatus = Annotated[int, msgspec.Meta(ge=200, le=599)]


@dataclass(frozen=True, slots=True)
class Keys:
    """A page of keys, newest first."""

    items: list[KeyView]
    next: str | None


class Reason(msgspec.Struct, forbid_unknown_fields=True):
    """Why; kept in the audit."""

    reason: Text = ""


class Result(msgspec.Struct, forbid_unknown_fields=True):
    """The answer that a request has from now on."""

    status: HttpStatus
    headers: list[tuple[str, str]] = []
    body: str = ""


class Ruling(msgspec.Struct, forbid_unknown_fields=True):
    """What became of a request whose outcome is unknown: exactly one of the three."""

    reason: Text = ""
    rerun: bool = False
    result: Result | None = None
    tombstone: HttpStatus | None = None


@get("/v1/idempotency/keys", opt=LISTS, summary="List keys, newest first", tags=["idempotency"])
async def list_keys(
    backend: NamedDependency[Backend],
    wanted: Annotated[KeyState | None, QueryParameter(name="state")] = None,
    route: Annotated[str | None, QueryParameter(pattern=r"^[^\x00]*$")] = None,
    since: FromQuery[datetime | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
    cursor: FromQuery[str | None] = None,
) -> Response[Keys]:
    state = None if wanted is None else State[wanted.upper()]
    at = aware(since)
    at_us = None if at is None else from_datetime(at)
    async with backend.hf.database.read() as tx:
        page = await keys.list(tx, state=state, route=route, since=at_us, cursor=cursor, limit=limit)
    return said(Keys([view(record) for record in page.items], page.next))


@get("/v1/idempotency/keys/{ref:str}", opt=READS, summary="Show a key", tags=["idempotency"])
async def show(backend: NamedDependency[Backend], ref: FromPath[str]) -> Response[KeyView]:
    async with backend.hf.database.read() as tx:
        return said(view(await _find(tx, ref)))


@post("/v1/idempotency/keys/{ref:str}/expire", opt=OPERATES, status_code=200,
      summary="Forget a settled or released key: it is new from now on", tags=["idempotency"])  # fmt: skip
async def expire(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], ref: FromPath[str], data: JSONBody[Reason]
) -> Response[KeyView]:
    return await _force(backend, principal, ref, ForceExpire(), data.reason)


@post("/v1/idempotency/keys/{ref:str}/release", opt=OPERATES, status_code=200,
      summary="Let a retry run", tags=["idempotency"])  # fmt: skip
async def release(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], ref: FromPath[str], data: JSONBody[Reason]
) -> Response[KeyView]:
    return await _force(backend, principal, ref, ForceRelease(), data.reason)


@post("/v1/idempotency/keys/{ref:str}/decide", opt=OPERATES, status_code=200,
      summary="Say what became of a key whose outcome is unknown", tags=["idempotency"])  # fmt: skip
async def decide(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], ref: FromPath[str], data: JSONBody[Ruling]
) -> Response[KeyView]:
    return await _force(backend, principal, ref, _ruling(data), data.reason)


def _ruling(data: Ruling) -> Action:
    if [data.rerun, data.result is not None, data.tombstone is not None].count(True) != 1:
        raise InvalidField("one ruling is needed", "give exactly one of rerun, result and tombstone")
    if data.result is not None:
        answer = operating.answer_of(data.result.status, data.result.headers, data.result.body)
        if answer is None:
            raise InvalidField(
                "a header field of the result could not be sent", "leave it out", field="/result/headers"
            )
        return DecideOutcome(outcome=answer)
    if data.tombstone is not None:
        return DecideOutcome(outcome=Tombstone(data.tombstone, [], "decided"))
    return DecideRerun()


async def _force(backend: Backend, principal: Principal, ref: str, action: Action, reason: str) -> Response[KeyView]:
    """Do to a key what an operator decided, and show what it is then."""
    if not reason.strip():
        raise Refusal("config.reason_required", "a forced action needs a reason", "whoever reads the audit asks why")
    async with backend.hf.database.write() as tx:
        record, sealed = await _find(tx, ref), None
        if isinstance(action, DecideOutcome):
            sealed = await operating.sealed(tx, record, action.outcome, backend.ring)
        done = await keys.force(
            tx, record.key_id, action, actor=actor(principal), reason=reason.strip(),
            now=backend.hf.database.clock.now(), sealed=sealed,
        )  # fmt: skip
        if not done:
            raise Refusal(
                "idempotency.state_refuses",
                f"{record.key_ref} is {record.state.name.lower()}, which this does not apply to",
                "GET the key to see where it stands",
            )
        after = await keys.get(tx, record.key_id)
    return said(view(after or record))


async def _find(tx: Tx, ref: str) -> KeyRecord:
    ids = await keys.search(tx, ref.lower()) if _REF.fullmatch(ref.lower()) else []
    found = [record for each in ids if (record := await keys.get(tx, each)) is not None]
    if len(found) > 1:
        raise Refusal("idempotency.key_ambiguous", f"more than one key begins with {ref}", "give more of its digits")
    if not found:
        raise Refusal("idempotency.key_not_found", "there is no such key", "GET /v1/idempotency/keys shows them")
    return found[0]


HANDLERS = [list_keys, show, expire, release, decide]
