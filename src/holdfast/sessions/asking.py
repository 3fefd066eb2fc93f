"""What can be asked of captured conversations: sessions, turns, what was sent and answered, and how they hang together.

Invariants:
    - Whoever asks sees only rows of its principal's org.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

from holdfast.sessions import identity, instants
from holdfast.sessions.archive import moments, reading
from holdfast.sessions.archive.reading import Ancestry, Difference
from holdfast.sessions.errors import Forbidden, NotFound
from holdfast.sessions.ingest import OFF_LOOP_BYTES
from holdfast.sessions.machine import DeriveState
from holdfast.sessions.reports import SessionRef
from holdfast.sessions.values import LOCAL, Principal, Scope, SessionKey
from holdfast.sessions.views import (
    Branches,
    CapturedEvent,
    Event,
    GroupBy,
    Moment,
    Node,
    Page,
    Session,
    SessionFilters,
    StatsRow,
    Tree,
    Turn,
)

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.sessions.config import SessionsConfig
    from holdfast.store.database import Database, Tx

__all__ = ["Asking", "Payload", "RawBody", "event_id_of", "no_session", "permit"]

Payload: TypeAlias = Literal["none", "preview", "full"]
"""Whether messages come with a turn: not, cut, or whole."""

_ALL = SessionFilters()
HASH_CHARS = 64
"""SHA-256, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class RawBody:
    """A body as it was captured, its coding still on it."""

    data: bytes
    content_type: str
    content_encoding: str


