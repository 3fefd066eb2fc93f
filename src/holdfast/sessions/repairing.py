"""What an operator does to captured conversations: name, delete, repair, price again, make anew, and prove.

Invariants:
    - What was captured is never changed, only deleted. Attributions and prices are notes beside it.
    - What a dry run says is what happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.sessions import archive, identity, instants
from holdfast.sessions.archive import attributions, changing, reading, rebuilds, repricing
from holdfast.sessions.archive.alone import alone
from holdfast.sessions.archive.derive import mend
from holdfast.sessions.archive.repricing import Used, Wanted
from holdfast.sessions.archive.shown import total_of, total_tokens
from holdfast.sessions.asking import Asking, event_id_of, no_session, permit
from holdfast.sessions.deriver import DeriveReport
from holdfast.sessions.errors import InvalidField, NoPriceSource, NotFound
from holdfast.sessions.overlays import Choice, Overlay, checked
from holdfast.sessions.prices import rate_cards
from holdfast.sessions.reports import (
    Attributed,
    AttributedSession,
    AttributedTurn,
    AttributionReport,
    DeleteReport,
    Place,
    RepriceReport,
    Selector,
    SessionRef,
    SessionTotals,
    TurnFilters,
)
from holdfast.sessions.values import COLUMNS, LOCAL, Principal, SessionKey
from holdfast.sessions.verify import Problem, projection_hash, verify

if TYPE_CHECKING:
    from uuid import UUID

    from holdfast.sessions.archive.standing import Standing
    from holdfast.sessions.deriver import Deriver
    from holdfast.sessions.evidence import TurnFacts
    from holdfast.sessions.overlays import Attribution
    from holdfast.sessions.packer import Packer, PackReport
    from holdfast.sessions.pricing import PriceSource
    from holdfast.sessions.views import Session

__all__ = ["Repairing", "Violation"]

Violation: TypeAlias = Problem
"""A promise of the ledger that is broken, and the row that breaks it."""

_ALL = TurnFilters()

DISPLAY_NAME_CHARS_MAX = 200
"""A name that an operator gives to a session: one line of a list."""


class Repairing(Asking):
    """What operators do with an archive, besides asking."""

    _deriver: Deriver
    _prices: PriceSource
    _priced: bool
    _packer: Packer

    async def rename(self, session: SessionRef, display_name: str | None, *, principal: Principal = LOCAL) -> Session:
        """Give a session the name it is shown with, or take it away with None or an empty one; return the session.

        Raises:
            InvalidField: The name is too long.
            NotFound: There is no such session.
        """
        permit(principal, "admin")
        if len(display_name or "") > DISPLAY_NAME_CHARS_MAX:
            raise InvalidField(f"a name has {DISPLAY_NAME_CHARS_MAX} characters at most", field="/display_name")
        session_id = await self._require(session, principal)
        org = principal.org_id
        await changing.rename(self._database, org, session_id, display_name, actor=_actor(principal))
        async with self._database.read() as tx:
            found = await reading.get_session(tx, org, session_id, now=self._clock.now())
        if found is None:
            raise no_session()
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
        permit(principal, "admin")
        session_id = await self._require(session, principal)
        found = await changing.delete(
            self._database,
            principal.org_id,
            session_id,
            actor=_actor(principal),
            reason=reason,
            read=self._deriver.read,
            mint=self._deriver.mint,
            terms=self._deriver.terms,
            dry_run=dry_run,
        )
        if found is None:
            raise no_session()
        return DeleteReport(identity.shown_id("ses", session_id), found.events, found.turns, found.moved)

    async def undelete_key(self, key: SessionKey, *, principal: Principal = LOCAL) -> bool:
        """Let calls of a deleted session be taken again; say whether it was deleted. What was deleted stays so."""
        permit(principal, "admin")
        deriver = self._deriver
        return await changing.undelete(self._database, principal.org_id, key, mint=deriver.mint, terms=deriver.terms)

    async def pack(self, *, dry_run: bool = False, principal: Principal = LOCAL) -> PackReport:
        """Keep requests that came `pack_after_ms` ago by how they differ from others of their conversation.

        Args:
            dry_run: Only say how many there are, and what they take.
            principal: Whose.
        """
        permit(principal, "admin")
        return await self._packer.pack(principal.org_id, dry_run=dry_run)

    async def verify(self, *, principal: Principal = LOCAL) -> list[Violation]:
        """Check what the ledger promises about the org's rows; return the first row that breaks each promise."""
        permit(principal, "admin")
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
        permit(principal, "admin")
        return await projection_hash(self._database, principal.org_id)

    # --- putting events elsewhere ---

    async def attribute(
        self,
        selector: Selector,
        change: Attribution,
        *,
        reason: str,
        dry_run: bool = True,
        principal: Principal = LOCAL,
    ) -> AttributionReport:
        """Put events into another session, thread or harness, or under another parent.

        What was captured stays as it is: the attribution is a note beside it, which `undo_attribution` takes back.
        Attributions count in the order they were made, each by what was sent. It is one transaction, beside which
        nothing is derived.

        Args:
            selector: Which events; those that come later under the same key too.
            change: Where.
            reason: Why; kept.
            dry_run: Only say what would change.
            principal: Who says so; kept.

        Raises:
            InvalidField: The selector or the change breaks a rule.
            NotFound: There is no such session or event.
            AttributionRefused: A session would be its own parent, or was deleted; or there are too many events.
        """
        permit(principal, "admin")
        org, deriver = principal.org_id, self._deriver
        overlay = Overlay(deriver.mint(), await self._choice(selector, principal), checked(change))
        found = await attributions.attribute(
            self._database,
            org,
            overlay,
            actor=_actor(principal),
            reason=reason,
            mint=deriver.mint,
            terms=deriver.terms,
            dry_run=dry_run,
        )
        return _attribution(b"" if dry_run else overlay.attribution_id, found, dry_run=dry_run)

    async def undo_attribution(
        self, attribution_id: str, *, dry_run: bool = False, principal: Principal = LOCAL
    ) -> AttributionReport:
        """Take an attribution back; its events are where those that are left put them, or where they were sent.

        Raises:
            NotFound: There is none of that id that is in force.
            AttributionRefused: Events would come into a session that was deleted meanwhile.
        """
        permit(principal, "admin")
        raw, deriver = identity.parse_id("att", attribution_id), self._deriver
        found = await attributions.undo(
            self._database, principal.org_id, raw or b"", mint=deriver.mint, terms=deriver.terms, dry_run=dry_run
        )
        return _attribution(raw or b"", found, dry_run=dry_run)

    async def attributions(self, *, principal: Principal = LOCAL) -> list[Attributed]:
        """Return the attributions in the order they were made, with those that were taken back."""
        permit(principal, "admin")
        async with self._database.read() as tx:
            return [_attributed(each) for each in await attributions.list_attributions(tx, principal.org_id)]

    async def _choice(self, selector: Selector, principal: Principal) -> Choice:
        if bool(selector.event_ids) == (selector.session is not None):
            raise InvalidField("a selector names either events or a session", field="/selector")
        if selector.session is None:
            if selector.thread_id is not None:
                raise InvalidField("a thread is one of a session", "name the session too", field="/selector/thread_id")
            return Choice(events=frozenset(event_id_of(each).hex() for each in selector.event_ids))
        if not isinstance(selector.session, str) and not identity.is_synthetic(selector.session[1]):
            return Choice(session=selector.session, thread_id=selector.thread_id)
        session_id = await self._require(selector.session, principal)
        async with self._database.read() as tx:
            key = await attributions.key_of_session(tx, principal.org_id, session_id)
            if not identity.is_synthetic(key[1]):
                return Choice(session=key, thread_id=selector.thread_id)
            events = await attributions.events_in(tx, principal.org_id, session_id, selector.thread_id)
        return Choice(events=frozenset(each.hex() for each in events))

    # --- prices ---

    async def reprice(
        self,
        filters: TurnFilters = _ALL,
        *,
        reason: str,
        dry_run: bool = True,
        principal: Principal = LOCAL,
    ) -> RepriceReport:
        """Price again what turns used, by the rate cards and the package there are now.

        Each price that is another is a new line in the ledger of costs; what was there before stays. Broken off, it has
        priced some of the turns, and asked for again it prices the others.

        Args:
            filters: Which turns.
            reason: Why; kept.
            dry_run: Only say what would change.
            principal: Who says so; kept.

        Raises:
            NotFound: There is no such session.
            NoPriceSource: There are neither rate cards nor the package.
        """
        permit(principal, "admin")
        if not self._priced:
            raise NoPriceSource(
                "there are neither rate cards nor the package genai-prices",
                "set prices.cards, or install holdfast[prices]",
            )
        wanted = Wanted(
            session_id=None if filters.session is None else await self._require(filters.session, principal),
            model=filters.model,
            since=None if filters.since is None else instants.micros(filters.since, "/since"),
            until=None if filters.until is None else instants.micros(filters.until, "/until"),
        )
        used: list[Used] = []
        count = repricing.Count()
        while True:
            used = await self._reprice_page(wanted, used, reason, principal, dry_run=dry_run)
            for each in used:
                count.add(each)
            if len(used) < repricing.PAGE:
                break
        return RepriceReport(
            dry_run=dry_run,
            turns=count.before.turns,
            repriced=count.repriced,
            unknown=count.unknown,
            provided=count.provided,
            before=count.before.total(),
            after=count.after.total(),
        )

    async def _reprice_page(
        self, wanted: Wanted, last: list[Used], reason: str, principal: Principal, *, dry_run: bool
    ) -> list[Used]:
        org, deriver = principal.org_id, self._deriver
        after = last[-1].before.turn_id if last else b""
        if dry_run:
            async with self._database.read() as tx:
                return await repricing.page_used(tx, org, wanted, self._prices.quote, after=after)
        async with alone(self._database, org, mint=deriver.mint, terms=deriver.terms) as work:
            used = await repricing.page_used(work.tx, org, wanted, self._prices.quote, after=after)
            await repricing.append(work, used, actor=_actor(principal), reason=reason)
            return used

    # --- deriving again ---

    async def replay(self, event_ids: Sequence[str] = (), *, principal: Principal = LOCAL) -> DeriveReport:
        """Derive events again that were set aside or could not be read; without ids, all of them.

        Raises:
            Forbidden: The principal may not.
            NotFound: An id names no event that was set aside or could not be read; then nothing is done.
        """
        permit(principal, "admin")
        org = principal.org_id
        ids = [event_id_of(each) for each in event_ids]
        async with self._database.write() as tx:
            put = await archive.replay(tx, org, ids, states=("dead", "unparsed"))
            if len(put) < len(set(ids)):
                raise NotFound("an id names no event that was set aside or could not be read", "see sessions dead")
        counts: dict[str, int] = {}
        for event_id in put:
            await self._deriver.again(org, event_id, counts)
        return await self._deriver.report(counts)

    async def rebuild(
        self, session: SessionRef | None = None, *, dry_run: bool = False, principal: Principal = LOCAL
    ) -> DeriveReport:
        """Derive everything of a session, or of the org, anew, beside whoever reads and writes.

        Whoever reads sees a row as it was or as it is, never none. A rebuild of the org that was broken off goes on
        where it stopped when it is asked for again.

        Args:
            session: Which; None: all of the org.
            dry_run: Only say, as `pending`, how many events there are to be derived.
            principal: Who asks.

        Raises:
            NotFound: There is no such session.
        """
        permit(principal, "admin")
        org = principal.org_id
        counts: dict[str, int] = {}
        if session is not None:
            session_id = await self._require(session, principal)
            async with self._database.read() as tx:
                events = await rebuilds.events_of(tx, org, session_id)
            if dry_run:
                return DeriveReport(pending=len(events))
            await self._anew(org, events, {session_id}, counts)
            return await self._deriver.report(counts)
        if dry_run:
            async with self._database.read() as tx:
                return DeriveReport(pending=await rebuilds.count(tx, org))
        await rebuilds.begin(self._database, org)
        while True:
            async with self._database.read() as tx:
                page = await rebuilds.page(tx, org)
            await self._anew(org, [event_id for _, event_id in page], set(), counts)
            await rebuilds.advance(self._database, org, page[-1][0] if page else None)
            if not page:
                return await self._deriver.report(counts)

    async def _anew(self, org: UUID, event_ids: Sequence[bytes], sessions: set[bytes], counts: dict[str, int]) -> None:
        """Derive events again, and then make the sessions they are in anew of all their turns."""
        deriver = self._deriver
        for event_id in event_ids:
            sessions |= await deriver.again(org, event_id, counts)
        for each in sorted(sessions):
            await mend(self._database, org, each, mint=deriver.mint, terms=deriver.terms)


