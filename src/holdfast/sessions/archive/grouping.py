"""Which turns without a session id belong together: each goes on from the latest before it whose answer it repeats.

Turns arrive in any order. One that comes, changes or goes re-decides those that go on from it, and what moves takes
along what goes on from it in turn.

Invariants:
    - The groups are a function of the turns: the same whatever came first.
    - A turn is decided after every turn before it that is decided in the same transaction.
"""

from __future__ import annotations

import heapq

from holdfast.sessions import identity
from holdfast.sessions.archive.work import Change, Kept, Work
from holdfast.store.database import Row

__all__ = ["regroup"]


async def regroup(work: Work) -> None:
    """Give turns without a session id their group, and those that go on from them."""
    if not work.terms.continuation:
        return
    queue: list[tuple[bytes, bytes]] = []
    for turn_id, change in list(work.changes.items()):
        if change.new is not None and change.new.caller is not None:
            queue.append((change.new.mark, turn_id))
        for side in (change.old, change.new):
            if side is not None:
                queue += await _following(work, side)
    heapq.heapify(queue)
    decided: set[bytes] = set()
    while queue:
        _, turn_id = heapq.heappop(queue)
        if turn_id in decided:
            continue
        decided.add(turn_id)
        change = work.changes.get(turn_id) or await _unchanged(work, turn_id)
        assert change.new is not None
        group = await _group(work, change.new)
        if group != change.new.facts.harness_session_id:
            work.changes[turn_id] = Change(change.old, work.regrouped(change.new, group))
            for item in await _following(work, change.new):
                heapq.heappush(queue, item)


async def _unchanged(work: Work, turn_id: bytes) -> Change:
    row = await work.tx.one("turns.get", org=work.org.bytes, turn_id=turn_id)
    assert row is not None
    kept = await work.turn(row)
    return Change(kept, kept)


async def _following(work: Work, kept: Kept) -> list[tuple[bytes, bytes]]:
    """Return the turns that may go on from a turn, by their marks."""
    if kept.caller is None or not kept.facts.response_hash:
        return []
    work.guard_turn(kept)
    rows = await work.tx.all(
        "turns.following",
        org=work.org.bytes,
        caller=kept.caller,
        continues_hash=bytes.fromhex(kept.facts.response_hash),
        mark=kept.mark,
    )
    found = [(row.mark, row.turn_id) for row in rows if row.turn_id not in work.changes]
    for turn_id, change in work.changes.items():
        other = change.new
        if (
            other is not None
            and other.caller == kept.caller
            and other.facts.continues_hash == kept.facts.response_hash
            and other.mark > kept.mark
        ):
            found.append((other.mark, turn_id))
    return found


async def _group(work: Work, kept: Kept) -> str:
    """Return the session id of a turn's group."""
    facts = kept.facts
    best: tuple[bytes, str] | None = None
    if facts.continues_hash and kept.caller is not None:
        floor = max(facts.captured_at - work.terms.continuation_us, 0).to_bytes(8, "big")
        row = await _before(work, kept, floor)
        if row is not None:
            best = row.mark, row.harness_session_id
        for change in work.changes.values():
            other = change.new
            if (
                other is not None
                and other.caller == kept.caller
                and other.facts.response_hash == facts.continues_hash
                and floor <= other.mark < kept.mark
                and (best is None or other.mark > best[0])
            ):
                best = other.mark, other.facts.harness_session_id
    return identity.synthetic_key(work.org, facts.capture_id) if best is None else best[1]


async def _before(work: Work, kept: Kept, floor: bytes) -> Row | None:
    """Return the latest stored turn that a turn may go on from, leaving out those that are changed."""
    rows = await work.tx.all(
        "turns.before",
        org=work.org.bytes,
        caller=kept.caller,
        response_hash=bytes.fromhex(kept.facts.continues_hash),
        floor=floor,
        mark=kept.mark,
        limit=len(work.changes) + 1,
    )
    return next((row for row in rows if row.turn_id not in work.changes), None)
