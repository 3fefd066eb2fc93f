"""An open guard: the ledger, and everything that lives as long as it is open in one event loop.

A guard belongs to the loop and the process of its first use. What it has there is here, so that a new loop or
a forked child starts with none of it.

Invariants:
    - A guard whose secrets lack one that records may still be written by does not open.
    - The owner row is there before the first claim, so that this process's death shows at once on its machine.
    - The secret that names operations is the oldest in use, whichever of the accepted ones writes keys.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import os
from collections.abc import Awaitable, Coroutine
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from holdfast.core import points, trace
from holdfast.core.clock import micros
from holdfast.core.errors import ConfigError, SchemaMismatch, StoreError
from holdfast.core.loops import spawn
from holdfast.idempotency import identity, keys, sealing
from holdfast.idempotency.claims import Claims, Held, Ticket
from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.gate import INCURABLE, Gate
from holdfast.idempotency.lateness import Lateness
from holdfast.idempotency.pending import Unwritten
from holdfast.idempotency.values import Completed, Sealed, State
from holdfast.store.database import Statements
from holdfast.store.home import Home
from holdfast.store.sqlite import MEMORY

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.idempotency.events import Observer
    from holdfast.idempotency.rules import IdempotencyConfig
    from holdfast.idempotency.unit import Unit
    from holdfast.idempotency.values import Absent, Decision, KeyRecord, Outcome
    from holdfast.store.database import Database, Tx

__all__ = ["Opened", "secret_ref"]

points.register("keys.looked_up", "keys.claimed")


TOUCH_MAX_S = 0.3
"""How long noting a secret's use may hold up renewals: less than a third of the shortest lease."""
SEEN_MAX = 1024
"""How many keys are known to have come before, so that a retry looks for its record first: it mostly comes soon."""
UNIT_PATIENCE = timedelta(seconds=2)
"""How long the look at a unit's database waits for whoever writes there."""
_parted: list[Opened] = []


def secret_ref(secret: bytes) -> str:
    """Return what a secret is called in the ledger; nothing about it can be told from that."""
    return hmac.digest(secret, identity.lp("holdfast.secret.v1"), "sha256")[:16].hex()


