"""What a program does with captured conversations: one object over one ledger.

    async with Archive(hf.database) as archive:
        stored = await archive.ingest(Call("anthropic", request, response))

Started, it makes turns of what is taken in, by whomever; otherwise `derive` does so when asked.

Invariants:
    - Whoever asks sees only rows of its principal's org.
    - What is acknowledged is on disk.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from blake3 import blake3

from holdfast.sessions import archive, identity, instants
from holdfast.sessions.archive import Known, Listed, changing, reading
from holdfast.sessions.archive.derive import mend
from holdfast.sessions.config import SessionsConfig
from holdfast.sessions.deriver import CHANNEL, Deriver, DeriveReport, channel_of
from holdfast.sessions.errors import Forbidden, InvalidField, NotFound, SessionError
from holdfast.sessions.ingest import OFF_LOOP_BYTES, Ingest
from holdfast.sessions.machine import DeriveState
from holdfast.sessions.prices import rate_cards, source
from holdfast.sessions.secret import installation_secret, secret_file
from holdfast.sessions.values import LOCAL, Call, Duplicate, Principal, Refused, Scope, SessionKey, Stored
from holdfast.sessions.verify import Problem, projection_hash, verify
from holdfast.sessions.views import Branches, GroupBy, Page, Session, SessionFilters, StatsRow, Tree, Turn

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.sessions.pricing import PriceSource
    from holdfast.store.database import Database, Tx

__all__ = ["Archive", "DeleteReport", "Payload", "RawBody", "SessionRef", "Violation"]

SessionRef: TypeAlias = str | tuple[str, str]
"""A session: its id, or harness id and harness session id."""

Payload: TypeAlias = Literal["none", "preview", "full"]
"""Whether messages come with a turn: not, cut, or whole."""

Violation: TypeAlias = Problem
"""A promise of the ledger that is broken, and the row that breaks it."""

_ALL = SessionFilters()
_CURSORS = "holdfast 2026 sessions: cursors of lists"
DISPLAY_NAME_CHARS_MAX = 200
"""A name that an operator gives to a session: one line of a list."""

LOOK_S = 0.05
"""How often is looked whether another process has derived an event that a caller waits for."""


@dataclass(frozen=True, slots=True)
class RawBody:
    """A body as it was captured, its coding still on it."""

    data: bytes
    content_type: str
    content_encoding: str


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What was deleted, or would be.

    Attributes:
        events: Captured events, with their bodies.
        turns: Turns that are gone.
        moved: Turns that other events tell of too: they are in the sessions of those now.
    """

    session_id: str
    events: int
    turns: int
    moved: int


