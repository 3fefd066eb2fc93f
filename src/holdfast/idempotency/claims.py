"""The claims this process holds, and the loop that renews them.

A claim is renewed for as long as it is here, so a handler of any length keeps it. One loop renews all of
them, every third of the shortest lease among them, in one statement; a request costs it one dict insert.

Invariants:
    - A claim that somebody else may have by now is `lost`: the ledger refused its renewal, or its lease ended
      and the ledger could not be asked. It turns so once, and everybody who waits for it is told at once.
    - A claim whose outcome is being written is never called lost by a renewal: the write finds out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from holdfast.core import points
from holdfast.core.errors import StoreError
from holdfast.core.loops import Loop
from holdfast.idempotency.errors import StoreUnavailable
from holdfast.idempotency.identity import derived_key
from holdfast.idempotency.reservation import Claim
from holdfast.idempotency.rows import FP_VERSION

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.idempotency.events import Observer
    from holdfast.idempotency.identity import Names
    from holdfast.idempotency.rules import RouteRule
    from holdfast.idempotency.values import Proceed

__all__ = ["Claims", "Held", "Ticket"]

RETRY_FIRST_S, RETRY_MAX_S = 0.1, 1.0
"""Between renewals while the ledger fails: many tries within the shortest lease."""
IDLE_S = 10.0
"""How long the loop sleeps while nothing is held; a first claim wakes it."""

points.register("keys.renewed")


class Ticket(Claim):
    """A keyed request as the ledger knows it. Made by `Idempotency.ticket`, and signed by the guard once that is open.

    Attributes:
        rule: What holds for it.
        names: Names keys and operations of whoever asks.
        key: The key as parsed; never shown.
    """

    __slots__ = ("key", "names", "rule")
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(  # noqa: PLR0913 - what a request is known by, by name
        self,
        *,
        names: Names,
        key_ids: tuple[bytes, ...],
        fingerprint: bytes,
        rule: RouteRule,
        key: str,
        method: str,
        route: str,
        first_sent_at: int | None = None,
    ) -> None:
        self.key_ids = key_ids
        self.scope_ids = names.scope_ids
        self.record_id = self.claim_id = b""
        self.owner = ""
        self.fingerprint = fingerprint
        self.fp_version = FP_VERSION
        self.method = method
        self.route = route
        self.mode = rule.mode
        self.on_lapse = rule.lapse(method)
        self.irreversible = False
        self.execution_id = None
        self.first_sent_at = first_sent_at
        self.rule = rule
        self.names = names
        self.key = key

    @property
    def key_id(self) -> bytes:
        """What the record is looked up by."""
        return self.key_ids[0]

    @property
    def key_ref(self) -> str:
        """What the key is called in messages and events: 12 hex digits."""
        return self.key_ids[0].hex()[:12]

    @property
    def scope_ref(self) -> str:
        """What the principal is called in events: 12 hex digits."""
        return self.scope_ids[0].hex()[:12]

    def __repr__(self) -> str:
        return f"Ticket({self.method} {self.route}, key_ref={self.key_ref})"


class Held:
    """A claim that this process holds, or held.

    Attributes:
        ticket: What it was claimed for.
        key_id: What the record is looked up by.
        fence: Names it in every later write.
        attempt: 1 for the first run.
        record_id: Names the operation; equal over attempts.
        irreversible: Whether the handler said that its effect cannot be taken back.
        lost: Whether somebody else may have it by now.
        ended: Whether its last write is done, or given up.
        won: Whether the ledger took that write.
        settling: Whether its outcome is being written, so that a refused renewal does not mean it is lost.
        due: When its lease ends, in seconds of the monotonic clock.
        lease_s: How long a renewal lasts; 0: it is not renewed.
    """

    __slots__ = (
        "_heard", "_lost", "attempt", "due", "ended", "fence", "irreversible", "key_id", "lease_s", "record_id",
        "settling", "ticket", "won",
    )  # fmt: skip

    def __init__(self, ticket: Ticket, proceed: Proceed, began: float = 0.0) -> None:
        """Hold what was claimed.

        Args:
            ticket: What for.
            proceed: What the ledger said.
            began: When it was asked, in seconds of the monotonic clock; claims that are not renewed need no time.
        """
        self.ticket = ticket
        self.key_id = ticket.key_ids[0]
        self.fence = proceed.fence
        self.attempt = proceed.attempt
        self.record_id = proceed.record_id
        self.lease_s = lease_s = ticket.rule.lease.total_seconds()
        self.due = began + lease_s
        self.irreversible = False
        self.settling = False
        self.ended = self.won = False
        self._lost = False
        self._heard: list[Callable[[], object]] | None = None

    @property
    def lost(self) -> bool:
        return self._lost

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Have something called in the event loop when the claim is lost; at once if it is."""
        if self._lost:
            callback()
        elif self._heard is None:
            self._heard = [callback]
        else:
            self._heard.append(callback)

    async def wait_lost(self) -> None:
        """Return when the claim is lost; never, if it is not."""
        if self._lost:
            return
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not told.done():
                told.set_result(None)

        self.on_lost(tell)
        try:
            await told
        finally:
            if self._heard is not None and tell in self._heard:
                self._heard.remove(tell)

    def lose(self) -> None:
        """Mark it lost, and tell whoever asked to be told. Harmless when it is lost already."""
        if not self._lost:
            self._lost = True
            heard, self._heard = self._heard, None
            for callback in heard or ():
                callback()

    def derived_key(self, step: str) -> str:
        """Return the key for a downstream call: equal over attempts, different per step and per payload."""
        return derived_key(self.record_id, step)


