"""One keyed request, from its key to its answer.

    2  a key where none belongs, or none where one is required
    3  key and first sending        Steps up to 5 neither receive nor ask the ledger,
    4  who asks                     so a client that waits for `100 Continue`
    5  the declared length          keeps its body to itself.
    6  the body, hashed as it comes
    7  the ledger: look up, or claim
    8  answer from the record, or run the application
    9  hold its response, settle, send

Invariants:
    - Nothing falls open: what cannot be decided is refused, unless the rule says to run unprotected.
    - What the application raises reaches the server unchanged, after the key was let go or settled.
    - The request is told of exactly once, with its route and without its key.
"""

from __future__ import annotations

import asyncio
import hmac
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from holdfast.core.clock import micros
from holdfast.core.errors import LeaseLost, StoreError
from holdfast.core.points import Crashed
from holdfast.idempotency import headers as fields
from holdfast.idempotency import identity, transaction
from holdfast.idempotency.answers import Refusal, answer, first_run
from holdfast.idempotency.claims import Held
from holdfast.idempotency.errors import (
    HandlerTimeout,
    IdempotencyError,
    RecordUnreadable,
    RequestTooLarge,
    StoreUnavailable,
)  # fmt: skip
from holdfast.idempotency.idem import Idem, entered
from holdfast.idempotency.machine import classify_end, unknown_reason
from holdfast.idempotency.request import Reading, prove, too_long
from holdfast.idempotency.run import IN_SCOPE, Run
from holdfast.idempotency.unit import Ending, pick
from holdfast.idempotency.values import Completed, Conflict, InFlight, Replay, State

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.declare import Covered
    from holdfast.idempotency.events import DecisionKind
    from holdfast.idempotency.request import Message, Receive, Scope, Send, Site
    from holdfast.idempotency.responder import Responder
    from holdfast.idempotency.values import Headers, KeyRecord, Outcome, Principal

__all__ = ["Exchange", "respond"]

Found: TypeAlias = "Replay | InFlight | Conflict"

UNPROTECTED = (b"idempotency-unprotected", b"true")
TRANSCODE_BYTES = 64 * 1024
"""Above this a body is decoded in a thread."""
CONFLICTS: dict[str, tuple[DecisionKind, str]] = {
    "reused": ("reused", "key_reused"),
    "unknown": ("unknown", "outcome_unknown"),
    "quota": ("refused", "quota_exceeded"),
    "unreadable": ("refused", "record_unreadable"),
    "newer": ("refused", "record_newer"),
}