class Archive:
    """Captured conversations in one ledger. Belongs to the event loop of its database."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock | None = None,
        config: SessionsConfig | None = None,
        prices: PriceSource | None = None,
    ) -> None:
        """Make one; nothing runs before `start`.

        Args:
            database: The open ledger, `hf.database`; its owner closes it.
            clock: The time; None: the ledger's.
            config: Settings; None: the defaults.
            prices: Who is asked what a call costs; None: as the settings say.

        Raises:
            ConfigError: The rate cards cannot be read.
        """
        self.config = SessionsConfig() if config is None else config
        self._database = database
        self._clock = database.clock if clock is None else clock
        # Whoever can read this has read the ledger: a cursor is no secret, it is only not to be made up.
        self._cursor_key = blake3(database.namespace, derive_key_context=_CURSORS).digest()
        self._deriver = Deriver(
            database,
            clock=self._clock,
            config=self.config,
            prices=source(self.config) if prices is None else prices,
        )

    # --- opening and closing ---

    async def start(self) -> None:
        """Make turns of events as they come, from now on. Harmless when done before.

        Raises:
            ConfigError: The installation's secret cannot be read or made.
            StoreError: The ledger cannot be used.
        """
        self._ingest  # noqa: B018 - what cannot be read is better known now
        await self._deriver.start()

    async def stop(self) -> None:
        """Make no more turns; what was taken in stays and is seen to later. Harmless when done before."""
        await self._deriver.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- taking calls in ---

    @functools.cached_property
    def _ingest(self) -> Ingest:
        path = secret_file(self._database, self.config.secret_file, os.environ)
        secret = installation_secret(self._database, path)
        return Ingest(self._database, clock=self._clock, config=self.config, secret=secret)

    async def ingest(
        self, call: Call, *, wait: timedelta | None = None, principal: Principal = LOCAL
    ) -> Stored | Duplicate | Refused:
        """Store a call; return when it is on disk.

        Args:
            call: The call; given again, with its capture id or with equal content, it changes nothing.
            wait: How long to wait for its turn besides.
            principal: Who gives it.
        """
        try:
            _permit(principal, "ingest")
            return await self._derived(await self._announced(self._ingest.call(call, principal)), wait, principal)
        except SessionError as error:
            return _refused(error)

    async def ingest_many(
        self, calls: Sequence[Call], *, principal: Principal = LOCAL
    ) -> builtins.list[Stored | Duplicate | Refused]:
        """Store calls that share a commit; one that is refused leaves the others alone."""
        try:
            _permit(principal, "ingest")
        except SessionError as error:
            return [_refused(error)] * len(calls)
        found = await self._ingest.calls(calls, principal)
        self._database.wake(CHANNEL)
        return [_refused(each) if isinstance(each, SessionError) else each for each in found]

    async def receive(
        self, data: bytes, *, header: str = "", wait: timedelta | None = None, principal: Principal = LOCAL
    ) -> Stored | Duplicate:
        """Store a call that was posted.

        Args:
            data: Its JSON, without content coding.
            header: The `Idempotency-Key` header; empty where there was none.
            wait: How long to wait for its turn besides.
            principal: Who posted it.

        Raises:
            SessionError: It breaks a rule, conflicts with another, or cannot be stored now.
        """
        _permit(principal, "ingest")
        taking = self._ingest.body(data, principal, header=header)
        del data  # as long as it is referenced here it stays in memory
        taken = await self._announced(taking)
        return await self._derived(taken, wait, principal)

    async def receive_many(
        self, parts: Sequence[bytes], *, principal: Principal = LOCAL
    ) -> builtins.list[Stored | Duplicate | SessionError]:
        """Store the elements of a batch, which share a commit; one that is refused leaves the others alone.

        Raises:
            Forbidden: The principal may not store calls.
        """
        _permit(principal, "ingest")
        found = await self._ingest.bodies(parts, principal)
        self._database.wake(CHANNEL)
        return found

    async def _announced(self, taking: Awaitable[Stored | Duplicate]) -> Stored | Duplicate:
        taken = await taking
        self._database.wake(CHANNEL)
        return taken

    async def _derived(
        self, taken: Stored | Duplicate, wait: timedelta | None, principal: Principal
    ) -> Stored | Duplicate:
        """Wait for a call's turn, at most so long, and answer with what is known by then."""
        if wait is None or isinstance(taken, Duplicate):
            return taken
        event_id = identity.parse_id("cap", taken.event_id)
        assert event_id is not None
        if not self._deriver.running:
            await self._deriver.one(principal.org_id, event_id)
        deadline = self._clock.monotonic() + wait.total_seconds()
        while True:
            async with self._database.read() as tx:
                known = await archive.event_state(tx, principal.org_id, event_id)
            left = deadline - self._clock.monotonic()
            if known is None or known.state != "pending" or left <= 0:
                return taken if known is None else _answer(taken, known)
            await self._database.wait(channel_of(event_id), min(left, LOOK_S))

    # --- making turns ---

    async def derive(self, *, limit: int = 256) -> DeriveReport:
        """Make turns of events that wait, at most so many, in the order they came.

        Raises:
            StoreError: The ledger cannot be reached; what was derived stays so.
        """
        return await self._deriver.derive(limit=limit)

    async def replay(self, event_ids: Sequence[str] = (), *, principal: Principal = LOCAL) -> DeriveReport:
        """Derive events again that were set aside or could not be read; without ids, all of them.

        Raises:
            Forbidden: The principal may not.
            NotFound: An id names no event of its org.
        """
        _permit(principal, "admin")
        ids = [_event_id(each) for each in event_ids]
        async with self._database.write() as tx:
            put = await archive.replay(tx, principal.org_id, ids, states=("dead", "unparsed"))
        if put < len(ids):
            raise NotFound("an id names no event that was set aside or could not be read", "see sessions dead")
        return await self._deriver.derive(limit=max(put, 1))

    async def rebuild(self, session: SessionRef | None = None, *, principal: Principal = LOCAL) -> DeriveReport:
        """Derive everything of a session, or of the org, anew, beside whoever reads and writes.

        Raises:
            NotFound: There is no such session.
        """
        _permit(principal, "admin")
        org = principal.org_id
        session_id = None if session is None else await self._require(session, principal)
        counts: dict[str, int] = {}
        rebuilt = set[bytes]() if session_id is None else {session_id}
        after = 0
        while True:
            async with self._database.write() as tx:
                found = await changing.events_of(tx, org, session_id, after=after)
                await archive.replay(tx, org, [event_id for _, event_id in found])
            for _, event_id in found:
                rebuilt |= await self._deriver.again(org, event_id, counts)
            if not found or session_id is not None:
                break
            after = found[-1][0]
        for each in sorted(rebuilt):
            await mend(self._database, org, each, mint=self._deriver.mint, terms=self._deriver.terms)
        counts.pop("retry", None)
        return DeriveReport(**counts, pending=await self._deriver.measure())

    # --- reading ---

    async def get(self, session: SessionRef, *, principal: Principal = LOCAL) -> Session | None:
        """Return a session by its id, or by harness id and harness session id."""
        _permit(principal, "read")
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
        _permit(principal, "read")
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
        _permit(principal, "read")
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
        _permit(principal, "read")
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

    async def raw(
        self, turn_id: str, part: Literal["request", "response"], *, principal: Principal = LOCAL
    ) -> RawBody | None:
        """Return a body of a turn as it was captured; None where there is none."""
        _permit(principal, "read")
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
        _permit(principal, "read")
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
        _permit(principal, "read")
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
            most = self.config.graph_nodes_max
            return None if found is None else await reading.branches(tx, principal.org_id, found, nodes_max=most)

    async def stats(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        group_by: GroupBy = "model",
        principal: Principal = LOCAL,
    ) -> builtins.list[StatsRow]:
        """Return the totals of turns captured from an instant on, before another, by group."""
        _permit(principal, "read")
        async with self._database.read() as tx:
            return await reading.stats(
                tx,
                principal.org_id,
                since=None if since is None else instants.micros(since),
                until=None if until is None else instants.micros(until),
                group_by=group_by,
            )

    async def events(
        self,
        *,
        state: DeriveState | None = None,
        after: int = 0,
        limit: int = 50,
        principal: Principal = LOCAL,
    ) -> builtins.list[Listed]:
        """Return events in the order they came, those after a place in it; of all states, or of one."""
        _permit(principal, "admin")
        async with self._database.read() as tx:
            return await archive.list_events(tx, principal.org_id, state=state, after=after, limit=limit)

    # --- operating ---

    async def rename(self, session: SessionRef, display_name: str | None, *, principal: Principal = LOCAL) -> Session:
        """Give a session the name it is shown with, or take it away with None or an empty one; return the session.

        Raises:
            InvalidField: The name is too long.
            NotFound: There is no such session.
        """
        _permit(principal, "admin")
        if len(display_name or "") > DISPLAY_NAME_CHARS_MAX:
            raise InvalidField(f"a name has {DISPLAY_NAME_CHARS_MAX} characters at most", field="/display_name")
        session_id = await self._require(session, principal)
        org = principal.org_id
        await changing.rename(self._database, org, session_id, display_name, actor=principal.access_key_id or "local")
        async with self._database.read() as tx:
            found = await reading.get_session(tx, org, session_id, now=self._clock.now())
        if found is None:
            raise _no_session()
        return found

    async def delete(
        self, session: SessionRef, *, reason: str, dry_run: bool = False, principal: Principal = LOCAL
    ) -> DeleteReport:
        """Delete a session with everything that was captured of it; its key takes no more calls.

        Args:
            session: Which.
            reason: Why; kept.
            dry_run: Only say what would go.
            principal: Who says so; kept.

        Raises:
            NotFound: There is no such session.
        """
        _permit(principal, "admin")
        session_id = await self._require(session, principal)
        found = await changing.delete(
            self._database,
            principal.org_id,
            session_id,
            actor=principal.access_key_id or "local",
            reason=reason,
            read=self._deriver.read,
            mint=self._deriver.mint,
            terms=self._deriver.terms,
            dry_run=dry_run,
        )
        if found is None:
            raise _no_session()
        return DeleteReport(identity.shown_id("ses", session_id), found.events, found.turns, found.moved)

    async def undelete_key(self, key: SessionKey, *, principal: Principal = LOCAL) -> bool:
        """Let calls of a deleted session be taken again; say whether it was deleted. What was deleted stays so."""
        _permit(principal, "admin")
        deriver = self._deriver
        return await changing.undelete(self._database, principal.org_id, key, mint=deriver.mint, terms=deriver.terms)

    async def verify(self, *, principal: Principal = LOCAL) -> builtins.list[Violation]:
        """Check what the ledger promises about the org's rows; return the first row that breaks each promise."""
        _permit(principal, "admin")
        path = self.config.prices.cards
        report = await verify(
            self._database,
            principal.org_id,
            lag_us=self.config.lag_ready_ms * 1000,
            cards=() if path is None else rate_cards(path),
            terms=self._deriver.terms,
        )
        return [*report.problems]

    async def projection_hash(self, *, principal: Principal = LOCAL) -> str:
        """Return one hash of all that was derived of the org's events, equal wherever the same was captured."""
        _permit(principal, "admin")
        return await projection_hash(self._database, principal.org_id)

    async def _require(self, session: SessionRef, principal: Principal) -> bytes:
        async with self._database.read() as tx:
            found = await self._find(tx, session, principal)
        if found is None:
            raise _no_session()
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


