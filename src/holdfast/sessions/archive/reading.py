"""Questions about what was captured: sessions by pages, turns, nodes, totals, trees and branches.

Invariants:
    - Every statement names the org: what belongs to another is not there.
    - A page goes on exactly after the row that the one before ended with, whatever was added meanwhile.
    - Whatever is walked has a bound, and says where it was reached.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Literal, cast
from uuid import UUID

from holdfast.sessions import cursors, identity, instants, jcs, pricing
from holdfast.sessions.archive import chains, rows
from holdfast.sessions.archive.captures import event_state, load, told_of
from holdfast.sessions.archive.rows import Body
from holdfast.sessions.archive.shown import event_of, node_of, session_of, stats_of, total_of, turn_of
from holdfast.sessions.archive.work import Kept, Seen, kept_of, seen_of
from holdfast.sessions.cursors import Listing
from holdfast.sessions.errors import InvalidQuery
from holdfast.sessions.machine import DeriveState
from holdfast.sessions.values import SessionKey
from holdfast.sessions.views import (
    Branches,
    CapturedEvent,
    Event,
    Fork,
    GroupBy,
    Leaf,
    Node,
    Page,
    Session,
    SessionFilters,
    StatsRow,
    Thread,
    TotalTokens,
    Tree,
    TreeNode,
    Turn,
    document,
)
from holdfast.store.database import Row, Tx

__all__ = [
    "PAGE_MAX", "SORTS", "Ancestry", "Difference", "ancestry", "branches", "difference", "find_session", "get_body",
    "get_event", "get_node", "get_session", "get_turn", "list_turns", "load_chain", "page_events", "page_kept",
    "page_sessions", "page_turns", "stats", "tree",
]  # fmt: skip

PAGE_MAX = 200
"""Rows of one page."""

SORTS = {
    "last_seen": ("last_seen_at", "sessions.page_last_seen_up", "sessions.page_last_seen_down"),
    "started": ("started_at", "sessions.page_started_up", "sessions.page_started_down"),
    "turns": ("turn_count", "sessions.page_turns_up", "sessions.page_turns_down"),
    "cost": ("cost_pusd", "sessions.page_cost_up", "sessions.page_cost_down"),
    "tokens": ("tokens_sum", "sessions.page_tokens_up", "sessions.page_tokens_down"),
}
"""What sessions are sorted by; with a `-` before it, the greatest first."""


# --- sessions -----------------------------------------------------------------------------------------


async def find_session(tx: Tx, org: UUID, ref: bytes | SessionKey) -> bytes | None:
    """Return the id of a session, by its id or its key, a placeholder's too; None where there is none."""
    row = await _session_row(tx, org, ref)
    return None if row is None else row.session_id


async def _session_row(tx: Tx, org: UUID, ref: bytes | SessionKey) -> Row | None:
    if isinstance(ref, bytes):
        return await tx.one("sessions.load", org=org.bytes, session_id=ref)
    harness_id, harness_session_id = map(jcs.scrub, ref)
    return await tx.one("sessions.find", org=org.bytes, harness_id=harness_id, harness_session_id=harness_session_id)


async def get_session(tx: Tx, org: UUID, ref: bytes | SessionKey, *, now: int) -> Session | None:
    """Return a session by its id or its key.

    Args:
        tx: A transaction.
        org: Whose.
        ref: The id, 16 bytes; or harness and session id.
        now: The clock, in microseconds, to say whether it goes on.
    """
    row = await _session_row(tx, org, ref)
    if row is None:
        return None
    [found] = await _shown(tx, org, [row], now=now)
    return found


async def _shown(tx: Tx, org: UUID, found: Sequence[Row], *, now: int) -> list[Session]:
    ids = json.dumps([row.session_id.hex() for row in found])
    outcomes = {row.session_id: row for row in await tx.all("turns.last_main", ids=ids, org=org.bytes)}
    return [session_of(row, outcomes.get(row.session_id), now=now) for row in found]


# Beyond any row on either side: a plan that is made once must not have to ask whether there is a bound.
_BEFORE_ALL = {False: (-(2**63), b""), True: (2**63 - 1, b"\xff" * 17)}


