"""Write what becomes of a claim: settled, released, unknown; and what its handler says on the way.

Invariants:
    - Every write names the claim's fence. One that is refused means that somebody else has the key by now.
    - A write that began is finished though its task is cancelled; the cancellation is raised afterwards.
    - A write that the ledger could not take waits in `Unwritten`; its request goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from holdfast.core import points, trace
from holdfast.core.clock import micros
from holdfast.core.errors import StoreError
from holdfast.idempotency import headers as fields
from holdfast.idempotency import keys
from holdfast.idempotency.errors import StoreUnavailable
from holdfast.idempotency.events import settle_seconds
from holdfast.idempotency.gate import INCURABLE, outlast, unavailable
from holdfast.idempotency.pending import Write
from holdfast.idempotency.values import Completed, Sealed, Tombstone

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Held
    from holdfast.idempotency.events import NoticeKind
    from holdfast.idempotency.opened import Opened
    from holdfast.idempotency.values import Outcome, UnknownReason
    from holdfast.store.database import Tx

__all__ = ["mark_irreversible", "mark_unknown", "release", "set_result", "settle", "settle_in"]

points.register("keys.settling", "keys.settled", "keys.settle_acked", "keys.released")


class _Last:
    """The last write of a claim; called again, it writes the same."""

    __slots__ = ("held", "opened", "patience")

    size = 0
    """Bytes of body that wait with it."""

    def __init__(self, opened: Opened, held: Held) -> None:
        self.opened = opened
        self.held = held
        self.patience: float | None = opened.config.release_timeout.total_seconds()

    def __call__(self) -> Coroutine[Any, Any, bool]:
        raise NotImplementedError

    def ended(self, won: bool) -> None:  # noqa: FBT001 - what the ledger said
        """Tell what came of it."""
        raise NotImplementedError

    def postponed(self) -> None:
        """Make ready to wait, and tell that it does."""

    def given_up(self) -> None:
        """Tell that it will not be written, or was refused after its time."""


class _Settle(_Last):
    """Write an outcome."""

    __slots__ = ("_outcome", "_sealed", "_ttl", "tx")

    def __init__(self, opened: Opened, held: Held, outcome: Outcome, ttl: timedelta | None) -> None:
        self.opened = opened
        self.held = held
        self.patience = None
        self.tx: Tx = opened.single
        self._outcome = outcome
        self._ttl = ttl
        self._sealed: Sealed | None = None

    def __call__(self) -> Coroutine[Any, Any, bool]:
        if self._sealed is None:
            coming = self.opened.sealed(self._outcome, self.held.key_id, self.held.record_id)
            if not isinstance(coming, Sealed):
                return self._once_sealed(coming)
            self._sealed = coming
        return self._reached() if points.armed else self._write(self._sealed)

    def _write(self, sealed: Sealed) -> Coroutine[Any, Any, bool]:
        held, now = self.held, self.opened.clock.now()
        expires_at = now + micros(self._ttl or self._life())
        return keys.settle(self.tx, held.key_id, held.fence, sealed, expires_at=expires_at, now=now)

    async def _once_sealed(self, coming: Awaitable[Sealed]) -> bool:
        self._sealed = await coming
        return await self()

    async def _reached(self) -> bool:
        assert self._sealed is not None
        won = await self._write(self._sealed)
        points.reach("keys.settled")
        return won

    @property
    def size(self) -> int:  # type: ignore[override]  # it is what the outcome weighs
        return len(self._outcome.body) if isinstance(self._outcome, Completed) else 0

    def ended(self, won: bool) -> None:  # noqa: FBT001 - what the ledger said
        if not won:
            _refused(self.opened, self.held)
        elif self._sealed is not None and (reason := self._sealed.reason) is not None:
            self.opened.events.notice("tombstoned", self.held.ticket, code=reason, attempt=self.held.attempt)

    def postponed(self) -> None:
        if isinstance(self._outcome, Completed) and not self.opened.unwritten.fits(self.size):
            kept = fields.tombstone_headers(self._outcome.headers, self.held.ticket.rule)
            self._outcome = Tombstone(self._outcome.status, kept, "oversize", body_bytes=len(self._outcome.body))
            self._sealed = None
        self.opened.events.notice("completion_retry", self.held.ticket, attempt=self.held.attempt)

    def given_up(self) -> None:
        self.opened.events.notice("completion_lost", self.held.ticket, attempt=self.held.attempt)

    def _life(self) -> timedelta:
        rule = self.held.ticket.rule
        if isinstance(self._outcome, Tombstone) and rule.tombstone_ttl is not None:
            return rule.tombstone_ttl
        return rule.ttl


class _Release(_Last):
    """Let go without outcome; after `mark_irreversible` that makes it unknown."""

    __slots__ = ()

    async def __call__(self) -> bool:
        opened, held = self.opened, self.held
        now = opened.clock.now()
        expires_at = now + micros(held.ticket.rule.ttl)
        won = await keys.release(opened.single, held.key_id, held.fence, expires_at=expires_at, now=now)
        if points.armed:
            points.reach("keys.released")
        return won

    def ended(self, won: bool) -> None:  # noqa: FBT001 - what the ledger said
        if won:
            marked = self.held.irreversible
            kind: NoticeKind = "marked_unknown" if marked else "released"
            self.opened.events.notice(
                kind, self.held.ticket, code="raised" if marked else None, attempt=self.held.attempt
            )


class _Mark(_Last):
    """Say that nobody can tell whether it took effect."""

    __slots__ = ("reason",)

    def __init__(self, opened: Opened, held: Held, reason: UnknownReason) -> None:
        super().__init__(opened, held)
        self.reason = reason

    async def __call__(self) -> bool:
        opened, held = self.opened, self.held
        return await keys.mark_unknown(opened.single, held.key_id, held.fence, self.reason, now=opened.clock.now())

    def ended(self, won: bool) -> None:  # noqa: FBT001 - what the ledger said
        if won:
            self.opened.events.notice("marked_unknown", self.held.ticket, code=self.reason, attempt=self.held.attempt)


async def settle(opened: Opened, held: Held, outcome: Outcome, ttl: timedelta | None = None) -> bool:
    """Write an outcome; False: refused, the claim is lost."""
    if held.ended:
        return held.won
    if points.armed:
        points.reach("keys.settling")
    began = opened.clock.monotonic()
    write = _Settle(opened, held, outcome, ttl)
    if trace.enabled:
        with trace.span(
            "holdfast.idempotency.settle",
            route=held.ticket.route, key_ref=held.ticket.key_ref, attempt=held.attempt,
        ) as span:  # fmt: skip
            won = await _conclude(write)
            span.set(outcome="settled" if won else "refused")
    else:
        won = await _conclude(write)
    settle_seconds.observe(opened.clock.monotonic() - began)
    if points.armed:
        points.reach("keys.settle_acked")
    return won


async def release(opened: Opened, held: Held) -> bool:
    """Let go of a claim without outcome; after `mark_irreversible` that makes it unknown. False: refused."""
    return held.won if held.ended else await _conclude(_Release(opened, held))


async def mark_unknown(opened: Opened, held: Held, reason: UnknownReason) -> bool:
    """Say that nobody can tell whether it took effect; False: refused."""
    return held.won if held.ended else await _conclude(_Mark(opened, held, reason))


async def mark_irreversible(opened: Opened, held: Held) -> bool:
    """Say durably that the effect that comes now cannot be taken back; False: the claim is lost.

    Raises:
        StoreUnavailable: It could not be written.
    """
    if held.irreversible:
        return True
    if held.fence == 0:
        raise unavailable("this run has no claim that could be marked", 0.0)
    if held.lost or held.ended:
        return False
    if not await opened.gate.call(lambda: _marked(opened, held)):
        _refused(opened, held)
        return False
    held.irreversible = True
    return True


async def _marked(opened: Opened, held: Held) -> bool:
    return await keys.mark_irreversible(opened.single, held.key_id, held.fence, now=opened.clock.now())


async def set_result(
    opened: Opened, held: Held, response: Completed, *, tx: Tx | None = None, ttl: timedelta | None = None
) -> bool:
    """Write the outcome that a handler declares; False: the claim is lost.

    Raises:
        StoreUnavailable: It could not be written.
    """
    if held.fence == 0:
        return True
    if tx is not None:
        return await settle_in(opened, tx, held, response, ttl)
    if held.ended:
        return held.won
    held.settling = True
    try:
        won = await opened.gate.call(_Settle(opened, held, response, ttl))
    finally:
        held.settling = False
    _end(opened, held, won)
    if not won:
        _refused(opened, held)
    return won


async def settle_in(opened: Opened, tx: Tx, held: Held, outcome: Outcome, ttl: timedelta | None = None) -> bool:
    """Write an outcome in a transaction of the caller's; it stands when that commits."""
    held.settling = True  # until it commits, a renewal may find the row locked
    write = _Settle(opened, held, outcome, ttl)
    write.tx = tx
    return await write()


