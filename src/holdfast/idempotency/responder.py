"""The response of one keyed request: held until its outcome is settled, then sent.

The application runs in the caller's task with the same scope. What it sends is held here; when the last byte is in,
the outcome is decided and ended (`end` settles it, commits it, or lets the key go), and only then anything leaves.

    waiting ──start──> holding ──last byte──────────────> ended
                          │ stream, oversize, message ──> flowing ──last byte──> ended
                          │ the same, not to be kept ───> passing ──last byte──> ended      (ended before it leaves)
                          └ refused: the claim is lost ─> dropped

Invariants:
    - `end` is called at most once, and before the last byte of the body leaves; by default before the first.
    - After `end` was called nothing that the application does changes the outcome.
    - Every byte the application sends reaches the client, in order, unless the outcome is another's.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import Context, copy_context
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from holdfast.core import points
from holdfast.core.clock import micros
from holdfast.core.loops import spawn
from holdfast.idempotency.answers import first_run
from holdfast.idempotency.headers import (
    Head,
    head_of,
    keepable,
    parse_control,
    sets_cookie,
    tombstone_headers,
)  # fmt: skip
from holdfast.idempotency.machine import classify
from holdfast.idempotency.unit import Ending
from holdfast.idempotency.values import Completed, Headers, Tombstone, TombstoneReason

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.idem import Idem
    from holdfast.idempotency.interrupt import Interrupt
    from holdfast.idempotency.lateness import Line
    from holdfast.idempotency.request import Message, Send, Site

__all__ = ["End", "Responder"]

START, BODY = "http.response.start", "http.response.body"
ASIDE = frozenset({"http.response.debug", "http.response.early_hint"})
"""They pass at once, and no record knows of them."""
SWITCHING, STATUS_MAX = 101, 599

points.register("handler.returned", "response.started", "response.sent")


class End(Protocol):
    """Ends the claim of a run whose response is decided."""

    def __call__(self, responder: Responder, ending: Ending, /) -> Awaitable[bool]:
        """Settle, commit, or let go; False: the claim is lost, the response was dropped, and the client answered."""
        ...


class Phase(enum.Enum):
    """How far the response is; the module's docstring draws the ways."""

    WAITING = "waiting"
    HOLDING = "holding"
    FLOWING = "flowing"
    PASSING = "passing"
    ENDED = "ended"
    DROPPED = "dropped"


HOLDING = Phase.HOLDING  # where almost every message finds a response; found faster here than in its class


