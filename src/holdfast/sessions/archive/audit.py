"""Prove what was derived: every row is computed again from what it follows from, and compared.

Of each rule the first row that breaks it is named, for each org. Nothing is mended here.

Invariants:
    - A ledger that only this library has written has nothing to be named, while it is being written and after a crash.
    - Rows are read a page at a time; of nodes, links and turns only keys are held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from blake3 import blake3

from holdfast.core.errors import ConfigError
from holdfast.sessions import derivation, identity, nodes, overlays, pricing, turns
from holdfast.sessions.archive import attributions, rows
from holdfast.sessions.archive.captures import body
from holdfast.sessions.archive.derive import columns_of, identity_of
from holdfast.sessions.archive.scans import scan
from holdfast.sessions.archive.standing import Standing, standing_of
from holdfast.sessions.archive.standing import columns_of as columns_of_session
from holdfast.sessions.archive.work import Kept, Seen, Terms, kept_of, priced, seen_of
from holdfast.sessions.evidence import SessionRow
from holdfast.sessions.identity import Synthetic
from holdfast.sessions.parents import placeholders, resolve_parents
from holdfast.sessions.pricing import PriceQuery, RateCard
from holdfast.sessions.sealing import DoesNotOpen
from holdfast.sessions.values import Mark, SessionKey
from holdfast.store.database import Row, Tx

__all__ = ["Audit", "Broken", "Rule"]

Rule: TypeAlias = Literal[
    "counters", "turn", "node_hash", "node_parent", "chain", "links", "owner", "parents", "cost", "body", "fold",
    "changes", "lag", "unreadable",
]  # fmt: skip
"""What is proved; the numbers of the contract in their order, but for search, which is not there yet. What cannot even
be read is the last: nothing more is said of its org then, since much else follows from it."""

_PARTS: tuple[Literal["request", "response"], ...] = ("request", "response")
_SUMS = (
    "turn_count", "failed_turn_count", "tokens", "unmeasured_turn_count", "cost_pusd", "unpriced_turn_count",
    "partial_turn_count", "provided_turn_count", "models",
)  # fmt: skip

_PLACE = (
    "harness_id", "harness_session_id", "synthetic", "parent_harness_id", "parent_harness_session_id", "thread_id",
)  # fmt: skip
_COUNTED = frozenset(("turn_count", "tokens_sum", "cost_pusd"))
_COLUMNS = _COUNTED | {
    "harness_id", "harness_session_id", "is_placeholder", "is_synthetic", "auth_subject", "started_at", "last_seen_at",
    "hint_harness", "hint_key", "hint_mark",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that breaks a rule.

    Attributes:
        table: Where it is.
        row: Which it is, as it is shown.
        message: What is wrong.
    """

    org: UUID
    rule: Rule
    table: str
    row: str
    message: str


class _Unreadable(Exception):
    """A row whose columns are not what is stored there."""

    def __init__(self, table: str, row: str) -> None:
        super().__init__(table, row)
        self.table = table
        self.row = row


_T = TypeVar("_T")
_TABLES = {"facts": "session_turn_evidence", "content": "session_nodes", "fold": "session_sessions"}


def _decoded(table: str, name: str, decode: Callable[[Row], _T], row: Row) -> _T:
    try:
        return decode(row)
    except ConfigError:
        raise
    except Exception as error:
        raise _Unreadable(table, name) from error