async def _conclude(write: _Last) -> bool:
    """Make the last write of a claim, whatever happens to the task meanwhile."""
    opened, held = write.opened, write.held
    held.settling = True
    cancelled: asyncio.CancelledError | None = None
    won: bool | None = None
    try:
        won = await opened.gate.call(write, write.patience)
    except asyncio.CancelledError as error:
        cancelled = error
        won = await _through(opened, write)
    except INCURABLE:
        raise
    except (StoreUnavailable, StoreError):
        pass
    if won is None:
        write.postponed()
        until = opened.clock.monotonic() + opened.config.settle_retry_for.total_seconds()
        opened.unwritten.add(Write(write, until, partial(_late, write), write.size))
    else:
        _end(opened, held, won)
        write.ended(won)
    if cancelled is not None:
        raise cancelled
    return won is not False


async def _through(opened: Opened, work: _Last) -> bool | None:
    """Write through a cancellation; None: it could not be written in time."""
    seconds = opened.config.release_timeout.total_seconds()
    task = await outlast(opened.clock, opened.gate.attempt(work, seconds), seconds, "holdfast idempotency settle")
    return None if task is None or task.cancelled() or task.exception() is not None else task.result()


def _late(write: _Last, took: bool | None) -> None:  # noqa: FBT001 - what the ledger said at last
    _end(write.opened, write.held, bool(took))
    if took:
        write.ended(took)
    else:
        write.given_up()


def _end(opened: Opened, held: Held, won: bool) -> None:  # noqa: FBT001 - what the ledger said
    held.won = won
    opened.claims.leave(held)
    if opened.hints and not opened.database_gone:
        opened.database.wake(keys.channel(held.key_id))


def _refused(opened: Opened, held: Held) -> None:
    if not held.lost:
        opened.events.notice("lease_lost", held.ticket, attempt=held.attempt)
        held.lose()
