"""What one transaction works on: what it holds, the turns before and after, and the rows they come from.

Invariants:
    - Nothing is read that decides anything before what guards it is held; what is found missing ends the transaction.
    - A turn is what its evidences say; the ledger adds whose it is and what it cost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import msgspec
from blake3 import blake3

from holdfast.sessions import identity, machine, pricing, turns
from holdfast.sessions.archive import rows
from holdfast.sessions.archive.captures import Loaded
from holdfast.sessions.derivation import Derived
from holdfast.sessions.evidence import Cell, Evidence, TurnFacts
from holdfast.sessions.limits import CONTINUATION_US
from holdfast.sessions.values import Cost, CostState, SessionKey
from holdfast.store.database import Row, Tx

__all__ = [
    "SWEEP", "About", "Change", "Kept", "Price", "Seen", "Terms", "Widen", "Work", "cell_of", "hold", "kept_of",
    "lock_names", "locks_of", "priced", "seen_of",
]  # fmt: skip

SWEEP = b"!sweep"
"""Held by whoever takes away what several sessions may hold; others share it."""


class Widen(Exception):
    """More must be held: roll back, and run again with it.

    Attributes:
        keys: What was missing.
    """

    def __init__(self, keys: frozenset[bytes]) -> None:
        super().__init__("more must be held")
        self.keys = keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What derivation depends on besides the events; the same for a whole ledger.

    Attributes:
        version: Of the rules.
        continuation: Whether calls without a session id are grouped by what they go on from.
        continuation_us: How long after a turn another may go on from it.
    """

    version: int = 1
    continuation: bool = True
    continuation_us: int = CONTINUATION_US


# --- evidences and turns ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """An evidence in the ledger: who called, and the turn it is of."""

    evidence: Evidence
    caller: bytes
    turn_id: bytes

    @property
    def id(self) -> tuple[bytes, str]:
        """The event, and which part of it."""
        return self.evidence.event_id, self.evidence.evidence_key


def seen_of(row: Row) -> Seen:
    """Return the evidence of a row."""
    captured_at, capture_id, _ = rows.read_mark(row.mark)
    evidence = Evidence(
        event_id=row.event_id,
        evidence_key=row.evidence_key,
        seq=row.seq,
        rank=row.rank,
        source=row.source,
        captured_at=captured_at,
        capture_id=capture_id,
        provider=row.provider,
        message_id=row.message_id,
        request_id=row.request_id,
        join_key=row.join_key,
        says=rows.read_account(row.facts),
    )
    return Seen(evidence, row.caller, row.turn_id)


def cell_of(seen: Iterable[Seen]) -> Cell:
    """Return the cell of the evidences of one turn."""
    return tuple(sorted((each.evidence for each in seen), key=lambda each: (each.rank, each.mark)))


@dataclass(frozen=True, slots=True)
class Kept:
    """A turn with what the ledger adds.

    Attributes:
        caller: Who called, of a turn without a session id; else None.
        session_id: None until its session has one.
        row_hash: Of the row as it is stored; empty: it is not.
    """

    facts: TurnFacts
    cell: Cell
    caller: bytes | None
    session_id: bytes | None = None
    row_hash: bytes = b""

    @property
    def mark(self) -> bytes:
        """The turn's mark as it is stored."""
        return rows.mark_of(self.facts.mark)


def kept_of(row: Row, seen: Sequence[Seen]) -> Kept:
    """Return the turn of a row and its evidences."""
    cell = cell_of(seen)
    facts = msgspec.structs.replace(
        turns.merge(cell),
        harness_id=row.harness_id,
        harness_session_id=row.harness_session_id,
        cost_pusd=row.cost_pusd,
        computed_pusd=row.computed_pusd,
        cost_state=row.cost_state,
        price_version=row.price_version,
    )
    return Kept(facts, cell, row.caller, row.session_id, row.row_hash)