class Asking:
    """The questions that an archive answers."""

    config: SessionsConfig
    _database: Database
    _clock: Clock
    _cursor_key: bytes

    async def get(self, session: SessionRef, *, principal: Principal = LOCAL) -> Session | None:
        """Return a session by its id, or by harness id and harness session id."""
        permit(principal, "read")
        ref = _ref(session)
        if ref is None:
            return None
        async with self._database.read() as tx:
            return await reading.get_session(tx, principal.org_id, ref, now=self._clock.now())

    async def list(
        self,
        filters: SessionFilters = _ALL,
        *,
        sort: str = "-last_seen",
        limit: int = 50,
        cursor: str = "",
        principal: Principal = LOCAL,
    ) -> Page[Session]:
        """Return a page of sessions.

        Args:
            filters: Which.
            sort: `last_seen`, `started`, `turns`, `cost` or `tokens`; with a `-` before it, the greatest first.
            limit: How many, 200 at most.
            cursor: `next` of the page before; empty: begin.
            principal: Who asks.

        Raises:
            InvalidQuery: There is no such order, or the limit is out of range.
            CursorMismatch: The cursor belongs to another list.
        """
        permit(principal, "read")
        async with self._database.read() as tx:
            return await reading.page_sessions(
                tx,
                principal.org_id,
                filters,
                secret=self._cursor_key,
                now=self._clock.now(),
                sort=sort,
                limit=limit,
                cursor=cursor,
            )

    async def turn(self, turn_id: str, *, payload: Payload = "none", principal: Principal = LOCAL) -> Turn | None:
        """Return a turn by its id, a former id of it, or the id of one of its events.

        Args:
            turn_id: The id.
            payload: Whether its messages come with it, whole or cut to a few hundred characters each.
            principal: Who asks.
        """
        permit(principal, "read")
        raw = identity.parse_id("turn", turn_id) or identity.parse_id("cap", turn_id)
        if raw is None:
            return None
        async with self._database.read() as tx:
            found = await reading.get_turn(tx, principal.org_id, raw)
            return None if found is None else await _with_payload(tx, principal, found, payload)

    async def turns(
        self, session: SessionRef, *, payload: Payload = "none", principal: Principal = LOCAL
    ) -> AsyncIterator[Turn]:
        """Go through the turns of a session by their captured time; each page of them is a view of its own."""
        permit(principal, "read")
        ref = _ref(session)
        after = None
        while ref is not None:
            async with self._database.read() as tx:
                session_id = await reading.find_session(tx, principal.org_id, ref)
                if session_id is None:
                    return
                found, after = await reading.page_turns(tx, principal.org_id, session_id, after=after)
                shown = [await _with_payload(tx, principal, each, payload) for each in found]
            for each in shown:
                yield each
            if after is None:
                return

    async def page(
        self,
        session: SessionRef,
        *,
        payload: Payload = "none",
        limit: int = 50,
        cursor: str = "",
        principal: Principal = LOCAL,
    ) -> Page[Turn] | None:
        """Return a page of the turns of a session by their captured time; None where there is no session.

        Raises:
            InvalidQuery: The limit is out of range.
            CursorMismatch: The cursor belongs to another list.
        """
        permit(principal, "read")
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
            if found is None:
                return None
            page = await reading.list_turns(
                tx, principal.org_id, found, secret=self._cursor_key, limit=limit, cursor=cursor
            )
            return Page(tuple([await _with_payload(tx, principal, each, payload) for each in page.items]), page.next)

    async def moments(
        self, session: SessionRef, *, principal: Principal = LOCAL
    ) -> tuple[builtins.list[Moment], bool] | None:
        """Return turns and tool uses of a session by time, and whether there are more; None: there is no session."""
        permit(principal, "read")
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
            most = self.config.graph_nodes_max
            return None if found is None else await moments.moments(tx, principal.org_id, found, most=most)

    async def raw(
        self, turn_id: str, part: Literal["request", "response"], *, principal: Principal = LOCAL
    ) -> RawBody | None:
        """Return a body of a turn as it was captured; None where there is none."""
        permit(principal, "read")
        raw = identity.parse_id("turn", turn_id) or identity.parse_id("cap", turn_id)
        if raw is None:
            return None
        async with self._database.read() as tx:
            body = await reading.get_body(tx, principal.org_id, raw, part)
        if body is None:
            return None
        data = await asyncio.to_thread(body.data) if body.size > OFF_LOOP_BYTES else body.data()
        return RawBody(data, body.content_type, body.encoding)

    async def tree(self, session: SessionRef, *, depth: int = 100, principal: Principal = LOCAL) -> Tree | None:
        """Return a session with those above and below it; None where there is none."""
        permit(principal, "read")
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
            if found is None:
                return None
            return await reading.tree(
                tx,
                principal.org_id,
                found,
                now=self._clock.now(),
                depth=depth,
                nodes_max=self.config.tree_nodes_max,
            )

    async def branches(self, session: SessionRef, *, principal: Principal = LOCAL) -> Branches | None:
        """Return where the messages of a session part; None where there is none."""
        permit(principal, "read")
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
            most = self.config.graph_nodes_max
            return None if found is None else await reading.branches(tx, principal.org_id, found, nodes_max=most)

    async def difference(
        self, session: SessionRef, a: str, b: str, *, principal: Principal = LOCAL
    ) -> Difference | None:
        """Return how the ways to two nodes of a session differ; None where one of them is not there."""
        permit(principal, "read")
        ends = _hash(a), _hash(b)
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
            if found is None or ends[0] is None or ends[1] is None:
                return None
            return await reading.difference(tx, principal.org_id, found, (ends[0], ends[1]))

    async def node(self, hash: str, *, principal: Principal = LOCAL) -> Node | None:
        """Return a node with the sessions that hold it."""
        permit(principal, "read")
        hashed = _hash(hash)
        if hashed is None:
            return None
        async with self._database.read() as tx:
            return await reading.get_node(tx, principal.org_id, hashed)

    async def ancestry(self, hash: str, *, depth: int = 10_000, principal: Principal = LOCAL) -> Ancestry | None:
        """Return the nodes from one to its root, at most so many links away; None where there is none."""
        permit(principal, "read")
        hashed = _hash(hash)
        if hashed is None:
            return None
        async with self._database.read() as tx:
            return await reading.ancestry(tx, principal.org_id, hashed, depth=depth)

    async def stats(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        group_by: GroupBy = "model",
        principal: Principal = LOCAL,
    ) -> builtins.list[StatsRow]:
        """Return the totals of turns captured from an instant on, before another, by group."""
        permit(principal, "read")
        async with self._database.read() as tx:
            return await reading.stats(
                tx,
                principal.org_id,
                since=None if since is None else instants.micros(since, "/since"),
                until=None if until is None else instants.micros(until, "/until"),
                group_by=group_by,
            )

    async def events(
        self,
        *,
        state: DeriveState | None = None,
        limit: int = 50,
        cursor: str = "",
        principal: Principal = LOCAL,
    ) -> Page[Event]:
        """Return a page of captured events in the order they came; of all states, or of one.

        Raises:
            InvalidQuery: The limit is out of range.
            CursorMismatch: The cursor belongs to another list.
        """
        permit(principal, "admin")
        async with self._database.read() as tx:
            return await reading.page_events(
                tx, principal.org_id, state=state, secret=self._cursor_key, limit=limit, cursor=cursor
            )

    async def event(self, event_id: str, *, principal: Principal = LOCAL) -> CapturedEvent | None:
        """Return a captured event with what was told of it; None where there is none."""
        permit(principal, "admin")
        raw = identity.parse_id("cap", event_id)
        if raw is None:
            return None
        async with self._database.read() as tx:
            return await reading.get_event(tx, principal.org_id, raw)

    async def _require(self, session: SessionRef, principal: Principal) -> bytes:
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
        if found is None:
            raise no_session()
        return found

    async def _find(self, tx: Tx, session: SessionRef, principal: Principal) -> bytes | None:
        ref = _ref(session)
        return None if ref is None else await reading.find_session(tx, principal.org_id, ref)


async def _with_payload(tx: Tx, principal: Principal, turn: Turn, payload: Payload) -> Turn:
    if payload == "none":
        return turn
    raw = identity.parse_id("turn", turn.id)
    assert raw is not None
    chain = await reading.load_chain(tx, principal.org_id, raw, preview=payload == "preview")
    return replace(turn, messages=tuple(chain))


def no_session() -> NotFound:
    """Return the error of a session that is not there, or is another org's."""
    return NotFound("there is no such session", "holdfast sessions list shows those there are")


def permit(principal: Principal, scope: Scope) -> None:
    """Check that a credential reaches as far.

    Raises:
        Forbidden: It lacks the scope.
    """
    if scope not in principal.scopes:
        raise Forbidden(f"the credential lacks the scope {scope}", "use one that has it")


def event_id_of(text: str) -> bytes:
    """Return the id of an event that somebody wrote.

    Raises:
        NotFound: It is none.
    """
    found = identity.parse_id("cap", text)
    if found is None:
        raise NotFound(f"{text[:40]!r} is no id of an event", "ids of events begin with cap_")
    return found


def _hash(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) if len(text) == HASH_CHARS else None
    except ValueError:
        return None


def _ref(session: SessionRef) -> bytes | SessionKey | None:
    return identity.parse_id("ses", session) if isinstance(session, str) else session