async def page_sessions(  # noqa: PLR0913 - what is listed, and which part of it
    tx: Tx,
    org: UUID,
    filters: SessionFilters,
    *,
    secret: bytes,
    now: int,
    sort: str = "-last_seen",
    limit: int = 50,
    cursor: str = "",
) -> Page[Session]:
    """Return a page of sessions.

    Args:
        tx: A transaction.
        org: Whose.
        filters: Which.
        secret: The installation's, for the cursor.
        now: The clock, in microseconds.
        sort: One of `SORTS`, with a `-` before it for the greatest first.
        limit: How many, 200 at most.
        cursor: Where the page before ended; empty: begin.

    Raises:
        InvalidQuery: There is no such order, or the limit is out of range.
        CursorMismatch: The cursor is of another list.
    """
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    if name not in SORTS or not 1 <= limit <= PAGE_MAX:
        raise InvalidQuery(f"sort is one of {', '.join(SORTS)}, limit is 1 to {PAGE_MAX}")
    column, rising, falling = SORTS[name]
    listing = Listing(org, "sessions", name, descending, {k: v for k, v in document(filters).items() if v is not None})
    value, after = cursors.decode(listing, cursor, secret=secret) if cursor else _BEFORE_ALL[descending]
    found = await tx.all(
        falling if descending else rising,
        **_asked(filters),
        org=org.bytes,
        value=value,
        after_id=after,
        limit=limit + 1,
    )
    shown = await _shown(tx, org, found[:limit], now=now)
    following = None
    if len(found) > limit:
        last = found[limit - 1]
        following = cursors.encode(listing, (getattr(last, column), last.session_id), secret=secret)
    return Page(tuple(shown), following)


def _asked(filters: SessionFilters) -> dict[str, object]:
    texts = {
        name: None if (text := getattr(filters, name)) is None else jcs.scrub(text)
        for name in (
            "harness_id", "harness_session_id", "auth_subject", "parent_state", "model", "provider", "agent_name",
            "thread", "tag",
        )
    }  # fmt: skip
    return {
        **texts,
        "placeholders": int(filters.include_placeholders),
        "since": None if filters.since is None else instants.micros(filters.since, "/since"),
        "until": None if filters.until is None else instants.micros(filters.until, "/until"),
        "min_cost": pricing.to_pusd(filters.min_cost),
    }


# --- turns --------------------------------------------------------------------------------------------


async def page_turns(
    tx: Tx, org: UUID, session_id: bytes, *, limit: int = 50, after: tuple[int, bytes] | None = None
) -> tuple[list[Turn], tuple[int, bytes] | None]:
    """Return turns of a session by their captured time, and what the next page goes on after; None: that is all."""
    found, following = await page_kept(tx, org, session_id, limit=limit, after=after)
    return [await _turn(tx, org, kept) for kept in found], following


async def list_turns(tx: Tx, org: UUID, session_id: bytes, *, secret: bytes, limit: int, cursor: str) -> Page[Turn]:
    """Return a page of the turns of a session; see `page_sessions`."""
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidQuery(f"limit is 1 to {PAGE_MAX}")
    listing = Listing(org, "turns", "captured", False, {"session": session_id.hex()})  # noqa: FBT003 - ascending
    after = cast("tuple[int, bytes]", cursors.decode(listing, cursor, secret=secret)) if cursor else None
    found, following = await page_turns(tx, org, session_id, limit=limit, after=after)
    return Page(tuple(found), None if following is None else cursors.encode(listing, following, secret=secret))


async def page_kept(
    tx: Tx, org: UUID, session_id: bytes, *, limit: int, after: tuple[int, bytes] | None
) -> tuple[list[Kept], tuple[int, bytes] | None]:
    """As `page_turns`, but as the ledger has them, without what is kept beside: parameters and prices."""
    at, turn_id = after or (-(2**63), b"")
    found = await tx.all(
        "turns.page", org=org.bytes, session_id=session_id, after_at=at, after_id=turn_id, limit=limit + 1
    )
    last = found[limit - 1] if len(found) > limit else None
    return await _kept(tx, org, found[:limit]), None if last is None else (last.captured_at, last.turn_id)


async def _kept(tx: Tx, org: UUID, found: Sequence[Row]) -> list[Kept]:
    seen: dict[bytes, list[Seen]] = defaultdict(list)
    ids = json.dumps([row.turn_id.hex() for row in found])
    for row in await tx.all("turn_evidence.of_turns", ids=ids, org=org.bytes):
        seen[row.turn_id].append(seen_of(row))
    return [kept_of(row, seen[row.turn_id]) for row in found]


