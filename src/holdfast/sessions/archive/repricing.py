"""Price again what calls used: another line in the ledger of costs, which counts from then on.

Invariants:
    - A line is only appended, with who asked for it and why; what a call was priced at before stays on record.
    - An amount that the caller gave stays what the turn costs.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from holdfast.sessions import derivation, jcs, pricing
from holdfast.sessions.archive import rows
from holdfast.sessions.archive.derive import apply, replace
from holdfast.sessions.archive.shown import total_of
from holdfast.sessions.archive.work import Kept, Price, Seen, Work, kept_of, priced, seen_of
from holdfast.sessions.derivation import Derived
from holdfast.sessions.evidence import TurnFacts
from holdfast.sessions.pricing import PriceQuery
from holdfast.sessions.values import Cost
from holdfast.sessions.views import Total
from holdfast.store.database import Tx

__all__ = ["PAGE", "Count", "Used", "Wanted", "append", "page_used"]

PAGE = 100
"""Turns that are priced again in one transaction, beside which nothing is derived."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which turns are priced again; None: whatever it is. Instants are microseconds."""

    session_id: bytes | None = None
    model: str | None = None
    since: int | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """A turn that has used something, and what that costs now.

    Attributes:
        before: As it is stored.
        after: With the new price; the same where there is none, or it is equal.
        seen: The evidence that measures it.
        line: What is to be appended to the ledger; None: nothing.
        known: Whether a source of prices knows the model.
    """

    before: TurnFacts
    after: TurnFacts
    seen: Seen
    line: tuple[object, ...] | None
    known: bool


@dataclass(slots=True)
class Sum:
    """What turns cost together, while they are counted."""

    turns: int = 0
    pusd: int = 0
    states: Counter[str] = field(default_factory=Counter)

    def add(self, facts: TurnFacts) -> None:
        """Count a turn."""
        self.turns += 1
        self.pusd += facts.cost_pusd or 0
        self.states[facts.cost_state] += 1

    def total(self) -> Total:
        """Return the sum as it is shown."""
        states = self.states
        return total_of(self.turns, self.pusd, states["unpriced"], states["partial"], states["provided"])


@dataclass(slots=True)
class Count:
    """What pricing again has come to so far.

    Attributes:
        repriced: Turns whose price is another.
        unknown: Turns of which no source knows a price.
        provided: Turns that cost what the caller said.
    """

    repriced: int = 0
    unknown: int = 0
    provided: int = 0
    before: Sum = field(default_factory=Sum)
    after: Sum = field(default_factory=Sum)

    def add(self, used: Used) -> None:
        """Count a turn."""
        self.repriced += used.line is not None
        self.unknown += not used.known
        self.provided += used.before.cost_state == "provided"
        self.before.add(used.before)
        self.after.add(used.after)


async def page_used(
    tx: Tx, org: UUID, wanted: Wanted, quote: Callable[[PriceQuery], Cost | None], *, after: bytes = b""
) -> list[Used]:
    """Return turns whose usage is known, by their ids, with what they would cost now; those after an id.

    Args:
        tx: A transaction.
        org: Whose.
        wanted: Which.
        quote: Says what a call costs.
        after: The last turn of the page before.
    """
    found = await tx.all(
        "turns.used",
        org=org.bytes,
        after_id=after,
        session_id=wanted.session_id,
        model=wanted.model,
        since=wanted.since,
        until=wanted.until,
        limit=PAGE,
    )
    cells: dict[bytes, list[Seen]] = defaultdict(list)
    ids = json.dumps([row.turn_id.hex() for row in found])
    for row in await tx.all("turn_evidence.of_turns", ids=ids, org=org.bytes):
        cells[row.turn_id].append(seen_of(row))
    return [await _used(tx, org, kept_of(row, cells[row.turn_id]), cells[row.turn_id], quote) for row in found]


async def _used(tx: Tx, org: UUID, kept: Kept, cell: list[Seen], quote: Callable[[PriceQuery], Cost | None]) -> Used:
    facts = kept.facts
    [seen] = [each for each in cell if each.id == (facts.usage_event, facts.usage_key)]
    query = derivation.query_of(seen.evidence)
    cost = None if query is None else quote(query)
    if cost is None:
        return Used(facts, facts, seen, None, known=False)
    named = {"org": org.bytes, "event_id": facts.usage_event, "evidence_key": facts.usage_key}
    last = await tx.one("cost_ledger.last", **named)
    said = (cost.state, pricing.to_pusd(cost.usd), cost.price_version, rows.write_lines(cost))
    if last is not None and (last.state, last.cost_pusd, last.price_version, last.lines) == said:
        return Used(facts, facts, seen, None, known=True)
    number = 0 if last is None else last.n + 1
    after = priced(facts, Price(said[1], cost.state, cost.price_version))
    return Used(facts, after, seen, (*named.values(), number, *said), known=True)


async def append(work: Work, used: list[Used], *, actor: str, reason: str) -> None:
    """Append the lines of turns to the ledger, and let their turns and sessions cost what these say."""
    changed = [each for each in used if each.line is not None]
    if not changed:
        return
    lines = []
    for each in changed:
        assert each.line is not None
        org, event_id, key, number, *said = each.line
        lines.append((org, event_id, key, number, work.now, "reprice", *said, jcs.scrub(actor), jcs.scrub(reason)))
    await work.tx.run("cost_ledger.append", lines)
    own = [each.seen for each in changed]
    await apply(work, await replace(work, own, own), Derived(), None, {})