def caller_name(caller: bytes, agent_name: str) -> bytes:
    """Return who called as it is stored with turns that have no session id."""
    return bytes([len(caller)]) + caller + agent_name.encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Price:
    """What the ledger of costs says last of an evidence."""

    cost_pusd: int | None
    state: CostState
    price_version: str


@dataclass(frozen=True, slots=True)
class About:
    """What the ledger knows about a call that is to be folded in.

    Attributes:
        said: What it says.
        gone: Its session was deleted.
        known: Evidences of its event are stored.
        priced: Its usage has a price on record.
        mixed: Others of its message id may share a turn with it.
        joined: Somebody without a message id has its join key.
    """

    said: Evidence
    gone: bool
    known: bool
    priced: bool
    mixed: bool
    joined: bool

    def is_of(self, evidence: Evidence) -> bool:
        """Say whether this is about an evidence: what was stored of the event before may have had other names."""
        return self._names(self.said) == self._names(evidence)

    @staticmethod
    def _names(one: Evidence) -> tuple[object, ...]:
        return one.event_id, one.provider, one.message_id, one.request_id, one.join_key


@dataclass(slots=True)
class Change:
    """A turn before and after."""

    old: Kept | None
    new: Kept | None


# --- what is held -------------------------------------------------------------------------------------


def lock_names(keys: Iterable[SessionKey]) -> list[bytes]:
    """Return what guards sessions, and the hints to them: their ids, whatever the harness.

    A session that we named ourselves is guarded by its caller: nobody can hint to it.
    """
    return machine.locks(("", each) for _, each in keys if each and not identity.is_synthetic(each))


def locks_of(loaded: Loaded, derived: Derived) -> frozenset[bytes]:
    """Return what must be held to fold an event in, as far as the event itself tells."""
    if derived.evidence is None:
        return frozenset()
    return frozenset(_locks_of(derived.evidence, loaded.caller))


def _locks_of(evidence: Evidence, caller: bytes) -> list[bytes]:
    says = evidence.says
    held = lock_names([(says.harness_id, says.harness_session_id), ("", says.parent_harness_session_id)])
    callers = [(caller_name(caller, says.agent_name), "")] if says.synthetic else []
    return held + machine.locks([], [(evidence.provider, evidence.message_id)], [evidence.join_key], callers)


async def hold(tx: Tx, org: UUID, held: frozenset[bytes]) -> None:
    """Hold what is to be held until the transaction ends, in the one order everybody takes it in."""
    sweep = _number(org, SWEEP)
    keys = sorted(_number(org, key) for key in held if key != SWEEP)
    if SWEEP in held:
        await tx.all("turns.hold", shared="[]", keys=json.dumps([sweep, *keys]))
    else:
        await tx.all("turns.hold", shared=f"[{sweep}]", keys=json.dumps(keys))


def _number(org: UUID, key: bytes) -> int:
    return int.from_bytes(blake3(org.bytes + key).digest(8), "big", signed=True)