async def find_turn(tx: Tx, org: UUID, turn_id: bytes) -> Kept | None:
    """Return a turn by its id, or by that of one of its events, which is what it may have been called before."""
    row = await tx.one("turns.get", org=org.bytes, turn_id=turn_id)
    if row is None:
        found = await tx.all("turn_evidence.of_event", org=org.bytes, event_id=turn_id)
        row = await tx.one("turns.get", org=org.bytes, turn_id=found[0].turn_id) if found else None
    if row is None:
        return None
    [kept] = await _kept(tx, org, [row])
    return kept


async def get_turn(tx: Tx, org: UUID, turn_id: bytes) -> Turn | None:
    """Return a turn by its id, or by that of one of its events."""
    kept = await find_turn(tx, org, turn_id)
    return None if kept is None else await _turn(tx, org, kept)


async def _turn(tx: Tx, org: UUID, kept: Kept) -> Turn:
    params = kept.facts.request_params
    parts: dict[bytes, bytes] = {}
    for each in rows.part_hashes(params):
        row = await tx.one("parts.get", org=org.bytes, hash=each)
        if row is not None:
            parts[each] = rows.unpack(row.content)
    price = await tx.one(
        "cost_ledger.last", org=org.bytes, event_id=kept.facts.usage_event, evidence_key=kept.facts.usage_key
    )
    return turn_of(kept, rows.expand(params, parts), () if price is None else rows.read_lines(price.lines))


async def load_chain(tx: Tx, org: UUID, turn_id: bytes, *, preview: bool = False) -> list[Node]:
    """Return the messages of a turn, from the root to the answer."""
    kept = await find_turn(tx, org, turn_id)
    leaf = "" if kept is None else kept.facts.response_hash or kept.facts.head_hash
    if kept is None or not leaf:
        return []
    version = kept.facts.hash_version
    found = await _upwards(tx, org, version, bytes.fromhex(leaf), chains.DEPTH_ANY)
    chain: list[Node] = []
    while found:  # what is read goes, so that of a large message no more than one is held whole
        chain.append(node_of(found.pop(), version, preview=preview))
    return chain


async def page_events(
    tx: Tx, org: UUID, *, state: DeriveState | None, secret: bytes, limit: int, cursor: str
) -> Page[Event]:
    """Return a page of captured events in the order they came, of one state or of all; see `page_sessions`."""
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidQuery(f"limit is 1 to {PAGE_MAX}")
    listing = Listing(org, "events", "seq", False, {"state": state})  # noqa: FBT003 - ascending
    [after] = cursors.decode(listing, cursor, secret=secret) if cursor else [0]
    found = await tx.all("raw_events.list", derive_state=state, org=org.bytes, after=after, limit=limit + 1)
    following = cursors.encode(listing, [found[limit - 1].seq], secret=secret) if len(found) > limit else None
    return Page(tuple(map(event_of, found[:limit])), following)


async def get_event(tx: Tx, org: UUID, event_id: bytes) -> CapturedEvent | None:
    """Return a captured event with what was told of it."""
    row = await tx.one("raw_events.get", org=org.bytes, event_id=event_id)
    known = await event_state(tx, org, event_id)
    if row is None or known is None:
        return None
    event = event_of(row)
    shape: dict[str, Any] = {each.name: getattr(event, each.name) for each in fields(event)}
    return CapturedEvent(
        **shape,
        turn_id=None if known.turn_id is None else identity.shown_id("turn", known.turn_id),
        session_id=None if known.session_id is None else identity.shown_id("ses", known.session_id),
        told=await told_of(tx, org, event_id),
    )


async def get_body(tx: Tx, org: UUID, turn_id: bytes, part: Literal["request", "response"]) -> Body | None:
    """Return a body of a turn as it was captured: that of the first of its events that has one.

    An event of which no turn was made goes by its own id.
    """
    kept = await find_turn(tx, org, turn_id)
    for event_id in [turn_id] if kept is None else [evidence.event_id for evidence in kept.cell]:
        loaded = await load(tx, org, event_id)
        body = None if loaded is None else loaded.request if part == "request" else loaded.response
        if body is not None:
            return body
    return None


# --- nodes --------------------------------------------------------------------------------------------

HOLDERS_MAX = 100
"""Sessions that are named with a node."""