Renew = Callable[[list[Held], float], Awaitable["set[bytes]"]]
"""Renews claims of one lease within so many seconds; gives the key ids that are still held."""


class Claims:
    """All claims of one guard in this process.

    Attributes:
        used: Whether anything was claimed since the round that last looked.
    """

    def __init__(self, *, clock: Clock, events: Observer, renew: Renew, touch: Callable[[], Awaitable[object]]) -> None:
        """Hold nothing; nothing is renewed before `start`.

        Args:
            clock: What leases are measured with.
            events: Told of losses.
            renew: Renews some.
            touch: Run with each round in which something was claimed: notes that our secret is in use.
        """
        self.used = False
        self._clock = clock
        self._events = events
        self._renew = renew
        self._touch = touch
        self._held: dict[bytes, Held] = {}
        self._next = 0.0
        self._retry = RETRY_FIRST_S
        self._woken: asyncio.Future[None] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._loop = Loop("holdfast idempotency claims", self._round, 0.0, clock)

    def __len__(self) -> int:
        return len(self._held)

    def start(self) -> None:
        """Start renewing."""
        self._next = self._clock.monotonic() + IDLE_S
        self._loop.start()

    async def stop(self) -> None:
        """Renew no more."""
        await self._loop.stop()

    def of(self, key_id: bytes) -> Held | None:
        """Return the claim this process has of a key."""
        return self._held.get(key_id)

    def enter(self, held: Held, *, renewed: bool = True) -> None:
        """Take a claim in. One that is here for the same key was overtaken, and is lost."""
        key_id = held.key_id
        if key_id in self._held:
            self._overtaken(self._held[key_id])
        self._held[key_id] = held
        self.used = True
        if not renewed:
            held.lease_s = 0.0
        elif (third := held.due - held.lease_s * 2 / 3) < self._next:  # the next round would come too late for it
            self._next = third
            if self._woken is not None and not self._woken.done():
                self._woken.set_result(None)

    def leave(self, held: Held) -> None:
        """Let a claim go: it has ended, or is lost."""
        held.ended = True
        key_id = held.key_id
        if self._held.get(key_id) is held:
            del self._held[key_id]
            if self._emptied is not None and not self._held and not self._emptied.done():
                self._emptied.set_result(None)

    async def drain(self, seconds: float) -> bool:
        """Wait until nothing is held, at most that long; say whether nothing is."""
        if not self._held:
            return True
        self._emptied = asyncio.get_running_loop().create_future()
        return await self._clock.wait(self._emptied, seconds)

    async def _round(self) -> None:
        """Sleep until something is due, and renew it."""
        self._woken = asyncio.get_running_loop().create_future()
        await self._clock.wait(self._woken, self._next - self._clock.monotonic())
        now = self._clock.monotonic()
        if now < self._next:
            return  # woken for an earlier round
        failed = False
        for lease_s in sorted({held.lease_s for held in self._held.values() if held.lease_s}):
            failed |= not await self._renew_all(lease_s)
        self._plan(failed=failed)
        if self.used and not failed:
            await self._note_use()

    async def _note_use(self) -> None:
        self.used = False
        try:
            await self._touch()
        except (StoreUnavailable, StoreError):
            self.used = True  # the next round notes it

    async def _renew_all(self, lease_s: float) -> bool:
        """Renew the claims of one lease; say whether the ledger could be asked."""
        due = [held for held in self._held.values() if held.lease_s == lease_s and not held.lost]
        if not due:
            return True
        asked_at = self._clock.monotonic()
        # A ledger that hangs must not hide the end of a lease.
        patience = max(min(held.due for held in due) - asked_at, lease_s / 6)
        try:
            kept = await self._renew(due, patience)
        except (StoreUnavailable, StoreError):
            self._lose(held for held in due if held.due <= self._clock.monotonic())
            return False
        for held in due:
            held.due = (
                asked_at + lease_s
            )  # one that was refused is lost, or its settle will tell: not to be asked again
        self._lose(held for held in due if held.key_id not in kept)
        if points.armed:
            points.reach("keys.renewed")
        return True

    def _lose(self, lost: Iterable[Held]) -> None:
        for held in list(lost):
            if not (held.ended or held.settling or held.lost):
                self._overtaken(held)

    def _overtaken(self, held: Held) -> None:
        if self._held.get(held.key_id) is held:
            del self._held[held.key_id]
        if not held.lost and not held.ended:
            self._events.notice("lease_lost", held.ticket, attempt=held.attempt)
        held.lose()

    def _plan(self, *, failed: bool) -> None:
        """Say when the next round is due."""
        now = self._clock.monotonic()
        rounds = [held.due - held.lease_s * 2 / 3 for held in self._held.values() if held.lease_s]
        self._next = min(rounds, default=now + IDLE_S)
        if failed:
            ends = [held.due for held in self._held.values() if held.lease_s and held.due > now]
            self._next = min([now + self._retry, *ends])
            self._retry = min(self._retry * 2, RETRY_MAX_S)
        else:
            self._retry = RETRY_FIRST_S
