"""Repairs over HTTP: attributions, prices, deriving anew, and access keys.

What is asked for is done before the answer, which says what it changed. A repair only says so, unless the body sets
`dry_run` to false.

Invariants:
    - Only an operator comes here, and reaches the rows and keys of its org.
    - The secret of an access key is in one answer, which no cache keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from holdfast.core.clock import from_datetime, to_datetime
from holdfast.server.answers import Asked, shown, there
from holdfast.server.backend import Backend, aware
from holdfast.sessions import access
from holdfast.sessions.access import AccessKey
from holdfast.sessions.deriver import DeriveReport
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.overlays import Attribution
from holdfast.sessions.reports import Attributed, AttributionReport, RepriceReport, Selector, SessionRef, TurnFilters
from holdfast.sessions.values import Principal
from holdfast.sessions.views import document

__all__ = ["HANDLERS"]

NAMED = {"scope": "admin", "codes": ("sessions.not_found",)}
ATTRIBUTES = {"scope": "admin", "codes": ("sessions.not_found", "sessions.attribution_refused")}
PRICES = {"scope": "admin", "codes": ("sessions.not_found", "sessions.no_price_source")}
LISTS = {"scope": "admin", "tagged": True}

Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=2000, pattern=r"^[^\x00]*$")]


class SessionNamed(msgspec.Struct, forbid_unknown_fields=True):
    """A session: its id, or harness id and harness session id."""

    id: Text = ""
    harness_id: Text = ""
    harness_session_id: Text = ""

    def ref(self, field: str) -> SessionRef:
        """Return the session that is meant."""
        if bool(self.id) == bool(self.harness_id and self.harness_session_id):
            raise InvalidField("a session is named by its id, or by harness id and harness session id", field=field)
        return self.id or (self.harness_id, self.harness_session_id)


class Selection(msgspec.Struct, forbid_unknown_fields=True):
    """Which events: some, or those that were sent as of a session, or of one thread of it."""

    event_ids: tuple[Text, ...] = ()
    session: SessionNamed | None = None
    thread_id: Text | None = None


class Attribute(msgspec.Struct, forbid_unknown_fields=True):
    """Events that are put elsewhere, and why."""

    selector: Selection
    change: Attribution
    reason: Reason
    dry_run: bool = True


class Reprice(msgspec.Struct, forbid_unknown_fields=True):
    """Turns that are priced again, and why."""

    reason: Reason
    session: SessionNamed | None = None
    model: Text | None = None
    since: datetime | None = None
    until: datetime | None = None
    dry_run: bool = True


class Rebuild(msgspec.Struct, forbid_unknown_fields=True):
    """What is derived anew: a session, or all of the org."""

    session: SessionNamed | None = None
    dry_run: bool = True


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """What an access key is good for."""

    scopes: Annotated[list[Literal["ingest", "read", "admin"]], msgspec.Meta(min_length=1)]
    label: Text = ""
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessKeyView:
    """What is known of an access key."""

    id: str
    scopes: list[str]
    label: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeKey(AccessKeyView):
    """An access key that was just made.

    Attributes:
        access_key: The key itself; nobody can show it again.
    """

    access_key: str


@dataclass(frozen=True, slots=True)
class AccessKeys:
    """The access keys of an org, the oldest first."""

    items: list[AccessKeyView]
    next: str | None


@dataclass(frozen=True, slots=True)
class Attributions:
    """The attributions of an org, in the order they were made."""

    items: list[Attributed]
    next: str | None


# --- repairs ------------------------------------------------------------------------------------------


@post("/v1/admin/attributions", opt=ATTRIBUTES, status_code=200,
      summary="Put events into another session, or under another parent", tags=["admin"])  # fmt: skip
async def attribute(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], data: JSONBody[Attribute]
) -> Response[AttributionReport]:
    given = data.selector
    session = None if given.session is None else given.session.ref("/selector/session")
    selector = Selector(event_ids=given.event_ids, session=session, thread_id=given.thread_id)
    found = await backend.archive.attribute(
        selector, data.change, reason=data.reason, dry_run=data.dry_run, principal=principal
    )
    return _effect(found)


@get("/v1/admin/attributions", opt=LISTS, summary="List attributions", tags=["admin"])
async def attributions(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal]
) -> Response[Attributions]:
    return await shown(request, Attributions(await backend.archive.attributions(principal=principal), None))


@delete("/v1/admin/attributions/{id:str}", opt=ATTRIBUTES, status_code=200,
        summary="Take an attribution back", tags=["admin"])  # fmt: skip
async def undo(
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    id: FromPath[str],
    *,
    dry_run: FromQuery[bool] = False,
) -> Response[AttributionReport]:
    return _effect(await backend.archive.undo_attribution(id, dry_run=dry_run, principal=principal))


@post("/v1/admin/reprice", opt=PRICES, status_code=200,
      summary="Price again what turns used", tags=["admin"])  # fmt: skip
async def reprice(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], data: JSONBody[Reprice]
) -> Response[RepriceReport]:
    filters = TurnFilters(
        session=None if data.session is None else data.session.ref("/session"),
        model=data.model, since=aware(data.since), until=aware(data.until),
    )  # fmt: skip
    found = await backend.archive.reprice(filters, reason=data.reason, dry_run=data.dry_run, principal=principal)
    return _effect(found)


@post("/v1/admin/rebuild", opt=NAMED, status_code=200,
      summary="Derive a session, or everything, anew", tags=["admin"])  # fmt: skip
async def rebuild(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], data: JSONBody[Rebuild]
) -> Response[DeriveReport]:
    session = None if data.session is None else data.session.ref("/session")
    return _effect(await backend.archive.rebuild(session, dry_run=data.dry_run, principal=principal))


# --- access keys --------------------------------------------------------------------------------------


@get("/v1/admin/access-keys", opt=LISTS, summary="List access keys", tags=["admin"])
async def list_keys(
    request: Asked, backend: NamedDependency[Backend], principal: NamedDependency[Principal]
) -> Response[AccessKeys]:
    async with backend.hf.database.read() as tx:
        found = await access.list(tx, principal.org_id)
    return await shown(request, AccessKeys([AccessKeyView(**_known(key)) for key in found], None))


@post("/v1/admin/access-keys", opt={"scope": "admin", "codes": ("config.scope",)},
      summary="Make an access key", tags=["admin"])  # fmt: skip
async def create_key(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], data: JSONBody[NewKey]
) -> Response[MadeKey]:
    expires_at = aware(data.expires_at)
    async with backend.hf.database.write() as tx:
        key, token = await access.create(
            tx, org=principal.org_id, scopes=data.scopes, label=data.label,
            expires_at=None if expires_at is None else from_datetime(expires_at), now=backend.hf.database.clock.now(),
        )  # fmt: skip
    return _effect(MadeKey(**_known(key), access_key=token), status=201)


@delete("/v1/admin/access-keys/{id:str}", opt=NAMED, summary="Take an access key back", tags=["admin"])
async def revoke_key(
    backend: NamedDependency[Backend], principal: NamedDependency[Principal], id: FromPath[str]
) -> None:
    async with backend.hf.database.write() as tx:
        key = await access.get(tx, id)
        own = key is not None and key.org_id == principal.org_id
        done = own and await access.revoke(tx, id, now=backend.hf.database.clock.now())
    there(done or None, "access key that is still good")


def _known(key: AccessKey) -> dict[str, Any]:
    def at(value: int | None) -> datetime | None:
        return None if value is None else to_datetime(value)

    return {
        "id": key.key_id, "scopes": sorted(key.scopes), "label": key.label or None, "created_at": at(key.created_at),
        "expires_at": at(key.expires_at), "revoked_at": at(key.revoked_at), "last_used_at": at(key.last_used_at),
    }  # fmt: skip


def _effect(value: Any, status: int = 200) -> Response[Any]:
    headers = {"cache-control": "no-store"}
    return Response(
        msgspec.json.encode(document(value)), status_code=status, media_type="application/json", headers=headers
    )


HANDLERS = [
    attribute, attributions, undo, reprice, rebuild, list_keys, create_key, revoke_key,
]  # fmt: skip