async def get_node(tx: Tx, org: UUID, hashed: bytes, *, version: int = 1) -> Node | None:
    """Return a node, with the sessions that hold it."""
    row = await tx.one("nodes.get", org=org.bytes, hash_version=version, hash=hashed)
    holders = await tx.all(
        "node_links.of_node", org=org.bytes, hash_version=version, hash=hashed, limit=HOLDERS_MAX + 1
    )
    if row is None:
        return None
    node = node_of(row, version, [each.session_id for each in holders[:HOLDERS_MAX]])
    return replace(node, sessions_truncated=len(holders) > HOLDERS_MAX)


class Ancestry(tuple[Node, ...]):
    """The nodes above one, itself first, its root last.

    Attributes:
        truncated: Whether there are more above.
        missing_parent: The hash of a node that should be there and is not.
    """

    truncated: bool = False
    missing_parent: str | None = None


async def ancestry(tx: Tx, org: UUID, hashed: bytes, *, depth: int, version: int = 1) -> Ancestry | None:
    """Return the way from a node to its root, as far as `depth` links; None where there is no such node."""
    found = await _upwards(tx, org, version, hashed, depth)
    if not found:
        return None
    way = Ancestry(node_of(row, version) for row in found)
    last = found[-1]
    if last.parent_hash is not None:
        way.truncated = last.depth >= depth
        way.missing_parent = None if way.truncated else last.parent_hash.hex()
    return way


async def _upwards(tx: Tx, org: UUID, version: int, leaf: bytes, depth: int) -> list[Row]:
    """Return the rows from a node to its root."""
    found = await tx.all("nodes.ancestry", org=org.bytes, hash_version=version, leaf=leaf, depth=depth)
    return sorted(found, key=attrgetter("depth"))


PATHS_FACTOR = 10
"""How much longer than the messages of a session all ways to their ends may be together."""


async def branches(tx: Tx, org: UUID, session_id: bytes, *, nodes_max: int) -> Branches:
    """Return where the messages of a session part."""
    found = await tx.all("nodes.of_session", org=org.bytes, session_id=session_id, limit=nodes_max + 1)
    parents = {row.hash: row.parent_hash for row in found[:nodes_max]}
    below: dict[bytes, list[str]] = defaultdict(list)
    for hashed, parent in parents.items():
        if parent is not None:
            below[parent].append(hashed.hex())
    forks = [Fork(each.hex(), tuple(sorted(children))) for each, children in below.items() if len(children) > 1]
    leaves: list[Leaf] = []
    left = nodes_max * PATHS_FACTOR
    for each in sorted(each for each in parents if each not in below):
        path = _path(parents, each)
        left -= len(path)
        if left < 0:
            break
        leaves.append(Leaf(each.hex(), path))
    return Branches(
        forks=tuple(sorted(forks, key=lambda fork: fork.hash)),
        leaves=tuple(leaves),
        truncated=len(found) > nodes_max or left < 0,
    )


def _path(parents: dict[bytes, bytes | None], leaf: bytes) -> tuple[str, ...]:
    path: list[str] = []
    at: bytes | None = leaf
    while at is not None:
        path.append(at.hex())
        at = parents.get(at)
    return tuple(reversed(path))


class Difference(dict[str, list[str]]):
    """What two branches share, and what each has alone: hashes from the root, under `common`, `a` and `b`."""


