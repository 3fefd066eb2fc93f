"""Parents: which session each was forked from, kept right while sessions come, change their hint, and go.

What becomes of a hint depends on the hints and the sessions it can touch: those of the ids it names, those that name
its session's id, and so on. All of them are read and decided together. A session that is new, and that nobody names,
touches nobody but itself.

Invariants:
    - The parents that are stored are those that all hints and all sessions give.
    - A session that nobody has seen is there as long as somebody's link leads to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.sessions.archive.standing import Standing, Standings
from holdfast.sessions.archive.work import Work, lock_names
from holdfast.sessions.limits import PARENTS_MAX
from holdfast.sessions.parents import Hint, ParentLink, placeholders, resolve_parents
from holdfast.sessions.values import SessionKey

__all__ = ["settle_parents"]


async def settle_parents(work: Work, standings: Standings, *, whole: bool = False) -> set[SessionKey] | None:
    """Give the transaction's sessions their parents, and all others that this changes.

    Args:
        work: The transaction's work.
        standings: Its sessions, their turns folded in.
        whole: Whether the sessions are looked at even where nothing of them has changed.

    Returns:
        The keys without turns that are somebody's parent; None where nothing had to be looked at.
    """
    changed = [each for each in standings.all() if whole or _differs(each)]
    if not changed:
        return None
    if len(changed) == 1:
        needed = await _leaf(work, standings, changed[0])
        if needed is not None:
            return needed
    family = await _family(work, standings, changed)
    hints = {each.key: each.hint for each in family if each.hint is not None}
    real = {each.key for each in family if each.fold is not None}
    links = resolve_parents({key: hint for key, hint in hints.items() if hint}, real, await _gone(work, hints.values()))
    for each in family:
        await _give(standings, each, links.get(each.key))
    return placeholders(links, real)


def _differs(standing: Standing) -> bool:
    real = standing.fold is not None
    if not real and not standing.was_real:
        return False
    return real != standing.was_real or standing.hint != standing.old_hint


async def _leaf(work: Work, standings: Standings, standing: Standing) -> set[SessionKey] | None:
    """Settle a new session that nobody names, where that is all there is to it; None where it is not."""
    if standing.stored or standing.fold is None:
        return None
    work.require(lock_names([standing.key]))
    org = work.org.bytes
    if await work.tx.one("sessions.hinted", org=org, hint_key=standing.key[1]) is not None:
        return None
    hint = standing.hint
    if hint is None:
        return {standing.key}  # nothing leads anywhere, and it is real itself
    work.require(lock_names([("", hint.harness_session_id)]))
    named = standings.known(await work.tx.all("sessions.named", org=org, harness_session_id=hint.harness_session_id))
    real = {each.key for each in named if each.fold is not None} | {standing.key}
    [link] = resolve_parents({standing.key: hint}, real, await _gone(work, [hint])).values()
    if link.parent is not None:
        above = await standings.find(link.parent)
        row = await work.tx.one("sessions.above", org=org, session_id=above.session_id, depth=PARENTS_MAX)
        if row is not None and row.count + 1 >= PARENTS_MAX:
            return None
    await _give(standings, standing, link)
    # Other sessions without turns of that id have their own reasons to be there.
    return {each.key for each in standings.all() if each.fold is None and (each.stored or each.key == link.parent)}


async def _family(work: Work, standings: Standings, changed: Iterable[Standing]) -> list[Standing]:
    """Return all sessions that the links of these may depend on, or that may depend on them."""
    family: dict[bytes, Standing] = {}
    unseen: set[str] = set()
    seen: set[str] = set()

    def join(members: Iterable[Standing]) -> None:
        for each in members:
            if each.session_id not in family:
                family[each.session_id] = each
                unseen.add(each.key[1])
                unseen.update(hint.harness_session_id for hint in (each.hint, each.old_hint) if hint is not None)

    join(changed)
    org = work.org.bytes
    while unseen - seen:
        ids = sorted(unseen - seen)
        seen.update(ids)
        work.require(lock_names(("", each) for each in ids))
        for each in ids:
            join(standings.known(await work.tx.all("sessions.named", org=org, harness_session_id=each)))
            join(standings.known(await work.tx.all("sessions.hinting", org=org, hint_key=each)))
    for member in family.values():
        # Nobody can name a group as a parent, so its id guards nothing; yet it may name one, and is written then.
        await work.guard_session(member.session_id, member.key)
    return list(family.values())


async def _gone(work: Work, hints: Iterable[Hint | None]) -> set[SessionKey]:
    """Return the deleted sessions that hints may name."""
    gone: set[SessionKey] = set()
    for each in sorted({hint.harness_session_id for hint in hints if hint is not None}):
        found = await work.tx.all("tombstones.named", org=work.org.bytes, harness_session_id=each)
        gone |= {(row.harness_id, each) for row in found}
    return gone


async def _give(standings: Standings, standing: Standing, link: ParentLink | None) -> None:
    """Give a session what became of its hint."""
    link = link or ParentLink("none")
    standing.parent = link.parent
    standing.parent_id = None if link.parent is None else (await standings.find(link.parent)).session_id
    standing.parent_state = link.state
    standing.parent_flag = "harness_assumed" if link.assumed else "depth" if link.too_deep else ""