class Responder:
    """What the application sends to, for one run of it.

    Attributes:
        status: Of the response, once it has started.
        phase: How far it is.
        ended: Whether its end was called for.
        interrupt: What cancels the run, if anything may.
        sent: Whether any of the response has left.
        turning: Makes a stream of it, since its time has come; None: it has not, or that is done.
    """

    status: int | None = None
    phase: Phase = Phase.WAITING
    ended = False
    sent = False
    turning: asyncio.Task[None] | None = None
    _irreversible = False
    _informed = False  # an interim response is being sent
    _queue: tuple[Message, ...] = ()  # unknown messages that came before the start
    _held: bytes | bytearray = b""
    _taken = 0  # how many bytes of it have left
    _length: int | None = None  # what the head says it will be
    _reason: TombstoneReason | None = None  # why the body is not kept, once that is known
    _stays = False  # whether the outcome is kept
    _line: Line | None = None
    _start: Message
    _headers: Headers
    _head: Head
    _context: Context

    def __init__(
        self, site: Site, ticket: Ticket, idem: Idem, *, send: Send, end: End, interrupt: Interrupt | None = None
    ) -> None:
        """Wait for a response.

        Args:
            site: Whose settings hold, and what tells it when it has taken its time.
            ticket: The request.
            idem: What its handler says about it.
            send: The server's.
            end: Ends the claim.
            interrupt: What would cancel the run before that.
        """
        self.interrupt = interrupt
        self._send = send
        self._site = site
        self._ticket = ticket
        self._rule = rule = ticket.rule
        self._unit = rule.mode == "transaction"  # one commit holds everything, so nothing may take its time
        self._idem = idem
        self._end = end

    async def send(self, message: Message) -> None:
        """What the application calls.

        Raises:
            RuntimeError: ASGI forbids the message here.
        """
        if self.turning is not None:
            await self.turned()
        kind = message["type"]
        if kind == BODY and self.phase is HOLDING:
            coming = self._hold(message.get("body", b""), last=not message.get("more_body", False))
            if coming is not None:
                await coming
        elif kind == BODY:
            await self._on_body(message)
        elif kind == START:
            await self._on_start(message)
        elif self.phase is not Phase.DROPPED:
            await (self._send(message) if kind in ASIDE else self._on_other(message))

    async def turned(self) -> None:
        """Wait until a response that became a stream by its timer flows; raise what went wrong with that."""
        task = self.turning
        if task is not None:
            await self._site.guard.clock.wait(task, None)
            self.turning = None
            task.result()

    async def outlive(self) -> None:
        """Wait, though this task is cancelled, until what the timer began is over: two must not send at once."""
        task = self.turning
        if task is None:
            return
        if not self.ended:  # it has not begun
            task.cancel()
        clock, seconds = self._site.guard.clock, self._site.guard.config.release_timeout.total_seconds()
        until = clock.monotonic() + seconds
        while not task.done() and (left := until - clock.monotonic()) > 0:
            with suppress(asyncio.CancelledError):
                await clock.wait(task, left)
        task.cancel()
        self.turning = None

    async def forward(self) -> None:
        """Send what is held, as the application left it: unfinished."""
        if self.phase is Phase.HOLDING:
            self.phase = Phase.PASSING
            await self._flush(last=False)

    def drop(self) -> None:
        """Let nothing more of the response out, and settle nothing of it."""
        self.close()
        self.ended = True
        self.phase = Phase.DROPPED

    def close(self) -> None:
        """Stop the timer; the run is over."""
        if self._line is not None:
            self._line.leave(self)
            self._line = None

    @property
    def irreversible(self) -> bool:
        """Whether the handler said, by call or by header, that its effect cannot be taken back."""
        return self._irreversible or self._idem.irreversible

    # --- what the application sends

    async def _on_start(self, message: Message) -> None:
        if self.phase is Phase.DROPPED:
            return
        if self.phase is not Phase.WAITING:
            raise RuntimeError("http.response.start was sent a second time")
        status: int = message["status"]
        if 100 <= status < 200 and status != SWITCHING:
            self._informed = True
            await self._send(message)
            return
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        rule, head = self._rule, head_of(headers, self._rule)
        if head.ours:
            control, headers = parse_control(headers)
            self._idem.apply(control)
            self._irreversible = control.irreversible
            head = head_of(headers, rule)
        self.status, self._start, self._headers, self._head = status, message, headers, head
        self.phase = HOLDING
        if rule.flush == "early":
            self._length = next((int(v) for n, v in headers if n.lower() == b"content-length" and v.isdigit()), None)
        at_once = self._at_once()
        if at_once is not None:
            await self._flow(at_once, last=False)
        elif not self._unit and (lateness := self._site.guard.lateness) is not None:
            self._context = copy_context()
            self._line = lateness.enter(self, rule.stream_after)

    async def _on_body(self, message: Message) -> None:
        last = not message.get("more_body", False)
        match self.phase:
            case Phase.WAITING if self._informed:
                await self._send(message)
            case Phase.WAITING:
                raise RuntimeError("http.response.body was sent before http.response.start")
            case Phase.FLOWING:
                if last:
                    self.phase = Phase.ENDED
                await self._pass_on(message, last=last)
            case Phase.PASSING:
                if last and not await self._settle(self._decided(whole=False)):
                    return
                self.phase = Phase.ENDED if last else Phase.PASSING
                await self._pass_on(message, last=last)
            case Phase.ENDED:
                raise RuntimeError("http.response.body was sent after the end of the response")
            case Phase.DROPPED:
                pass

    async def _on_other(self, message: Message) -> None:
        if self.phase is Phase.WAITING:
            # Nothing can be settled before a status is known, and the order stays.
            self._queue += (message,)
            return
        if self.phase is Phase.HOLDING and not await self._flow("message", last=False):
            return
        await self._send(message)

    def _hold(self, body: bytes, *, last: bool) -> Awaitable[object] | None:
        """Take the next part of the body in; return what is to be awaited then, if anything is."""
        if body:
            if not self._held:
                self._held = body if isinstance(body, bytes) else bytes(body)
            else:
                if not isinstance(self._held, bytearray):
                    self._held = bytearray(self._held)
                self._held += body
        if len(self._held) > self._rule.response_bytes_max:
            return self._flow("oversize", last=last)
        if last:
            return self._flow(None, last=True)
        return self._flush_early() if self._rule.flush == "early" else None

    # --- decisions

    def _at_once(self) -> TombstoneReason | None:
        """Why the response is not held at all, if it is not."""
        if self.status == SWITCHING:
            return "upgrade"
        if self._queue:
            return "message"
        if self._rule.stream or self._start.get("trailers", False):
            return "stream"
        at = self._head.type_at
        if at is not None and self._headers[at][1].partition(b";")[0].strip().lower() == b"text/event-stream":
            return "stream"
        return None

    def _decided(self, *, whole: bool) -> Ending:
        """Decide what the response becomes; `whole` says whether all of its body is held."""
        assert self.status is not None
        rule, headers, reason, idem = self._rule, self._headers, self._reason, self._idem
        irreversible = self._irreversible or idem.irreversible
        keep, ttl = irreversible or not idem.discarded, idem.retention
        if self._unit and idem.result is not None:
            return Ending(idem.result, "store", keep, ttl)
        verdict = classify(self.status, rule, irreversible=irreversible)
        kept = keepable(self.status, headers, rule, self._head) if reason is None else None
        if kept is None and reason is None:
            reason = "message"
            if self.status > STATUS_MAX:
                verdict = "store"  # no class of statuses says what it means, so it is not to be run again
        elif reason is None and rule.set_cookie == "refuse" and sets_cookie(headers):
            reason = "set_cookie"
        if kept is None or reason is not None:
            return Ending(self.tombstone(reason or "message", whole=whole), verdict, keep, ttl)
        self._held = body = bytes(self._held)
        return Ending(Completed(self.status, kept, body), verdict, keep, ttl)

    def tombstone(self, reason: TombstoneReason, *, whole: bool = False) -> Tombstone:
        """Return what stays of the response when its body does not."""
        assert self.status is not None
        headers = tombstone_headers(self._headers, self._rule)
        if not whole:
            return Tombstone(self.status, headers, reason)
        digest = hashlib.sha256(self._held).digest()
        return Tombstone(self.status, headers, reason, body_bytes=len(self._held), body_digest=digest)

    def late(self) -> None:
        """Become a stream: the last byte has not come in time."""
        if self.phase is Phase.HOLDING and not self.ended:
            # In the request's own context: the timer is shared with others.
            self.turning = self._context.run(spawn, self._turn(), "holdfast idempotency stream")

    async def _turn(self) -> None:
        if self.phase is Phase.HOLDING and not self.ended:
            await self._flow("stream", last=False)

    async def _flow(self, reason: TombstoneReason | None, *, last: bool) -> bool:
        """End the claim, and send what is held; say whether the response is still ours.

        What is no outcome to keep holds its claim until its last byte: a retry must not run beside it.
        """
        self.close()
        self._reason = reason
        ending = self._decided(whole=last)
        if last or self._unit or (ending.verdict == "store" and ending.keep):
            if not await self._settle(ending):
                return False
            self.phase = Phase.ENDED if last else Phase.FLOWING
        else:
            self.phase = Phase.PASSING
        await self._flush(last=last)
        return True

    def _settle(self, ending: Ending) -> Awaitable[bool]:
        if points.armed:
            points.reach("handler.returned")
        self._stays = ending.verdict == "store" and ending.keep
        self.ended = True  # before it is: whoever is cancelled here must not end it once more
        if self.interrupt is not None:
            self.interrupt.disarm()
        return self._end(self, ending)

    # --- what leaves

    async def _flush(self, *, last: bool) -> None:
        """Send the head if it has not left, and all of the body that is held."""
        if not self.sent:
            await self._flush_head()
        held = self._held if not self._taken else self._held[self._taken :]
        self._held, self._taken = b"", 0
        if held or last:
            await self._send({"type": BODY, "body": bytes(held), "more_body": not last})
        if last and points.armed:
            points.reach("response.sent")

    async def _flush_early(self) -> None:
        """Send what is held but for its last byte, which waits for the outcome. The head says when that has come."""
        if not self.sent:
            await self._flush_head()
        more_to_come = self._length is not None and len(self._held) < self._length
        until = len(self._held) if more_to_come else len(self._held) - 1
        if until > self._taken:
            self._taken, taken = until, self._taken
            await self._send({"type": BODY, "body": bytes(self._held[taken:until]), "more_body": True})

    async def _flush_head(self) -> None:
        self.sent = True
        for message in self._queue:
            await self._send(message)
        await self._send({**self._start, "headers": self._added() if self._site.adds else self._headers})
        if points.armed:
            points.reach("response.started")

    def _added(self) -> Headers:
        """The headers of the handler with what the settings add to them."""
        config, expires_at = self._site.guard.config, None
        if config.expires_header and self._stays:
            expires_at = self._site.guard.clock.now() + micros(self._lifetime())
        return first_run(self._headers, config, key=self._ticket.key, expires_at=expires_at)

    def _lifetime(self) -> timedelta:
        if self._idem.retention is not None:
            return self._idem.retention
        of_tombstone = None if self._reason is None else self._rule.tombstone_ttl
        return self._rule.ttl if of_tombstone is None else of_tombstone

    async def _pass_on(self, message: Message, *, last: bool) -> None:
        await self._send(message)
        if last and points.armed:
            points.reach("response.sent")