async def difference(
    tx: Tx, org: UUID, session_id: bytes, ends: tuple[bytes, bytes], *, version: int = 1
) -> Difference | None:
    """Return how the ways to two nodes of a session differ; None where one of them is not there."""
    wanted = json.dumps([end.hex() for end in ends])
    found = await tx.all("nodes.marks", hashes=wanted, session_id=session_id, org=org.bytes, hash_version=version)
    if {row.hash for row in found if row.link_mark is not None} != set(ends):
        return None
    a, b = [await _way(tx, org, version, end) for end in ends]
    shared = next((at for at, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    return Difference(common=a[:shared], a=a[shared:], b=b[shared:])


async def _way(tx: Tx, org: UUID, version: int, end: bytes) -> list[str]:
    """Return the hashes from a node's root to itself."""
    found = await tx.all("node_links.chain", org=org.bytes, hash_version=version, leaf=end, depth=chains.DEPTH_ANY)
    return [row.hash.hex() for row in reversed(found)]


# --- totals -------------------------------------------------------------------------------------------


async def stats(
    tx: Tx, org: UUID, *, since: int | None = None, until: int | None = None, group_by: GroupBy = "model"
) -> list[StatsRow]:
    """Return the totals of turns captured in a time, by group, in the order of the groups."""
    found = await tx.all(_GROUPED[group_by], org=org.bytes, since=since, until=until)
    return [stats_of(row, _key(row.item, group_by)) for row in found]


_GROUPED: dict[GroupBy, str] = {
    "day": "turns.by_day",
    "model": "turns.by_model",
    "harness": "turns.by_harness",
    "subject": "turns.by_subject",
    "session": "turns.by_session",
}


def _key(item: object, group_by: GroupBy) -> str | None:
    if group_by == "day":
        return instants.written(cast("int", item) * 86_400_000_000)[:10]
    if group_by == "session":
        return identity.shown_id("ses", cast("bytes", item))
    return cast("str", item) or None


# --- trees --------------------------------------------------------------------------------------------


async def tree(
    tx: Tx, org: UUID, session_id: bytes, *, now: int, depth: int = 100, nodes_max: int = 5000
) -> Tree | None:
    """Return a session with those above and below it; None where there is none."""
    row = await tx.one("sessions.load", org=org.bytes, session_id=session_id)
    if row is None:
        return None
    above, cut = await _above(tx, org, row, nodes_max)
    below, more = await _below(tx, org, session_id, depth, nodes_max)
    shown = await _shown(tx, org, [row, *above, *(each for each, _ in below)], now=now)
    threads = await tx.all("turns.threads", org=org.bytes, session_id=session_id)
    descendants = tuple(
        TreeNode(session, level) for session, (_, level) in zip(shown[1 + len(above) :], below, strict=True)
    )
    return Tree(
        session=shown[0],
        ancestors=tuple(shown[1 : 1 + len(above)]),
        descendants=descendants,
        threads=tuple(map(_thread, threads)),
        own=_summed(shown[0].id, shown[:1]),
        subtree=_summed(shown[0].id, [shown[0], *(each.session for each in descendants)]),
        depth=max((level for _, level in below), default=0),
        truncated=cut or more,
    )


async def _above(tx: Tx, org: UUID, row: Row, nodes_max: int) -> tuple[list[Row], bool]:
    found: list[Row] = []
    at = row
    while at.parent_session_id is not None:
        if len(found) == nodes_max:
            return found, True
        above = await tx.one("sessions.load", org=org.bytes, session_id=at.parent_session_id)
        if above is None:
            break
        found.append(above)
        at = above
    return found, False


async def _below(
    tx: Tx, org: UUID, session_id: bytes, depth: int, nodes_max: int
) -> tuple[list[tuple[Row, int]], bool]:
    found: list[tuple[Row, int]] = []
    level = [session_id]
    for number in range(1, depth + 1):
        following: list[bytes] = []
        for each in level:
            room = nodes_max - len(found)
            children = await tx.all("sessions.children", org=org.bytes, parent_session_id=each, limit=room + 1)
            found += [(row, number) for row in children[:room]]
            following += [row.session_id for row in children[:room]]
            if len(children) > room:
                return found, True
        level = following
    for each in level:
        if await tx.all("sessions.children", org=org.bytes, parent_session_id=each, limit=1):
            return found, True
    return found, False


def _thread(row: Row) -> Thread:
    return Thread(
        thread_id=row.thread_id,
        turns=row.turns,
        failed=row.failed,
        first_at=instants.moment(row.first_at),
        last_at=instants.moment(row.last_at),
    )


def _summed(key: str, sessions: Iterable[Session]) -> StatsRow:
    turns = failed = pusd = unpriced = partial = provided = 0
    tokens: dict[str, int | None] = {}
    for each in sessions:
        turns += each.turn_count
        failed += each.failed_turn_count
        unpriced += each.cost.unpriced_turns
        partial += each.cost.partial_turns
        provided += each.cost.provided_turns
        pusd += pricing.to_pusd(each.cost.usd) or 0
        for column, count in cast("dict[str, int | None]", each.tokens).items():
            before = tokens.get(column)
            tokens[column] = before if count is None else count + (before or 0)
    cost = total_of(turns, pusd, unpriced, partial, provided)
    return StatsRow(key=key, turns=turns, failed=failed, tokens=cast("TotalTokens", tokens), cost=cost)
