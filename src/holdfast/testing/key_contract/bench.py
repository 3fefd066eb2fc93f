"""Records made to order, at instants made to order.

Times are numbers, since every function of `keys` is told the time: nothing here waits, and no clock is asked.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from holdfast.idempotency import identity, keys
from holdfast.idempotency.values import Completed, Conflict, Decision, InFlight, KeyRecord, Proceed, Replay, Tombstone
from holdfast.store.database import Database, Statements

__all__ = ["COLUMNS", "NOW", "TTL", "Bench", "Column", "Subject", "told"]

SECOND = 1_000_000
LEASE = 30 * SECOND
TTL = 86_400 * SECOND
NOW = 1_700_000_000 * SECOND
"""When everything is tried."""
BEFORE = NOW - 60 * SECOND
"""When what is found was made."""

RESPONSE = Completed(201, [(b"location", b"/orders/1")], b'{"id": 1}')
STREAMED = Tombstone(200, [], "stream")

Column = Literal[
    "absent", "live", "marked live", "rerun", "ambiguous", "marked", "execution", "transaction", "completed",
    "tombstone", "unknown", "released", "expired claim", "expired response", "expired tombstone", "expired release",
]  # fmt: skip
COLUMNS: tuple[Column, ...] = (
    "absent", "live", "marked live", "rerun", "ambiguous", "marked", "execution", "transaction", "completed",
    "tombstone", "unknown", "released", "expired claim", "expired response", "expired tombstone", "expired release",
)  # fmt: skip
"""What a record may be found as. `rerun` to `transaction` have lapsed."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A key, and how it was claimed last.

    Attributes:
        claim: That claim.
        fence: Its fence; 1 when there was none.
    """

    claim: keys.Claim
    fence: int

    @property
    def key_id(self) -> bytes:
        """What the record is found by."""
        return self.claim.key_ids[0]

    def again(self, **changes: Any) -> keys.Claim:
        """Another request with the same key."""
        return replace(self.claim, claim_id=os.urandom(16), **changes)


class Bench:
    """Makes records in one database.

    Attributes:
        database: Which.
        calls: Its statements, each by itself, as a guard uses them.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.calls = Statements(database)
        self._numbers = itertools.count()
        self._run = os.urandom(8)

    def digest(self, name: str) -> bytes:
        """32 bytes that are this name's, on this bench."""
        return hashlib.sha256(self._run + name.encode()).digest()

    def claim(self, **fields: Any) -> keys.Claim:
        """A first request with a new key of a new principal."""
        number = next(self._numbers)
        given: dict[str, Any] = {
            "key_ids": (self.digest(f"key {number}")[:16],),
            "scope_ids": (self.digest(f"scope {number}")[:16],),
            "record_id": self.digest(f"record {number}")[:16],
            "fingerprint": self.digest("request"),
            "claim_id": os.urandom(16),
            "owner": "own_first",
            "method": "POST",
            "route": "/orders",
            "on_lapse": "rerun",
            **fields,
        }
        if given.get("mode") == "execution":
            given["execution_id"] = identity.execution_id(given["record_id"])
        return keys.Claim(**given)

    async def make(self, column: Column) -> Subject:
        """Make a key whose record is of a column, seen from `NOW`."""
        if column == "absent":
            return Subject(self.claim(), 1)
        lapsed = column in ("rerun", "ambiguous", "marked", "execution", "transaction", "expired claim")
        claim = self.claim(
            on_lapse="ambiguous" if column == "ambiguous" else "rerun",
            mode=column if column in ("execution", "transaction") else "separate",
        )
        expires_at = NOW if column == "expired claim" else NOW + TTL
        decision = await keys.claim(
            self.calls,
            claim,
            lease_until=NOW - SECOND if lapsed else NOW + LEASE,
            expires_at=expires_at,
            now=BEFORE,
        )
        assert isinstance(decision, Proceed), decision
        subject = Subject(claim, decision.fence)
        await self._bring(subject, column)
        return subject

    async def _bring(self, subject: Subject, column: Column) -> None:
        tx, key_id, fence = self.calls, subject.key_id, subject.fence
        kept_until = NOW if column.startswith("expired") else NOW + TTL
        match column:
            case "marked" | "marked live":
                assert await keys.mark_irreversible(tx, key_id, fence)
            case "completed" | "expired response":
                assert await keys.settle(tx, key_id, fence, RESPONSE, expires_at=kept_until, now=BEFORE)
            case "tombstone" | "expired tombstone":
                assert await keys.settle(tx, key_id, fence, STREAMED, expires_at=kept_until, now=BEFORE)
            case "unknown":
                assert await keys.mark_unknown(tx, key_id, fence, "raised", now=BEFORE)
            case "released" | "expired release":
                assert await keys.release(tx, key_id, fence, expires_at=kept_until, now=BEFORE)
            case _:
                pass

    async def record(self, subject: Subject) -> KeyRecord | None:
        """Read a key's record as it stands."""
        async with self.database.read() as tx:
            return await keys.get(tx, subject.key_id)

    async def attempt(self, claim: keys.Claim, **terms: Any) -> Decision:
        """Claim at `NOW`."""
        given: dict[str, Any] = {"lease_until": NOW + LEASE, "expires_at": NOW + TTL, "now": NOW, **terms}
        if len(claim.key_ids) == 1:
            return await keys.claim(self.calls, claim, **given)
        async with self.database.write() as tx:
            return await keys.claim(tx, claim, **given)


def told(answer: Decision | bool) -> str:  # noqa: FBT001 - some answers are one
    """Write an answer as the table does."""
    match answer:
        case Proceed():
            return f"P({answer.attempt})"
        case Replay():
            return "Replay"
        case InFlight():
            return "InFlight"
        case Conflict():
            return f"Conflict({answer.why})"
        case _:
            return "T" if answer else "F"