def _actor(principal: Principal) -> str:
    return principal.access_key_id or "local"


def _attributed(kept: attributions.Kept) -> Attributed:
    choice = kept.overlay.choice
    selector: dict[str, Any] = {"events": sorted(f"cap_{each}" for each in choice.events)}
    if choice.session is not None:
        selector = {"session": list(choice.session)}
        if choice.thread_id is not None:
            selector["thread_id"] = choice.thread_id
    return Attributed(
        attribution_id=identity.shown_id("att", kept.overlay.attribution_id),
        selector=selector,
        change=kept.overlay.change,
        reason=kept.reason,
        actor=kept.actor,
        created_at=instants.moment(kept.created_at),
        undone_at=None if kept.undone_at is None else instants.moment(kept.undone_at),
    )


def _attribution(attribution_id: bytes, found: attributions.Move, *, dry_run: bool) -> AttributionReport:
    def place(facts: TurnFacts | None) -> Place | None:
        return None if facts is None else Place(*facts.key, facts.thread_id)

    return AttributionReport(
        attribution_id=identity.shown_id("att", attribution_id) if attribution_id else "",
        dry_run=dry_run,
        events=found.events,
        turns=tuple(
            AttributedTurn(identity.shown_id("turn", turn_id), place(old), place(new))
            for turn_id, (old, new) in found.turns.items()
        ),
        sessions=tuple(
            AttributedSession(*key, _totals(old), _totals(new)) for key, (old, new) in found.sessions.items()
        ),
    )


def _totals(standing: Standing | None) -> SessionTotals | None:
    if standing is None or standing.fold is None:
        return None
    fold = standing.fold
    counts = {column: fold.tokens[column][1] if column in fold.tokens else None for column in COLUMNS}
    return SessionTotals(
        turn_count=fold.turn_count,
        failed_turn_count=fold.failed_turn_count,
        tokens=total_tokens(counts, fold.unmeasured_turn_count),
        cost=total_of(
            fold.turn_count,
            fold.cost_pusd,
            fold.unpriced_turn_count,
            fold.partial_turn_count,
            fold.provided_turn_count,
        ),
        parent=None if standing.parent is None else "/".join(standing.parent),
        parent_state=standing.parent_state,
    )