class Exchange:
    """A request that a rule covers and that has a key, or lacks one that is required."""

    __slots__ = (
        "_attempt", "_began", "_clock", "_code", "_entered", "_guard", "_headers", "_key", "_kind", "_principal",
        "_reading", "_receive", "_route", "_rule", "_scope", "_send", "_site", "_status", "_ticket", "_told",
    )  # fmt: skip

    def __init__(self, site: Site, covered: Covered, scope: Scope, receive: Receive, send: Send) -> None:
        self._site = site
        self._guard = guard = site.guard
        self._rule = covered.rule
        self._route = covered.route
        self._scope = scope
        self._receive = receive
        self._send = send
        # Copied once: trailers that a server appends while the body arrives are no headers.
        self._headers: Headers = site.names.telling(scope["headers"])
        self._clock = guard.clock
        self._began = self._clock.monotonic()
        self._entered: float | None = None
        self._key: str | None = None
        self._principal: Principal | None = None
        self._reading: Reading | None = None
        self._kind: DecisionKind = "refused"
        self._status: int | None = None
        self._code: str | None = None
        self._ticket: Ticket | None = None
        self._attempt: int | None = None
        self._told = False

    async def conduct(self, *, keyed: bool) -> None:
        """Answer the request.

        Args:
            keyed: Whether it has a key.

        Raises:
            BaseException: What the application, or its `principal`, raised.
        """
        try:
            asked = await self._ask(keyed=keyed)
            if asked is None:
                await self._leave()
            elif isinstance(asked, Refusal):
                await self._refuse(asked)
            elif self._rule.mode == "transaction":
                await self._transact(asked)
            else:
                await self._decide(asked)
        except Crashed:
            self._told = True
            raise
        finally:
            if self._reading is not None:
                self._reading.close()
            self._tell()

    # --- steps 2 to 6

    async def _ask(self, *, keyed: bool) -> Ticket | Refusal | None:
        """Return what is asked for, or why it is refused; None: the client left."""
        rule, guard = self._rule, self._guard
        if not keyed:
            return Refusal("key_missing")
        if rule.key == "forbidden":
            return Refusal("key_forbidden")
        try:
            keys, sent, length = self._site.names.sort(self._headers)
            key = identity.parse_key(keys, guard.config)
            assert key is not None, "one of its fields is the key's"
            first_sent_at = identity.parse_first_sent(sent, now=guard.clock.now()) if sent else None
            self._key, self._principal = key, await prove(guard.config, self._scope)
            if length and too_long(length, rule.request_bytes_max):
                return self._too_large()
            reading = self._reading = Reading(
                self._receive, self._scope, self._headers, rule=rule, config=guard.config, clock=guard.clock
            )
            if not await reading.read():
                return None
            if not reading.whole:
                return self._too_large()
            fingerprint = reading.fingerprint()
            if not isinstance(fingerprint, bytes):
                fingerprint = await fingerprint
        except IdempotencyError as error:
            return self._refusal(error)
        self._ticket = guard.ticket(
            principal=self._principal, key=key, rule=rule, method=self._scope["method"], route=self._route,
            fingerprint=fingerprint, first_sent_at=first_sent_at,
        )  # fmt: skip
        return self._ticket

    # --- steps 7 and 8

    async def _decide(self, ticket: Ticket) -> None:
        try:
            found = await self._find(ticket)
        except StoreUnavailable as error:
            if self._rule.on_store_error == "open" and not self._guard.config.observe:
                return await self._unprotected(ticket)
            return await self._refuse(self._refusal(error))
        if found is None:
            return await self._leave()
        if isinstance(found, Held):
            return await self._run(ticket, found)
        return await self._answer(ticket, found)

    async def _find(self, ticket: Ticket) -> Held | Found | Refusal | None:
        """Look up, or claim, or wait for, the key; None: the client left while it waited."""
        if self._is_late(ticket):
            known = await self._guard.lookup(ticket)
            return known if known is not None else Refusal("key_window_passed", key_ref=ticket.key_ref)
        found = await self._guard.claim(ticket)
        if isinstance(found, InFlight) and self._rule.on_in_flight == "wait" and not self._guard.config.observe:
            assert self._reading is not None
            heard = self._reading.watch()
            found = await self._guard.wait(ticket, found, gone=heard)
            if isinstance(found, InFlight) and heard.done() and _is_disconnect(heard):
                return None
        return found

    def _is_late(self, ticket: Ticket) -> bool:
        """Say whether its outcome may have been forgotten already."""
        sent_at = ticket.first_sent_at
        return sent_at is not None and sent_at + micros(self._rule.ttl) < self._guard.clock.now()

    async def _answer(self, ticket: Ticket, found: Found | Refusal) -> None:
        """Answer from what is known, without running the application."""
        match found:
            case Refusal():
                return await self._refuse(found)
            case Replay(record):
                if not await self._may_see(record):
                    return await self._refuse(Refusal("replay_forbidden", key_ref=ticket.key_ref))
                whole = record.state is State.COMPLETED
                self._note("replay" if whole else "executed", code=None if whole else "executed")
            case InFlight():
                self._note("in_flight", code="in_flight")
            case Conflict():
                self._note(*CONFLICTS[found.why])
        if self._guard.config.observe:
            return await self._plain()
        return await self._send_answer(await self._made(ticket, found))

    async def _made(self, ticket: Ticket, found: Found) -> Completed:
        config = self._guard.config
        if not isinstance(found, Replay):
            when = isinstance(found, InFlight) or found.why == "quota"
            wait = self._guard.retry_after(found, ticket) if when else None
            return answer(found, config, retry_after=wait, key_ref=ticket.key_ref)
        made = answer(found, config)
        if fields.needs_transcoding(made, self._headers):
            if len(made.body) > TRANSCODE_BYTES:
                return await asyncio.to_thread(fields.transcode, made, self._headers)
            return fields.transcode(made, self._headers)
        return made

    async def _may_see(self, record: KeyRecord) -> bool:
        authorize = self._guard.config.authorize_replay
        if authorize is None:
            return True
        assert self._principal is not None
        allowed = authorize(record, self._principal, self._scope)
        return bool(await allowed if inspect.isawaitable(allowed) else allowed)

    # --- step 9, the claim and the outcome committed apart from the application's own writes

    async def _run(self, ticket: Ticket, held: Held) -> None:
        self._note("proceed", attempt=held.attempt)
        idem = Idem(self._guard, held)

        async def end(ending: Ending) -> bool:
            return await self._end(run, idem, held, ending)

        async def refused() -> None:
            await self._displaced(ticket, run)

        run = self._new_run(ticket, refused)
        try:
            await run.attempt(idem, end, held)
        except GeneratorExit:
            raise  # the loop is gone, and nothing can be awaited
        except BaseException as error:
            if pick(error, Crashed) is not None or not await self._broke(run, idem, held, error):
                raise
        else:
            responder = run.last
            await responder.turned()
            if not responder.ended:
                await self._end_unfinished(responder, idem, held, "raised")
                await responder.forward()

    def _new_run(self, ticket: Ticket, refused: Callable[[], Awaitable[None]]) -> Run:
        assert self._reading is not None
        self._entered = self._clock.monotonic()
        return Run(self._site, ticket, self._reading, scope=self._scope, send=self._send, refused=refused)

    async def _end(self, run: Run, idem: Idem, held: Held, ending: Ending) -> bool:
        """Make the outcome of a response durable; False: the claim is lost, and so is the response."""
        guard = self._guard
        self._ran()
        self._status = run.last.status
        if idem.result is not None and _differs(idem.result, ending.outcome):
            guard.events.notice("result_differs", held.ticket, attempt=held.attempt)
        kept = True
        if ending.verdict == "unknown":
            await guard.mark_unknown(held, unknown_reason("answered", self._status))
        elif ending.verdict == "release" or not ending.keep:
            await guard.release(held)
        else:
            kept = await guard.settle(held, ending.outcome, ttl=ending.ttl) or guard.config.observe
        if kept:
            self._tell()
        return kept

    async def _end_unfinished(
        self, responder: Responder, idem: Idem, held: Held, end: Literal["raised", "timeout"]
    ) -> None:
        """Do with the key what a run without a whole response means."""
        guard = self._guard
        self._ran()
        responder.ended = True
        self._status = responder.status
        irreversible = responder.irreversible
        if idem.discarded and not irreversible:
            await guard.release(held)
            return
        match classify_end(responder.status, self._rule, irreversible=irreversible):
            case "release":
                await guard.release(held)
            case "unknown":
                await guard.mark_unknown(held, unknown_reason(end, responder.status))
            case "truncated":
                await guard.settle(held, responder.tombstone("truncated"), ttl=idem.retention)
            case "freeze":
                await guard.settle(held, self._failed(held.ticket, end), ttl=idem.retention)

    async def _broke(self, run: Run, idem: Idem, held: Held, error: BaseException) -> bool:
        """Let go of the key after the application raised; say whether the client was answered in its place."""
        responder = run.last
        await responder.outlive()
        if responder.ended:
            return False
        timed_out = isinstance(error, HandlerTimeout) and run.interrupted == "timeout"
        displaced = isinstance(error, LeaseLost) and held.lost
        await self._end_unfinished(responder, idem, held, "timeout" if timed_out else "raised")
        if responder.sent or not (timed_out or displaced):
            if isinstance(error, Exception):
                with suppress(Exception):  # its own failure is what the server shall see
                    await responder.forward()
            return False
        responder.drop()
        if displaced:
            await self._displaced(held.ticket, run)
        else:
            self._note("proceed", code="handler_timeout", attempt=held.attempt)
            await self._send_answer(self._failed(held.ticket, "timeout"))
        return True

    async def _displaced(self, ticket: Ticket, run: Run) -> None:
        """Answer from the record as it stands: the claim is lost, and the application's response with it."""
        if run.last.sent:
            return  # what has left cannot be taken back
        try:
            found = _standing(await self._guard.record(ticket), ticket)
        except (IdempotencyError, StoreError) as error:
            unreadable = isinstance(error, RecordUnreadable)
            found = Conflict("unreadable" if unreadable else "unknown")
        if isinstance(found, Replay) and not await self._may_see(found.record):
            made = answer(Refusal("replay_forbidden", key_ref=ticket.key_ref), self._guard.config)
        else:
            made = await self._made(ticket, found)
        await self._send_answer(made)

    # --- step 9 in mode `transaction`

    async def _transact(self, ticket: Ticket) -> None:
        async def refused() -> None:
            """Never called: a unit's end raises."""

        run = self._new_run(ticket, refused)
        try:
            found = await transaction.conduct(self._guard, ticket, _Attempts(run, self._began_attempt, self._committed))
        except StoreUnavailable as error:
            if error is run.failure:
                raise
            if self._rule.on_store_error == "open" and run.attempts == 0 and not self._guard.config.observe:
                return await self._unprotected(ticket)
            if self._reading is not None:
                self._reading.rewind()  # nothing of those runs was written or sent
            return await self._refuse(self._refusal(error))
        except HandlerTimeout as error:
            if error is not run.failure or run.interrupted != "timeout" or run.last.sent:
                raise
            self._note("proceed", code="handler_timeout", attempt=self._attempt)
            await self._send_answer(self._failed(ticket, "timeout"))
        else:
            if found is not None:
                return await self._answer(ticket, found)
            if run.responder is not None and not run.responder.ended:
                self._status = run.responder.status
                await run.responder.forward()

    def _began_attempt(self, attempt: int) -> None:
        self._entered = self._clock.monotonic()
        self._note("proceed", attempt=attempt)

    def _committed(self, status: int | None) -> None:
        self._ran()
        self._status = status
        self._tell()

    # --- without a claim

    async def _unprotected(self, ticket: Ticket) -> None:
        """Run the application though the ledger cannot be asked: the rule says so."""
        assert self._reading is not None
        self._note("unprotected", attempt=1)
        idem = Idem(self._guard, self._guard.unprotected(ticket))

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
                headers = first_run(list(message.get("headers", ())), self._guard.config, key=ticket.key)
                message = {**message, "headers": [*headers, UNPROTECTED]}
            await self._send(message)

        self._scope[IN_SCOPE] = idem
        try:
            with entered(idem):
                await self._site.app(self._scope, self._reading.receive, send)
        finally:
            self._scope.pop(IN_SCOPE, None)

    async def _plain(self) -> None:
        """Run the application as if there were no guard; one inside keeps out of it too."""
        self._kind = "observed"

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._status = message["status"]
            await self._send(message)

        self._scope[IN_SCOPE] = None
        try:
            await self._site.app(self._scope, self._receive if self._reading is None else self._reading.receive, send)
        finally:
            self._scope.pop(IN_SCOPE, None)

    async def _leave(self) -> None:
        """The client is gone, and nothing was claimed."""
        if self._guard.config.observe:
            return await self._plain()
        self._note("abandoned")
        return None

    # --- refusals

    async def _refuse(self, refusal: Refusal) -> None:
        self._note("refused", code=refusal.code)
        if self._guard.config.observe:
            return await self._plain()
        if refusal.key_ref is None:
            refusal = replace(refusal, key_ref=self._refs()[0])
        return await self._send_answer(answer(refusal, self._guard.config))

    def _refs(self) -> tuple[str | None, str | None]:
        """What key and principal are called, once they are known."""
        if self._ticket is not None:
            return self._ticket.key_ref, self._ticket.scope_ref
        if self._key is None or self._principal is None:
            return None, None
        secret = self._guard.config.secrets[0]
        route = (self._scope["method"], self._route) if self._rule.key_scope == "route" else None
        key_ref = identity.key_ref(identity.key_id(secret, self._principal, self._key, route=route))
        return key_ref, identity.scope_id(secret, self._principal).hex()[: len(key_ref)]

    def _refusal(self, error: IdempotencyError) -> Refusal:
        limit = self._rule.request_bytes_max if isinstance(error, RequestTooLarge) else None
        return Refusal.of(error, limit_bytes=limit)

    def _too_large(self) -> Refusal:
        return Refusal("request_too_large", limit_bytes=self._rule.request_bytes_max)

    def _failed(self, ticket: Ticket, end: Literal["raised", "timeout"]) -> Completed:
        """What a run without an answer is recorded as, where it is, and a run over its time is answered with."""
        code = "handler_timeout" if end == "timeout" else "handler_failed"
        return answer(Refusal(code, key_ref=ticket.key_ref), self._guard.config)

    async def _send_answer(self, made: Completed) -> None:
        self._status = made.status
        if self._scope.get("http_version") in ("2", "3"):  # which have no such field
            made = replace(made, headers=fields.without(made.headers, b"connection"))
        self._tell()
        await respond(self._send, made)

    # --- what is told

    def _note(self, kind: DecisionKind, code: str | None = None, attempt: int | None = None) -> None:
        self._kind, self._code, self._attempt = kind, code, attempt

    def _ran(self) -> None:
        if self._entered is not None:
            self._guard.events.handled(self._route, self._clock.monotonic() - self._entered)
            self._entered = None

    def _tell(self) -> None:
        if self._told:
            return
        self._told = True
        key_ref, scope_ref = (None, None) if self._guard.config.on_event is None else self._refs()
        self._guard.events.decision(
            self._kind,
            method=self._scope["method"],
            route=self._route,
            status=self._status,
            code=self._code,
            key_ref=key_ref,
            scope_ref=scope_ref,
            attempt=self._attempt,
            latency_us=int((self._clock.monotonic() - self._began) * 1_000_000),
        )


