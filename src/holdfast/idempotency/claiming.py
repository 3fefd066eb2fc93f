"""Decide about a keyed request: it runs under a claim, or is answered from the record.

Invariants:
    - A request that goes on without a claim leaves none behind: one whose fate is not known is taken back.
    - Nobody is given a record whose outcome does not open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.core import points, trace
from holdfast.idempotency import keys, lapses
from holdfast.idempotency.claims import Held
from holdfast.idempotency.errors import RecordUnreadable, StoreUnavailable
from holdfast.idempotency.events import claim_seconds
from holdfast.idempotency.gate import NotAsked, outlast
from holdfast.idempotency.pending import Write
from holdfast.idempotency.values import Conflict, InFlight, Proceed, Replay

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.opened import Opened

__all__ = ["claim", "decide", "look", "told"]

Answered: TypeAlias = "Replay | InFlight | Conflict"

WITHDRAWALS_MAX = 5
"""How often a claim of unknown fate is looked for: it may be on its way to the server still."""

points.register("keys.acked")


async def look(opened: Opened, ticket: Ticket) -> Answered | None:
    """Decide from the record alone, writing nothing; None: there is none that answers.

    Raises:
        StoreUnavailable: The ledger cannot be read.
    """
    found = await opened.gate.call(partial(opened.look, ticket))
    return None if found is None or isinstance(found, Proceed) else await told(opened, found)


def claim(opened: Opened, ticket: Ticket) -> Coroutine[Any, Any, Held | Answered]:
    """Claim the key of a request, or say what answers it. A cancellation takes the claim back before it is raised.

    Raises:
        StoreUnavailable: The ledger cannot be asked; the claim is taken back in the background.
    """
    return _traced(opened, ticket) if trace.enabled else decide(opened, ticket, timed=True)


async def _traced(opened: Opened, ticket: Ticket) -> Held | Answered:
    with trace.span("holdfast.idempotency.claim", route=ticket.route, key_ref=ticket.key_ref) as span:
        found = await decide(opened, ticket, timed=True)
        if isinstance(found, Held):
            span.set(outcome="proceed", attempt=found.attempt)
        else:
            span.set(outcome=type(found).__name__.lower())
    return found


async def decide(opened: Opened, ticket: Ticket, *, contested: bool = True, timed: bool = False) -> Held | Answered:
    """As `claim`, for whoever has asked before.

    Args:
        opened: The guard.
        ticket: The request.
        contested: Whether to find out if whoever holds the key is alive.
        timed: Whether the time it takes counts as that of a claim.
    """
    clock = opened.clock
    began = clock.monotonic()
    decided: Held | Answered
    try:
        found = await opened.gate.call(partial(opened.find, ticket))
        if contested and isinstance(found, InFlight):
            found = await lapses.contest(opened, ticket, found)
    except asyncio.CancelledError:
        await outlast(clock, _withdraw(opened, ticket), opened.gate.timeout, "holdfast idempotency withdraw")
        raise
    except NotAsked:
        raise
    except StoreUnavailable:
        _withdraw_later(opened, ticket)
        raise
    if isinstance(found, Proceed):
        decided = held = Held(ticket, found, began)
        opened.claims.enter(held)
        if found.reclaimed:
            opened.events.notice("reclaimed", ticket, attempt=found.attempt)
        if points.armed:
            points.reach("keys.acked")
    else:
        decided = await told(opened, found)
    if timed:
        claim_seconds.observe(clock.monotonic() - began)
    return decided


async def told(opened: Opened, found: Answered) -> Answered:
    """Give a replay its outcome."""
    if not isinstance(found, Replay):
        return found
    try:
        return Replay(await opened.unsealed(found.record))
    except RecordUnreadable as error:
        return Conflict("newer" if error.code == "idempotency.record_newer" else "unreadable")


async def _withdraw(opened: Opened, ticket: Ticket) -> None:
    """Take back a claim whose fate is not known."""
    try:
        if await opened.gate.attempt(partial(_withdrawn, opened, ticket)):
            return
    except StoreUnavailable:
        pass
    _withdraw_later(opened, ticket)


def _withdraw_later(opened: Opened, ticket: Ticket) -> None:
    until = opened.clock.monotonic() + ticket.rule.lease.total_seconds()
    opened.unwritten.add(Write(partial(_withdrawn, opened, ticket), until, looks=WITHDRAWALS_MAX))


async def _withdrawn(opened: Opened, ticket: Ticket) -> bool:
    async with opened.database.write() as tx:
        return await keys.withdraw(tx, ticket.claim_id)
