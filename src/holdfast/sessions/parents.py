"""Which session a session was forked from: hints, what becomes of each, and no cycles. Pure.

A hint names a parent that may be known already, come later, belong to another harness, or never come. What becomes
of all hints is a function of the hints and of the sessions there are; the order in which either came is forgotten.

Invariants:
    - Links form a forest: following them ends.
    - Of hints that would close a cycle, the one with the greatest mark is the one that gives way.
    - A session that nobody has seen has a key and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from holdfast.sessions.limits import PARENTS_MAX
from holdfast.sessions.values import Mark, SessionKey

__all__ = ["Hint", "ParentLink", "ParentState", "placeholders", "resolve_parents"]

ParentState: TypeAlias = Literal[
    "none", "resolved", "pending", "ambiguous", "deleted", "rejected_self", "rejected_cycle"
]


@dataclass(frozen=True, slots=True)
class Hint:
    """What a session says of its parent.

    Attributes:
        harness_id: The parent's harness; empty where it was not said.
        harness_session_id: The parent's session id.
        mark: Of the turn that said so.
    """

    harness_id: str
    harness_session_id: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class ParentLink:
    """What became of a hint.

    Attributes:
        parent: The session that is linked; None where none is.
        assumed: Whether the parent's harness is a guess.
        too_deep: Whether the link was refused because nobody could follow the links above it.
    """

    state: ParentState
    parent: SessionKey | None = None
    assumed: bool = False
    too_deep: bool = False


def resolve_parents(
    hints: Mapping[SessionKey, Hint],
    real: Collection[SessionKey],
    deleted: Collection[SessionKey] = (),
) -> dict[SessionKey, ParentLink]:
    """Return what becomes of every hint.

    Args:
        hints: By session, the hint of smallest mark. Sessions without a hint need not be named.
        real: The sessions that have turns of their own.
        deleted: The sessions that were deleted.
    """
    by_id: dict[str, list[SessionKey]] = defaultdict(list)
    for key in real:
        by_id[key[1]].append(key)
    known, gone = frozenset(real), frozenset(deleted)
    forest = _Forest()
    links: dict[SessionKey, ParentLink] = {}
    for child, hint in sorted(hints.items(), key=lambda item: (item[1].mark, item[0])):
        link = _candidate(child, hint, known, gone, by_id)
        if link.parent is not None:
            link = forest.join(child, link)
        links[child] = link
    return links


def _candidate(
    child: SessionKey,
    hint: Hint,
    real: Collection[SessionKey],
    deleted: Collection[SessionKey],
    by_id: Mapping[str, list[SessionKey]],
) -> ParentLink:
    """Return what a hint leads to, cycles aside."""
    exact = (hint.harness_id or child[0], hint.harness_session_id)
    if exact == child:
        return ParentLink("rejected_self")
    if exact in real:
        return ParentLink("resolved", exact)
    if exact in deleted:
        return ParentLink("deleted")
    if not hint.harness_id:
        others = by_id.get(hint.harness_session_id, [])
        if len(others) == 1:
            return ParentLink("resolved", others[0])
        if others:
            return ParentLink("ambiguous")
    return ParentLink("pending", exact, assumed=not hint.harness_id)


class _Forest:
    """The links so far: for each session the one above it, or further up on the same way, and how far that is."""

    def __init__(self) -> None:
        self._above: dict[SessionKey, tuple[SessionKey, int]] = {}

    def join(self, child: SessionKey, link: ParentLink) -> ParentLink:
        """Return the link, made unless it would close a cycle or cannot be followed."""
        assert link.parent is not None
        root, distance = self._root(link.parent)
        if root == child:
            return ParentLink("rejected_cycle")
        if distance >= PARENTS_MAX:
            return ParentLink("rejected_cycle", too_deep=True)
        self._above[child] = link.parent, 1
        return link

    def _root(self, key: SessionKey) -> tuple[SessionKey, int]:
        """Return the top of a session's way and how far it is, and shorten the way for the next one."""
        way: list[SessionKey] = []
        at = key
        while at in self._above:
            way.append(at)
            at = self._above[at][0]
        distance = 0
        for each in reversed(way):
            distance += self._above[each][1]
            self._above[each] = at, distance
        return at, distance


def placeholders(links: Mapping[SessionKey, ParentLink], real: Collection[SessionKey]) -> set[SessionKey]:
    """Return the sessions that are linked and that nobody has seen yet."""
    return {link.parent for link in links.values() if link.parent is not None and link.parent not in real}