class _Attempts:
    """A `Run` whose attempts and whose commit are told of."""

    __slots__ = ("_began", "_committed", "_run")

    def __init__(self, run: Run, began: Callable[[int], None], committed: Callable[[int | None], None]) -> None:
        self._run = run
        self._began = began
        self._committed = committed

    async def attempt(self, idem: Idem, end: Callable[[Ending], Awaitable[None]]) -> None:
        async def ended(ending: Ending) -> None:
            await end(ending)
            self._committed(self._run.last.status)

        self._began(idem.attempt)
        await self._run.attempt(idem, ended)


async def respond(send: Send, response: Completed) -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": False})


def _standing(record: KeyRecord | None, ticket: Ticket) -> Found:
    """What a record that another has taken over is to the request that had it."""
    if record is None or not hmac.compare_digest(record.fingerprint, ticket.fingerprint):
        return Conflict("unknown")
    match record.state:
        case State.COMPLETED | State.TOMBSTONE:
            return Replay(record)
        case State.RESERVED:
            return InFlight(until=record.lease_until, since=record.claimed_at)
        case _:
            return Conflict("unknown")


def _differs(result: Completed, outcome: Outcome) -> bool:
    return not isinstance(outcome, Completed) or (result.status, result.body) != (outcome.status, outcome.body)


def _is_disconnect(heard: asyncio.Task[Message]) -> bool:
    return heard.cancelled() or heard.exception() is not None or heard.result()["type"] == "http.disconnect"