@dataclass(slots=True)
class Work:
    """The work of one transaction, or of a part of it, for one org.

    Attributes:
        changes: By turn id, the turns that come, change or go.
        about: What is known about the call that is folded in.
        prices: By evidence, what the ledger of costs says, as far as that is known.
        held: What is held.
        mint: Makes an id of 16 bytes.
        now: For what is only noted, never derived from.
    """

    tx: Tx
    org: UUID
    held: frozenset[bytes]
    mint: Callable[[], bytes]
    now: int
    terms: Terms
    changes: dict[bytes, Change] = field(default_factory=dict)
    about: About | None = None
    prices: dict[tuple[bytes, str], Price | None] = field(default_factory=dict)
    _ids: dict[SessionKey, bytes] = field(default_factory=dict)

    async def take(self) -> None:
        """Hold what is to be held."""
        await hold(self.tx, self.org, self.held)

    def require(self, keys: Iterable[bytes]) -> None:
        """Check that keys are held. Whoever holds the sweep alone holds everything: all others share it.

        Raises:
            Widen: Some are not.
        """
        missing = frozenset(keys) - self.held
        if missing and SWEEP not in self.held:
            raise Widen(missing)

    def guard(self, evidence: Evidence) -> None:
        """Check that what guards an evidence's groups is held.

        Raises:
            Widen: It is not.
        """
        self.require(machine.locks([], [(evidence.provider, evidence.message_id)], [evidence.join_key]))

    def guard_turn(self, kept: Kept | None) -> None:
        """Check that what guards a turn's session is held.

        Raises:
            Widen: It is not.
        """
        if kept is None:
            return
        self.require(lock_names([kept.facts.key]))
        if kept.caller is not None:
            self.require(machine.locks([], callers=[(kept.caller, "")]))

    async def guard_session(self, session_id: bytes, key: SessionKey) -> None:
        """Check that what guards a session is held.

        Raises:
            Widen: It is not.
        """
        self.require(lock_names([key]))
        if identity.is_synthetic(key[1]) and SWEEP not in self.held:
            found = await self.tx.all("turns.of_session", org=self.org.bytes, session_id=session_id)
            callers = {row.caller for row in found if row.caller is not None}
            self.require(machine.locks([], callers=[(each, "") for each in callers]))

    async def session_id(self, key: SessionKey) -> bytes:
        """Return the id of a session, which it keeps for ever; it is made when it is asked for first."""
        found = self._ids.get(key)
        if found is None:
            named = {"org": self.org.bytes, "harness_id": key[0], "harness_session_id": key[1]}
            row = await self.tx.one("ids.get", **named)
            if row is None:
                found = self.mint()
                await self.tx.run("ids.add", [(self.org.bytes, *key, found, self.now)])
            else:
                found = row.session_id
            self._ids[key] = found
        return found

    async def turn(self, row: Row) -> Kept:
        """Return the turn of a row."""
        found = await self.tx.all("turn_evidence.of_turn", org=self.org.bytes, turn_id=row.turn_id)
        return kept_of(row, [seen_of(each) for each in found])

    async def made(self, cell: Cell, caller: bytes) -> Kept:
        """Return the turn of a new cell: with its cost, and as if it were the first of its group."""
        facts = turns.merge(cell)
        if facts.synthetic:
            own = identity.synthetic_key(self.org, facts.capture_id)
            facts = msgspec.structs.replace(facts, harness_session_id=own)
        price = await self._price(facts.usage_event, facts.usage_key)
        return Kept(priced(facts, price), cell, caller_name(caller, facts.agent_name) if facts.synthetic else None)

    async def _price(self, event_id: bytes, evidence_key: str) -> Price | None:
        if (event_id, evidence_key) in self.prices:
            return self.prices[event_id, evidence_key]
        named = {"org": self.org.bytes, "event_id": event_id, "evidence_key": evidence_key}
        row = await self.tx.one("cost_ledger.last", **named)
        return None if row is None else Price(row.cost_pusd, row.state, row.price_version)

    def regrouped(self, kept: Kept, harness_session_id: str) -> Kept:
        """Return a turn under another session id that we made."""
        return replace(kept, facts=msgspec.structs.replace(kept.facts, harness_session_id=harness_session_id))


def priced(facts: TurnFacts, last: Row | Price | None) -> TurnFacts:
    """Return a turn with its cost, by the newest price that was noted for its usage; None: there is none."""
    computed = None if last is None else Cost(pricing.from_pusd(last.cost_pusd), last.state, last.price_version, ())
    cost = pricing.settle(facts.usage_state, computed, pricing.from_pusd(facts.provided_pusd))
    return msgspec.structs.replace(
        facts,
        cost_pusd=pricing.to_pusd(cost.usd),
        computed_pusd=None if last is None else last.cost_pusd,
        cost_state=cost.state,
        price_version=cost.price_version,
    )
