"""What becomes of a claim whose holder is gone: its process died, or its lease has ended.

On one machine the kernel says at once that an owner is dead; elsewhere the lease's end shows it. A durable
execution outlives its claim, so a lapsed record of mode `execution` asks `attach` before anything else.

Invariants:
    - An owner counts as dead before its lease ends only while we hold the lock its process held, or after somebody
      who held it has ended the owner.
    - No lock is held while the application is asked.
    - `attach` that raises, answers nonsense or takes too long counts as running: nothing runs twice because of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from holdfast.core.clock import micros
from holdfast.idempotency import headers as fields
from holdfast.idempotency import keys
from holdfast.idempotency.gate import bounded
from holdfast.idempotency.values import Absent, Completed, InFlight, Running
from holdfast.store.owners import Alive, Dead, Lock, probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.opened import Opened
    from holdfast.idempotency.rules import RouteRule
    from holdfast.idempotency.values import Decision, KeyRecord
    from holdfast.store.database import Row

__all__ = ["ask_attach", "contest", "end", "find_dead", "settle_attached"]

log = logging.getLogger("holdfast.idempotency")


def find_dead(row: Row) -> tuple[bool, Lock | None]:
    """Say whether the owner in a row of owners is known to be dead, with the lock that proves it, if one does.

    The lock is held: release it when what depends on it is done.
    """
    if row.lock_path is None:
        return False, None
    match probe(row):
        case Alive():
            return False, None
        case Dead(lock):
            return True, lock
    return row.owner_lease_until == 0, None  # whoever held its lock has ended its lease


async def contest(opened: Opened, ticket: Ticket, found: InFlight) -> Decision:
    """Decide again about a key that somebody else holds: that somebody may be gone."""
    mine = opened.claims.of(ticket.key_id)
    if mine is not None and not mine.lost:
        return found

    async def look() -> Row | None:
        async with opened.database.read() as tx:
            return await keys.rival(tx, ticket.key_id)

    rival = await opened.gate.call(look)
    if rival is None:
        return await opened.gate.call(lambda: opened.take(ticket))  # it has ended meanwhile
    dead, lock = find_dead(rival) if rival.owner_id != opened.owner else (False, None)
    if rival.mode == "execution":
        if lock is not None:
            await end(opened, {rival.owner_id: lock})  # the application's own look must not find the owner locked
        if dead or rival.lease_until <= opened.clock.now():
            return await _ask(opened, ticket, found, dead=rival.owner_id if dead else None)
        return found
    try:
        if dead:
            return await opened.gate.call(lambda: opened.take(ticket, dead=rival.owner_id))
    finally:
        if lock is not None:
            lock.release()
    return found


async def end(opened: Opened, dead: Mapping[str, Lock]) -> None:
    """End owners that are proven dead for good, and let go of their locks: from now on their rows say so.

    Raises:
        StoreUnavailable: The ledger cannot be asked; their locks prove it still.
    """
    if not dead:
        return

    async def work() -> None:
        async with opened.database.write() as tx:
            await tx.run("owners.end", [(owner,) for owner in dead])

    try:
        await opened.gate.attempt(work)
    except BaseException:
        for lock in dead.values():
            lock.release()
        raise
    for lock in dead.values():
        lock.remove()


async def _ask(opened: Opened, ticket: Ticket, found: InFlight, *, dead: str | None) -> Decision:
    """Ask what became of the execution of a lapsed record."""

    async def look() -> KeyRecord | None:
        async with opened.database.read() as tx:
            return await keys.get(tx, ticket.key_id)

    record = await opened.gate.call(look)
    if record is None or record.execution_id is None:
        return await opened.gate.call(lambda: opened.take(ticket))
    match await ask_attach(opened, ticket.rule, record.execution_id):
        case Running():
            return found
        case Completed() as outcome:
            await settle_attached(opened, record, outcome, ticket.rule)
            return await opened.gate.call(lambda: opened.take(ticket))
        case Absent() as absent:
            return await opened.gate.call(lambda: opened.take(ticket, dead=dead, attached=absent))


async def ask_attach(opened: Opened, rule: RouteRule, execution_id: str) -> Running | Completed | Absent:
    """Ask the application what became of an execution, for at most `store_timeout`."""
    if rule.attach is None:
        return Running()
    try:
        answer = await bounded(opened.clock, _awaited(rule.attach(execution_id)), opened.gate.timeout)
    except Exception as error:  # noqa: BLE001 - the application's own code; to be asked again is all that follows
        log.warning("attach failed, so the execution counts as running: %s", type(error).__qualname__)
        return Running()
    return answer if isinstance(answer, Completed | Absent) else Running()


async def settle_attached(opened: Opened, record: KeyRecord, outcome: Completed, rule: RouteRule) -> bool:
    """Write what an execution ended with into its lapsed record; False: somebody was quicker."""
    kept = Completed(outcome.status, fields.filter_headers(outcome.headers, rule), outcome.body)
    sealed = await opened.seal(kept, record.key_id, record.record_id)

    async def work() -> bool:
        now = opened.clock.now()
        return await keys.settle(
            opened.single, record.key_id, record.fence, sealed, expires_at=now + micros(rule.ttl), now=now
        )

    settled = await opened.gate.attempt(work)
    opened.database.wake(keys.channel(record.key_id))
    return settled


async def _awaited(answer: Any) -> Any:
    return await answer