def _no_session() -> NotFound:
    return NotFound("there is no such session", "holdfast sessions list shows those there are")


def _ref(session: SessionRef) -> bytes | SessionKey | None:
    return identity.parse_id("ses", session) if isinstance(session, str) else session


def _permit(principal: Principal, scope: Scope) -> None:
    if scope not in principal.scopes:
        raise Forbidden(f"the credential lacks the scope {scope}", "use one that has it")


def _answer(taken: Stored, known: Known) -> Stored:
    """Return the answer to a new call with what is known of it by now."""
    turn, session = known.turn_id, known.session_id
    unread = known.state in ("unparsed", "refused")
    return replace(
        taken,
        turn_id=taken.turn_id if turn is None else identity.shown_id("turn", turn),
        session_id=None if session is None else identity.shown_id("ses", session),
        state="stored_unparsed" if unread else taken.state,
        reason=known.reason if unread else taken.reason,
        derived=known.state == "derived",
    )


def _event_id(text: str) -> bytes:
    found = identity.parse_id("cap", text)
    if found is None:
        raise NotFound(f"{text[:40]!r} is no id of an event", "ids of events begin with cap_")
    return found


def _refused(error: SessionError) -> Refused:
    return Refused(error.bare_code, getattr(error, "field", ""), str(error))