class Audit:
    """One look at all rows of an org."""

    def __init__(
        self,
        tx: Tx,
        org: UUID,
        *,
        now: int,
        lag_us: int,
        cards: Sequence[RateCard] = (),
        terms: Terms | None = None,
    ) -> None:
        """Prepare to look.

        Args:
            tx: One view of the ledger.
            org: Whose rows.
            now: The clock, in microseconds.
            lag_us: How long an event may wait to be derived.
            cards: The rate cards that are known: prices by them are computed again.
            terms: What derivation depends on; None: turns without a session id are not grouped again.
        """
        self._terms = terms
        self._loose: dict[Mark, tuple[Synthetic, str]] = {}
        self._tx = tx
        self._org = org
        self._now = now
        self._lag_us = lag_us
        self._cards = {pricing.version(card): card for card in cards}
        self._named: set[Rule] = set()
        self._overlays = overlays.NONE
        self._places: dict[bytes, bytes] = {}
        self._turns: dict[bytes, tuple[bytes, bytes]] = {}
        self._parents: dict[tuple[int, bytes], bytes | None] = {}
        self._holds: dict[bytes, dict[tuple[int, bytes], bytes]] = defaultdict(dict)
        self._parts: dict[bytes, set[bytes]] = defaultdict(set)
        self._live: dict[tuple[str, bytes], bytes] = {}
        self._parted: dict[tuple[bytes, str], bytes] = {}
        self.events_count = 0

    async def run(self) -> AsyncIterator[Broken]:
        """Give the first row that breaks each rule."""
        looks = (
            self._events, self._nodes, self._all_turns, self._evidence, self._sessions, self._links, self._changes,
        )  # fmt: skip
        self._overlays = await attributions.load_overlays(self._tx, self._org)
        try:
            for look in looks:
                async for broken in look():
                    if broken.rule not in self._named:
                        self._named.add(broken.rule)
                        yield broken
        except DoesNotOpen as error:
            column, (_, key, *_) = error.place
            name = key.hex() if column == "content" else identity.shown_id("ses" if column == "fold" else "cap", key)
            table = "session_parts" if look == self._links else _TABLES.get(column, "session_raw_events")
            yield self._broken("unreadable", table, name, error.message)
        except _Unreadable as error:
            yield self._broken("unreadable", error.table, error.row, f"it is damaged: {error.__cause__!r}")

    def _broken(self, rule: Rule, table: str, row: str, message: str) -> Broken:
        return Broken(self._org, rule, table, row, message)

    # --- events and nodes

    async def _events(self) -> AsyncIterator[Broken]:
        async for row in scan(self._tx, self._org, "raw_events.scan", page=20):
            self.events_count += 1
            name = identity.shown_id("cap", row.event_id)
            self._places[row.event_id] = _decoded("session_raw_events", name, self._place, row)
            for part in _PARTS:
                found = body(row, part)
                if found is not None and not found.is_whole():
                    yield self._broken("body", "session_raw_events", name, f"the {part} is not what was captured")
            if row.derive_state == "pending" and row.received_at < self._now - self._lag_us:
                yield self._broken("lag", "session_raw_events", name, "the event waits to be derived for too long")

    def _place(self, row: Row) -> bytes:
        """Return a digest of where an event is, as it was sent and as attributions say."""
        if row.derive_state == "refused":
            return b""
        event = overlays.attributed(attributions.sent(row, self._org), self._overlays.active)
        return _digest(derivation.placed(event).items())

    async def _nodes(self) -> AsyncIterator[Broken]:
        async for row in scan(self._tx, self._org, "nodes.scan"):
            self._parents[row.hash_version, row.hash] = row.parent_hash
            parent = "" if row.parent_hash is None else row.parent_hash.hex()
            try:
                found = nodes.node_hash(row.role, rows.read_blocks(row.content), parent)
            except Exception as error:  # noqa: BLE001 - whatever is in the column, this is about this row
                found = type(error).__name__
            if row.hash_version == nodes.HASH_VERSION and found != row.hash.hex():
                yield self._broken("node_hash", "session_nodes", row.hash.hex(), "the content has another hash")
        for (version, hashed), parent_hash in self._parents.items():
            if parent_hash is not None and (version, parent_hash) not in self._parents:
                yield self._broken("node_parent", "session_nodes", hashed.hex(), "the parent is missing")
        for _, hashed in self._circles():
            yield self._broken("node_parent", "session_nodes", hashed.hex(), "the node is above itself")

    def _circles(self) -> list[tuple[int, bytes]]:
        """Return a node of each circle of parents."""
        done: set[tuple[int, bytes]] = set()
        found: list[tuple[int, bytes]] = []
        for start in self._parents:
            way: set[tuple[int, bytes]] = set()
            at: tuple[int, bytes] | None = start
            while at is not None and at not in done and at in self._parents:
                if at in way:
                    found.append(at)
                    break
                way.add(at)
                above = self._parents[at]
                at = None if above is None else (at[0], above)
            done |= way
        return found

    def _chain(self, version: int, leaf: bytes) -> list[tuple[int, bytes]]:
        """Return the nodes from one to its root, as far as they are there."""
        way: list[tuple[int, bytes]] = []
        seen: set[bytes] = set()
        at: bytes | None = leaf
        while at is not None and (version, at) in self._parents and at not in seen:
            seen.add(at)
            way.append((version, at))
            at = self._parents[version, at]
        return way

    # --- turns

    async def _all_turns(self) -> AsyncIterator[Broken]:
        async for row in scan(self._tx, self._org, "turns.scan"):
            self._turns[row.turn_id] = (row.session_id, _digest(row))
            self._live["turn", row.turn_id] = row.row_hash
            if await self._get("sessions.load", session_id=row.session_id) is None:
                name = identity.shown_id("turn", row.turn_id)
                yield self._broken("owner", "session_turns", name, "the turn's session is missing")

    async def _get(self, statement: str, **named: object) -> Row | None:
        return await self._tx.one(statement, org=self._org.bytes, **named)

    async def _evidence(self) -> AsyncIterator[Broken]:
        async for row in scan(self._tx, self._org, "turn_evidence.scan"):
            name = identity.shown_id("cap", row.event_id)
            seen = _decoded("session_turn_evidence", name, seen_of, row)
            if await self._get("raw_events.state", event_id=row.event_id) is None:
                yield self._broken("owner", "session_turn_evidence", name, "the event is missing")
            if _digest((each, getattr(seen.evidence.says, each)) for each in _PLACE) != self._places.get(row.event_id):
                yield self._broken("turn", "session_turn_evidence", name, "the call was sent, or put, elsewhere")
            owner = self._turns.get(row.turn_id)
            if owner is None:
                yield self._broken("owner", "session_turn_evidence", name, "the turn is missing")
                continue
            says = seen.evidence.says
            leaf = says.response_hash or says.head_hash
            way = self._chain(says.hash_version, bytes.fromhex(leaf)) if leaf else []
            if len(way) != says.chain_length or (way and self._parents[way[-1]] is not None):
                yield self._broken("chain", "session_turns", name, "the turn's messages do not reach their root")
            holds, mark = self._holds[owner[0]], rows.mark_of(seen.evidence.mark)
            for each in way:
                holds[each] = min(holds.get(each, mark), mark)
            self._parts[owner[0]] |= rows.part_hashes(says.request_params)
            if await self._is_parted_otherwise(seen):
                yield self._broken("turn", "session_turn_evidence", name, "the evidence is of another turn")

    async def _is_parted_otherwise(self, seen: Seen) -> bool:
        """Say whether an evidence belongs to another turn than it is stored with."""
        if not seen.evidence.message_id and seen.evidence.join_key is None:
            return seen.turn_id != identity_of((seen.evidence,))
        if seen.id not in self._parted:
            await self._part(seen)
        return self._parted[seen.id] != seen.turn_id

    async def _part(self, seen: Seen) -> None:
        """Note for an evidence, and for all that it may share a turn with, which turn each belongs to."""
        found = {seen.id: seen}
        unseen = [seen]
        asked: set[tuple[str, ...]] = set()
        while unseen:
            one = unseen.pop().evidence
            near: list[Row] = []
            named, joined = (one.provider, one.message_id), (one.join_key or "",)
            if one.message_id and named not in asked:
                near += await self._tx.all(
                    "turn_evidence.named", org=self._org.bytes, provider=one.provider, message_id=one.message_id
                )
            if one.join_key is not None and joined not in asked:
                near += await self._tx.all("turn_evidence.joined", org=self._org.bytes, join_key=one.join_key)
            asked |= {named, joined}
            for other in map(seen_of, near):
                if other.id not in found:
                    found[other.id] = other
                    unseen.append(other)
        for cell in turns.partition([each.evidence for each in found.values()]):
            for each in cell:
                self._parted[each.event_id, each.evidence_key] = identity_of(cell)

    # --- sessions

    async def _sessions(self) -> AsyncIterator[Broken]:
        standings: dict[SessionKey, Standing] = {}
        async for row in scan(self._tx, self._org, "sessions.scan"):
            name = identity.shown_id("ses", row.session_id)
            standing = _decoded("session_sessions", name, standing_of, row)
            standings[standing.key] = standing
            if standing.fold is not None:
                self._live["session", row.session_id] = row.row_hash
            kept: list[Kept] = []
            async for one, broken in self._session_turns(row.session_id):
                if one is not None:
                    kept.append(one)
                if broken is not None:
                    yield broken
            fold = turns.refold(standing.key, (each.facts for each in kept))
            for rule in [*_differences(standing.fold, fold), *_misplaced(row, standing)]:
                yield self._broken(rule, "session_sessions", name, "the session is not what its turns make of it")
        for broken in self._misgrouped():
            yield broken
        for key, why in await self._misparented(standings):
            name = identity.shown_id("ses", standings[key].session_id)
            yield self._broken("parents", "session_sessions", name, why)

    def _misgrouped(self) -> list[Broken]:
        """Return the turns without a session id that belong to another group."""
        if self._terms is None or not self._terms.continuation:
            return []
        firsts = identity.groups((one for one, _ in self._loose.values()), window_us=self._terms.continuation_us)
        return [
            self._broken("turn", "session_turns", mark[1], "the turn goes on from another one")
            for mark, (_, group) in self._loose.items()
            if identity.synthetic_key(self._org, firsts[mark][1]) != group
        ]

    async def _session_turns(self, session_id: bytes) -> AsyncIterator[tuple[Kept | None, Broken | None]]:
        """Give the turns of a session, each with what is wrong with it."""
        named = {"org": self._org.bytes, "session_id": session_id}
        cells: dict[bytes, list[Seen]] = defaultdict(list)
        for row in await self._tx.all("turn_evidence.of_session", **named):
            cells[row.turn_id].append(seen_of(row))
        for row in await self._tx.all("turns.of_session", **named):
            name = identity.shown_id("turn", row.turn_id)
            if row.turn_id not in cells:
                yield None, self._broken("owner", "session_turns", name, "nothing tells of the turn")
                continue
            kept = kept_of(row, cells[row.turn_id])
            if kept.caller is not None:
                facts = kept.facts
                one = Synthetic(
                    mark=facts.mark,
                    caller=(kept.caller, ""),
                    response_hash=facts.response_hash,
                    continues_hash=facts.continues_hash,
                )
                self._loose[facts.mark] = one, facts.harness_session_id
            yield kept, await self._turn_fault(name, kept)

    async def _turn_fault(self, name: str, kept: Kept) -> Broken | None:
        facts = kept.facts
        _, digest = self._turns.get(facts.turn_id, (b"", b""))
        stored = digest == _digest(columns_of(kept, kept.row_hash))
        if not stored or rows.hash_turn(facts, kept.cell) != kept.row_hash:
            return self._broken("turn", "session_turns", name, "the turn is not what its events say")
        row = await self._get("cost_ledger.last", event_id=facts.usage_event, evidence_key=facts.usage_key)
        if priced(facts, row) != facts:
            return self._broken("cost", "session_turns", name, "the cost is not the one that was noted last")
        card = None if row is None else self._cards.get(row.price_version)
        if card is not None and row is not None and facts.usage is not None:
            started = facts.captured_at if facts.started_at is None else facts.started_at
            query = PriceQuery(provider=facts.provider, model=facts.model, started_at=started, usage=facts.usage)
            again = pricing.price(query.usage, card)
            if pricing.to_pusd(again.usd) != row.cost_pusd:
                return self._broken("cost", "session_cost_ledger", name, "the card gives another amount")
        return None

    async def _misparented(self, standings: dict[SessionKey, Standing]) -> list[tuple[SessionKey, str]]:
        hints = {key: hint for key, each in standings.items() if (hint := each.hint) is not None}
        real = {key for key, each in standings.items() if each.fold is not None}
        gone = await self._tx.all("tombstones.scan", org=self._org.bytes)
        links = resolve_parents(hints, real, {(row.harness_id, row.harness_session_id) for row in gone})
        needed = placeholders(links, real)
        wrong: list[tuple[SessionKey, str]] = []
        for key, each in standings.items():
            link = links.get(key)
            parent = None if link is None or link.parent is None else standings.get(link.parent)
            parent_id = None if parent is None else parent.session_id
            if each.parent_id != parent_id or each.parent_state != ("none" if link is None else link.state):
                wrong.append((key, "the parent is not the one that the hints give"))
            elif link is not None and link.parent is not None and parent is None:
                wrong.append((key, "the parent's row is missing"))
            elif each.fold is None and key not in needed:
                wrong.append((key, "nobody has seen the session, and nobody's parent it is"))
        return wrong

    # --- who holds what

    async def _links(self) -> AsyncIterator[Broken]:
        async for row in scan(self._tx, self._org, "node_links.scan"):
            name = f"{identity.shown_id('ses', row.session_id)} {row.hash.hex()}"
            mark = self._holds[row.session_id].pop((row.hash_version, row.hash), None)
            if row.hash_version != nodes.HASH_VERSION:
                continue  # those by the rules of another time outlive what is derived anew
            if mark is None:
                yield self._broken("links", "session_node_links", name, "no turn of the session has the node")
            elif mark != row.mark:
                yield self._broken("links", "session_node_links", name, "another turn was the first to have the node")
        for session_id, left in self._holds.items():
            for _, hashed in left:
                name = f"{identity.shown_id('ses', session_id)} {hashed.hex()}"
                yield self._broken("links", "session_node_links", name, "the session does not hold its turn's node")
        async for row in scan(self._tx, self._org, "part_links.scan"):
            name = f"{identity.shown_id('ses', row.session_id)} {row.hash.hex()}"
            if row.hash not in self._parts[row.session_id]:
                yield self._broken("links", "session_part_links", name, "no turn of the session has the part")
            self._parts[row.session_id].discard(row.hash)
            if await self._get("parts.get", hash=row.hash) is None:
                yield self._broken("owner", "session_part_links", name, "the part is missing")
        for session_id, parts in self._parts.items():
            if parts:
                name = identity.shown_id("ses", session_id)
                yield self._broken("links", "session_part_links", name, "the session does not hold its turn's part")

    async def _changes(self) -> AsyncIterator[Broken]:
        async for row in scan(self._tx, self._org, "changes.scan"):
            expected = self._live.pop((row.kind, row.id), None)
            if (expected is None) != bool(row.deleted) or expected not in (None, row.row_hash):
                name = f"{row.kind} {row.id.hex()}"
                yield self._broken("changes", "session_changes", name, "the list of changes says something else")
        for kind, missing in self._live:
            yield self._broken("changes", "session_changes", f"{kind} {missing.hex()}", "a row is not in the list")


def _digest(columns: Iterable[object]) -> bytes:
    return blake3(repr(tuple(columns)).encode()).digest(16)


def _misplaced(row: Row, standing: Standing) -> list[Rule]:
    """Return the rules that the columns break by which a session is found and sorted; not those of its parent."""
    found = dict(zip(row._fields, columns_of_session(standing, row.row_hash), strict=True))
    wrong = {name for name in _COLUMNS if getattr(row, name) != found[name]}
    rules: dict[Rule, frozenset[str]] = {"counters": _COUNTED, "fold": _COLUMNS - _COUNTED}
    return [rule for rule, names in rules.items() if wrong & names]


def _differences(stored: SessionRow | None, found: SessionRow | None) -> list[Rule]:
    """Return the rules that a session breaks: its sums, and whatever else is folded."""
    if stored is None or found is None:
        return [] if stored is found else ["counters"]
    a, b = msgspec.to_builtins(stored), msgspec.to_builtins(found)
    broken: list[Rule] = []
    if any(a.get(name) != b.get(name) for name in _SUMS):
        broken.append("counters")
    if any(a.get(name) != b.get(name) for name in (a.keys() | b.keys()) - set(_SUMS)):
        broken.append("fold")
    return broken
