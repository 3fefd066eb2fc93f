"""Duplicates that wait for the first to end.

A waiter holds no connection. It is woken by the store's hint, which comes only from this process, and asks again
by itself now and then beneath that.

Invariants:
    - At most `waiters_max` requests of one principal wait in this process.
    - Whoever stops waiting decides anew with its own fingerprint.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.idempotency import keys
from holdfast.idempotency.claims import Held
from holdfast.idempotency.values import InFlight, Replay

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.opened import Opened
    from holdfast.idempotency.values import Conflict

__all__ = ["Waiters"]


class Decide(Protocol):
    """Decides about a request anew."""

    def __call__(self, *, contested: bool) -> Awaitable[Held | Replay | InFlight | Conflict]: ...


CONTEST_EVERY = 8
"""Of so many looks one also asks whether the holder is alive, which costs a statement more."""
POLL_S = 0.06
"""The longest a waiter sleeps: what another process has settled answers well within 0.1 s."""


class Waiters:
    """Who waits, by principal."""

    def __init__(self) -> None:
        self._count: dict[bytes, int] = {}

    async def wait(
        self,
        opened: Opened,
        ticket: Ticket,
        found: InFlight,
        decide: Decide,
        gone: asyncio.Future[Any] | None,
    ) -> Held | Replay | InFlight | Conflict:
        """Wait until the decision is another than `found`, for the rule's `wait_max` or until the client has left.

        Args:
            opened: The open guard.
            ticket: Who waits for what.
            found: The decision so far.
            decide: Decides anew; `contested` also looks whether whoever holds the key is alive.
            gone: Done when the client has left.
        """
        scope = ticket.scope_ids[0]
        if self._count.get(scope, 0) >= opened.config.waiters_max:
            return found
        self._count[scope] = self._count.get(scope, 0) + 1
        opened.events.waiting += 1
        channel = keys.channel(ticket.key_id)

        def left(_: object) -> None:
            if not opened.database_gone:
                opened.database.wake(channel)

        if gone is not None:
            gone.add_done_callback(left)
        try:
            decision = await self._until(opened, ticket, found, decide, gone)
        finally:
            if gone is not None:
                gone.remove_done_callback(left)
            opened.events.waiting -= 1
            self._count[scope] -= 1
            if not self._count[scope]:
                del self._count[scope]
        opened.events.notice("waited", ticket, code=_word(decision))
        return decision

    async def _until(
        self,
        opened: Opened,
        ticket: Ticket,
        found: InFlight,
        decide: Decide,
        gone: asyncio.Future[Any] | None,
    ) -> Held | Replay | InFlight | Conflict:
        clock, channel = opened.clock, keys.channel(ticket.key_id)
        until = clock.monotonic() + ticket.rule.wait_max.total_seconds()
        asked = 0
        while (patience := until - clock.monotonic()) > 0 and not (gone is not None and gone.done()):
            pause = POLL_S * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
            await opened.database.wait(channel, min(pause, patience))
            if gone is not None and gone.done():
                break
            asked += 1
            decision = await decide(contested=asked % CONTEST_EVERY == 0)
            if not isinstance(decision, InFlight):
                return decision
            found = decision
        return found


def _word(decision: Held | Replay | InFlight | Conflict) -> str:
    match decision:
        case Held():
            return "proceed"
        case Replay():
            return "replay"
        case InFlight():
            return "in_flight"
        case _:
            return decision.why