class Opened:
    """A guard in the loop that uses it.

    Attributes:
        home: The process and loop it belongs to.
        database: The ledger.
        clock: Its time.
        single: The ledger as a `Tx` whose statements each stand alone.
        hints: Who waits for what in this process.
        gate: What bounds calls.
        lateness: Tells responses that have taken their time.
        claims: What this process holds.
        unwritten: What waits for the ledger.
        owner: This process's id in claims.
        closing: Nothing is claimed any more.
        naming: The secret that names operations.
    """

    def __init__(self, database: Database, config: IdempotencyConfig, events: Observer, *, owned: bool) -> None:
        """Describe it; `open` makes it ready.

        Args:
            database: An open ledger.
            config: The guard's settings.
            events: Told what happens.
            owned: Whether closing the guard closes its share of the ledger.
        """
        self.home = Home("this guard")
        self.database = database
        self.config = config
        self.events = events
        self.clock: Clock = database.clock
        self.single: Tx = Statements(database)
        self.hints = database.hints
        self.gate = Gate(config, clock=self.clock, events=events)
        self.lateness = Lateness(self.clock)
        self.claims = Claims(clock=self.clock, events=events, renew=self._renew, touch=self._touch)
        self.unwritten = Unwritten(gate=self.gate, clock=self.clock, bytes_max=config.pending_settle_bytes_max)
        self.owner = ""
        self._nonce, self._numbers = os.urandom(8), itertools.count(1)  # no claim of anybody has the id of another
        self.closing = False
        self._closed = False
        self._owned = owned
        # On SQLite making a row costs least where there is none, and a file is read without waiting for its writer. On
        # PostgreSQL the claim itself finds the record there is.
        self._makes_first = database.dialect == "sqlite"
        self._looks_first = self._makes_first and database.label != MEMORY
        self._seen: set[bytes] = set()  # keys in memory that are no longer new, as far as that is remembered
        self.naming = config.secrets[0]
        rules = [rule for rule in (config.rule, *config.routes) if rule is not None]
        lives = [each for rule in rules for each in (rule.ttl, rule.tombstone_ttl) if each is not None]
        self._ttl_us = micros(max(lives, default=timedelta(hours=24)))

    async def open(self) -> None:
        """Become an owner, check the secrets, and start renewing.

        Raises:
            ConfigError: A secret is missing that wrote what is still kept.
            StoreError: The ledger cannot be used.
        """
        trace.configure()
        self.owner = await self.database.owner.ensure()
        refs = [secret_ref(secret) for secret in self.config.secrets]
        now = self.clock.now()
        async with self.database.write() as tx:
            await keys.touch_secret(tx, refs[0], ttl_max=self._ttl_us, now=now)
            rows = await keys.secrets(tx)
        for row in rows:
            if row.secret_ref not in refs and row.last_used_at + row.ttl_max > now:
                raise ConfigError(
                    "a secret that wrote keys which are still kept is not among `secrets`",
                    "put it back behind the new one until the longest ttl has passed",
                    code="config.secret_missing",
                    keys=("secrets",),
                )
        first_used = {row.secret_ref: row.first_used_at for row in rows}
        known = [(first_used[ref], at) for at, ref in enumerate(refs) if ref in first_used]
        self.naming = self.config.secrets[min(known)[1]]
        self.events.clock = self.clock
        self.events.in_flight = self.claims.__len__
        self.events.pending = self.unwritten.__len__
        self.claims.start()
        points.on_crash(self._crash)

    @property
    def database_gone(self) -> bool:
        """Whether hints reach nobody any more."""
        return self.home.foreign or self._closed

    async def check_unit(self, unit: Unit) -> None:
        """See that a unit's transactions are on this very ledger.

        Raises:
            ConfigError: They are on another (`config.unit_database`).
            SchemaMismatch: Their database holds none.
            StoreError: The unit's database cannot be used.
        """
        library, sqlite = getattr(unit, "library", None), self.database.dialect == "sqlite"
        if sqlite and library is not None and getattr(self.database, "library", "apsw") != library:
            raise ConfigError(
                f"the unit uses the ledger through {library}, and the guard through another SQLite library",
                "give the guard the path instead of an open ledger",
                code="config.unit_database",
            )
        async with unit.begin(isolation=None, lock_timeout=UNIT_PATIENCE) as work:
            if await work.tx.one("ledger.exists") is None:
                raise SchemaMismatch("the unit's database holds no ledger", "give unit and guard the same database")
            row = await work.tx.one("ledger.get", name="namespace")
            if row is None or row.value != self.database.namespace:
                raise ConfigError(
                    "the unit's database is not the guard's ledger",
                    "give both the same database: the record and the business write are one commit",
                    code="config.unit_database",
                )

    async def close(self, seconds: float) -> None:
        """Let what is held end and what waits be written, for at most that long; then let go of the ledger."""
        self.closing = True
        if not self._closed:
            until = self.clock.monotonic() + seconds
            await self.claims.drain(seconds)
            await self.unwritten.drain(until - self.clock.monotonic())
        await self.claims.stop()
        await self.unwritten.stop()
        self._closed = True
        if self._owned:
            await self.database.close()

    def _crash(self) -> None:
        """Forget everything, as a crash would: nothing is renewed, written or waited for any more."""
        if not self.home.foreign and not self.home.loop.is_closed():
            self.closing = self._closed = True
            for part in (self.claims, self.unwritten):
                spawn(part.stop(), "holdfast idempotency crash")

    def abandon(self) -> None:
        """Part with what belongs to a loop that is closed, or to the process this one was forked from."""
        if self.home.foreign:
            _parted.append(self)  # nothing of it may be finalised here
        elif self._owned:
            leave = getattr(self.database, "abandon", None)
            if leave is not None:
                leave()  # whoever ran in that loop is dead, and its claims are to show it

    def signed(self, ticket: Ticket) -> Ticket:
        """Give a ticket what only the open guard knows: whose claim it becomes, and what its operation is called."""
        if not ticket.owner:
            ticket.owner = self.owner
            ticket.claim_id = self._nonce + next(self._numbers).to_bytes(8, "big")
            ticket.record_id = ticket.names.record_id(self.naming, ticket.key, ticket.fingerprint)
            if ticket.mode == "execution":
                ticket.execution_id = identity.execution_id(ticket.record_id)
        return ticket

    async def look(self, ticket: Ticket) -> Decision | None:
        """Decide from the record alone, writing nothing; None: a claim would proceed."""
        found = await keys.lookup(self.single, self.signed(ticket), now=self.clock.now())
        if points.armed:
            points.reach("keys.looked_up")
        return found

    def find(self, ticket: Ticket) -> Coroutine[Any, Any, Decision]:
        """Find the record, or claim the key."""
        seen = self._seen
        if self._looks_first or ticket.key_ids[0] in seen:
            return self._look_and_take(ticket)
        if self._makes_first:
            if len(seen) >= SEEN_MAX:
                seen.clear()
            seen.add(ticket.key_ids[0])
        if points.armed:
            points.reach("keys.looked_up")  # the claim looks by itself
        return self.take(ticket)

    async def _look_and_take(self, ticket: Ticket) -> Decision:
        found = await self.look(ticket)
        return await self.take(ticket) if found is None else found

    async def take(self, ticket: Ticket, *, dead: str | None = None, attached: Absent | None = None) -> Decision:
        """Claim the key.

        Args:
            ticket: Who asks for what.
            dead: An owner that is known to be dead: what it holds has lapsed.
            attached: What became of the record's execution, if it was asked.
        """
        try:
            if len(ticket.key_ids) == 1:
                found = await self.take_in(self.single, ticket, dead, attached)
            else:
                found = await self._take(ticket, dead, attached)
        except INCURABLE:
            raise
        except StoreError:  # perhaps only its acknowledgement was lost: the same claim finds itself again
            found = await self._take(ticket, dead, attached)
        if points.armed:
            points.reach("keys.claimed")
        return found

    async def _take(self, ticket: Ticket, dead: str | None, attached: Absent | None) -> Decision:
        if len(ticket.key_ids) == 1:
            return await self.take_in(self.single, ticket, dead, attached)
        async with self.database.write() as tx:
            return await self.take_in(tx, ticket, dead, attached)

    def take_in(
        self, tx: Tx, ticket: Ticket, dead: str | None = None, attached: Absent | None = None
    ) -> Coroutine[Any, Any, Decision]:
        """Claim the key in a transaction of the caller's."""
        config, rule, now = self.config, ticket.rule, self.clock.now()
        ttl_us = micros(rule.ttl)
        if ttl_us > self._ttl_us:
            self._ttl_us = ttl_us
        terms = keys.Terms(
            now + micros(rule.lease),
            now + ttl_us,
            now,
            config.in_flight_max,
            config.keys_per_hour_max,
            config.stored_bytes_max,
            dead,
            attached,
            self._makes_first,
        )
        return keys.reserve(tx, self.signed(ticket), terms)

    def sealed(self, outcome: Outcome, key_id: bytes, record_id: bytes) -> Sealed | Awaitable[Sealed]:
        """Make an outcome what its row holds: redacted, compressed and encrypted as configured.

        Where that takes long, what is returned is to be awaited for it.
        """
        if sealing.heavy(outcome):
            return asyncio.to_thread(self._sealed, outcome, key_id, record_id)
        return self._sealed(outcome, key_id, record_id)

    async def seal(self, outcome: Outcome, key_id: bytes, record_id: bytes) -> Sealed:
        """As `sealed`, for whoever does not mind waiting."""
        found = self.sealed(outcome, key_id, record_id)
        return found if isinstance(found, Sealed) else await found

    def _sealed(self, outcome: Outcome, key_id: bytes, record_id: bytes) -> Sealed:
        config = self.config
        if isinstance(outcome, Completed) and config.redact is not None:
            outcome = sealing.redacted(outcome, config.redact)
        return sealing.seal_outcome(
            outcome,
            key_id=key_id,
            record_id=record_id,
            cipher=config.cipher,
            compress_over_bytes=config.compress_over_bytes,
        )

    async def unsealed(self, record: KeyRecord) -> KeyRecord:
        """Give a record that was just read its outcome, if it has one, and return it.

        Raises:
            RecordUnreadable: It is damaged, or written by a newer release.
        """
        if record.state is not State.COMPLETED and record.state is not State.TOMBSTONE:
            return record
        sealed = record.sealed
        if sealed is None:
            raise RecordUnreadable(f"the record of key {record.key_ref} has lost its outcome", "run holdfast verify")
        open_it = partial(
            sealing.open_outcome, sealed, key_id=record.key_id, record_id=record.record_id, cipher=self.config.cipher
        )
        outcome = await asyncio.to_thread(open_it) if sealing.heavy(sealed) else open_it()
        record.outcome = outcome  # it was made for this caller a moment ago
        return record

    async def _renew(self, due: list[Held], patience: float) -> set[bytes]:
        """Renew claims that all have the same lease."""
        pairs = [(held.key_id, held.fence) for held in due]
        lease_us = micros(due[0].ticket.rule.lease)

        async def work() -> set[bytes]:
            async with self.database.write() as tx:
                now = self.clock.now()
                return await keys.renew(tx, pairs, lease_until=now + lease_us, now=now)

        return await self.gate.attempt(work, min(patience, self.gate.timeout))

    async def _touch(self) -> None:
        """Note that our secret is in use."""
        ref = secret_ref(self.config.secrets[0])

        async def work() -> Any:
            async with self.database.write() as tx:
                await keys.touch_secret(tx, ref, ttl_max=self._ttl_us, now=self.clock.now())

        await self.gate.attempt(work, min(TOUCH_MAX_S, self.gate.timeout))
