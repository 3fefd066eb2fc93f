"""Check what the ledger promises about captured conversations, and hash all that was derived of them.

All of it is looked at in one view, so that a ledger can be checked while it is being written.

Invariants:
    - A ledger that only this library has written has no problem, while it is being written and after any crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from blake3 import blake3

from holdfast.core import trace
from holdfast.sessions.archive import scans
from holdfast.sessions.archive.audit import Audit, Broken, Rule
from holdfast.sessions.archive.work import Terms
from holdfast.sessions.pricing import RateCard
from holdfast.sessions.sealing import check_keys

if TYPE_CHECKING:
    from holdfast.store.database import Database

__all__ = ["Problem", "VerifyReport", "projection_hash", "verify"]

LAG_US = 60_000_000
"""How long an event may wait to be derived, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken promise.

    Attributes:
        org_id: Whose row it is.
        table: Where.
        row: Which row.
        code: A stable name of the promise.
        message: What is wrong.
    """

    org_id: str
    table: str
    row: str
    code: Rule
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        ok: Whether there is no problem.
        checked_count: Events checked, with all that was derived of them.
        problems: What is broken: of each promise the first row, for each org.
    """

    ok: bool
    checked_count: int
    problems: tuple[Problem, ...]


async def verify(
    database: Database,
    org: UUID | None = None,
    *,
    lag_us: int = LAG_US,
    cards: Sequence[RateCard] = (),
    terms: Terms | None = None,
) -> VerifyReport:
    """Check everything, or everything of one org.

    Args:
        database: The ledger; one that is open for reading only will do.
        org: Whose rows; None: everybody's.
        lag_us: How long an event may wait to be derived, in microseconds.
        cards: The rate cards that are known: prices by them are computed again.
        terms: What derivation depends on; None: turns without a session id are not grouped again.

    Raises:
        ConfigError: It is sealed with a key that is not there.
    """
    await check_keys(database)
    count = 0
    problems: list[Problem] = []
    with trace.span("holdfast.sessions.verify") as span:
        async with database.read() as tx:
            for each in await scans.orgs(tx) if org is None else [org]:
                audit = Audit(tx, each, now=database.clock.now(), lag_us=lag_us, cards=cards, terms=terms)
                problems += [_problem(broken) async for broken in audit.run()]
                count += audit.events_count
        span.set(events=count, problems=len(problems))
    return VerifyReport(not problems, count, tuple(problems))


def _problem(broken: Broken) -> Problem:
    return Problem(str(broken.org), broken.table, broken.row, broken.rule, broken.message)


async def projection_hash(database: Database, org: UUID | None = None) -> str:
    """Return one hash of all that was derived, 64 hex digits: equal in ledgers that were told the same."""
    await check_keys(database)
    async with database.read() as tx:
        if org is not None:
            return await scans.projection_hash(tx, org)
        hashed = blake3()
        for each in await scans.orgs(tx):
            hashed.update(each.bytes + bytes.fromhex(await scans.projection_hash(tx, each)))
        return hashed.hexdigest()
