"""Sessions as they stand: a row, what its turns make of it, its parent; and the change of a row.

Invariants:
    - A session without turns has a key, and nothing else of its own.
    - A row is written only where it differs, and what differs is in the list of changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.sessions import jcs
from holdfast.sessions.archive import rows
from holdfast.sessions.archive.work import Work
from holdfast.sessions.evidence import SessionRow
from holdfast.sessions.parents import Hint, ParentState
from holdfast.sessions.values import SessionKey
from holdfast.store.database import Row

__all__ = ["Standing", "Standings", "columns_of", "hint_of", "standing_of"]

_SORT_MAX = 2**63 - 1


@dataclass(slots=True)
class Standing:
    """A session.

    Attributes:
        fold: What its turns make of it; None where it has none.
        parent: The parent's key; None: unknown, or there is none.
        stored: Whether there is a row of it.
        row_hash: Of that row.
        was_real: Whether that row had turns.
        old_hint: The hint of that row.
    """

    session_id: bytes
    key: SessionKey
    fold: SessionRow | None = None
    parent_id: bytes | None = None
    parent: SessionKey | None = None
    parent_state: ParentState = "none"
    parent_flag: str = ""
    display_name: str | None = None
    stored: bool = False
    row_hash: bytes = b""
    was_real: bool = False
    old_hint: Hint | None = None

    @property
    def hint(self) -> Hint | None:
        """What it says of its parent."""
        return hint_of(self.fold)


def hint_of(fold: SessionRow | None) -> Hint | None:
    """Return what turns say of their session's parent: the one that was said first."""
    said = () if fold is None else fold.seen.get("parent", ())
    if not said:
        return None
    mark, (harness_id, harness_session_id) = said[0]
    return Hint(harness_id, harness_session_id, (mark[0], mark[1], mark[2]))


def standing_of(row: Row) -> Standing:
    """Return the session of a row."""
    fold = None if row.fold is None else rows.read_session(row.fold)
    return Standing(
        row.session_id,
        (row.harness_id, row.harness_session_id) if fold is None else (fold.harness_id, fold.harness_session_id),
        fold,
        row.parent_session_id,
        None,
        row.parent_state,
        row.parent_flag,
        row.display_name,
        stored=True,
        row_hash=row.row_hash,
        was_real=fold is not None,
        old_hint=hint_of(fold),
    )


class Standings:
    """The sessions of one transaction: each is read once, changed in place, and written at its end."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.changes: list[tuple[bytes, str, bytes, bytes, int]] = []
        """What goes into the list of changes with them."""
        self._by_key: dict[SessionKey, Standing] = {}
        self._by_id: dict[bytes, Standing] = {}

    async def find(self, key: SessionKey) -> Standing:
        """Return a session by its key; one that nobody knows gets its id."""
        found = self._by_key.get(key)
        if found is None:
            org = self._work.org.bytes
            row = await self._work.tx.one("sessions.find", org=org, harness_id=key[0], harness_session_id=key[1])
            if row is None:
                found = self._keep(Standing(await self._work.session_id(key), key))
                edit = await self._work.tx.one("edits.last", org=org, session_id=found.session_id)
                found.display_name = None if edit is None else edit.display_name
            else:
                found = self._keep(standing_of(row))
        return found

    async def get(self, session_id: bytes) -> Standing | None:
        """Return a session by its id."""
        found = self._by_id.get(session_id)
        if found is None:
            row = await self._work.tx.one("sessions.load", org=self._work.org.bytes, session_id=session_id)
            found = None if row is None else self._keep(standing_of(row))
        return found

    def known(self, found: Iterable[Row]) -> list[Standing]:
        """Return the sessions of rows, as they stand now."""
        return [self._by_id.get(row.session_id) or self._keep(standing_of(row)) for row in found]

    def all(self) -> list[Standing]:
        """Return the sessions that were asked for."""
        return list(self._by_id.values())

    def _keep(self, standing: Standing) -> Standing:
        self._by_key[standing.key] = self._by_id[standing.session_id] = standing
        return standing

    async def write(self, needed: set[SessionKey] | None, *, again: bool = False) -> None:
        """Write the sessions that differ from their rows.

        Args:
            needed: The keys without turns that are somebody's parent; None: nobody's parent was looked at, so rows
                without turns stay as they are.
            again: Whether those that do not differ are written too.
        """
        org = self._work.org.bytes
        dropped: list[tuple[bytes, bytes]] = []
        put: list[tuple[object, ...]] = []
        changes = self.changes
        for standing in sorted(self._by_id.values(), key=lambda each: each.session_id):
            if standing.fold is None and needed is not None and standing.key not in needed:
                if standing.stored:
                    dropped.append((org, standing.session_id))
                if standing.was_real:
                    changes.append((org, "session", standing.session_id, standing.row_hash, 1))
                continue
            if standing.fold is None and needed is None:
                continue
            columns, row_hash = await self._columns(standing)
            if again or row_hash != standing.row_hash:
                put.append((org, *columns))
            if standing.fold is not None:
                changes.append((org, "session", standing.session_id, row_hash, 0))
            elif standing.was_real:
                changes.append((org, "session", standing.session_id, row_hash, 1))
        if dropped:
            await self._work.tx.run("sessions.drop", dropped)
        await self._work.tx.run("sessions.put", put)
        await self._work.tx.run("changes.put", changes)

    async def _columns(self, standing: Standing) -> tuple[tuple[object, ...], bytes]:
        """Return the columns of a session, and the hash of them."""
        if standing.parent_id is not None and standing.parent is None:
            above = await self.get(standing.parent_id)
            standing.parent = None if above is None else above.key
        said = (*standing.key, standing.parent_state, standing.parent_flag, standing.display_name)
        row_hash = rows.hash_session(standing.fold, standing.parent, *said)
        return columns_of(standing, row_hash), row_hash


def columns_of(standing: Standing, row_hash: bytes) -> tuple[object, ...]:
    """Return the columns of a session but its org."""
    fold, hint = standing.fold, standing.hint
    tokens = {} if fold is None else fold.tokens
    total = sum(tokens.get(column, (0, 0))[1] for column in ("input", "output"))
    return (
        standing.session_id,
        jcs.scrub(standing.key[0]),
        jcs.scrub(standing.key[1]),
        int(fold is None),
        int(fold is not None and fold.is_synthetic),
        "" if fold is None else jcs.scrub(fold.auth_subject),
        0 if fold is None else fold.started_at or 0,
        0 if fold is None else fold.last_seen_at or 0,
        0 if fold is None else fold.turn_count,
        min(total, _SORT_MAX),
        0 if fold is None else min(fold.cost_pusd, _SORT_MAX),
        standing.parent_id,
        standing.parent_state,
        standing.parent_flag,
        "" if hint is None else jcs.scrub(hint.harness_id),
        None if hint is None else jcs.scrub(hint.harness_session_id),
        None if hint is None else rows.mark_of(hint.mark),
        jcs.scrub(standing.display_name) if standing.display_name else None,
        None if fold is None else rows.write_session(fold),
        row_hash,
    )
