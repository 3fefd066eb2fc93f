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
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from holdfast.core.clock import micros
from holdfast.core.errors import LeaseLost, StoreError
from holdfast.core.points import Crashed
from holdfast.idempotency import headers, identity, transaction
from holdfast.idempotency.answers import Refusal, answer, first_run
from holdfast.idempotency.claims import Held
from holdfast.idempotency.errors import (
    HandlerTimeout,
    IdempotencyError,
    RecordUnreadable,
    RequestTooLarge,
    StoreUnavailable,
)  # fmt: skip
from holdfast.idempotency.events import IdempotencyEvent
from holdfast.idempotency.idem import Idem, entered
from holdfast.idempotency.machine import classify_end, unknown_reason
from holdfast.idempotency.request import Reading, proven, too_long
from holdfast.idempotency.responder import Responder
from holdfast.idempotency.run import IN_SCOPE, Runs, interruptible, play
from holdfast.idempotency.unit import pick
from holdfast.idempotency.values import Completed, Conflict, InFlight, Principal, Replay, State

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.declare import Covered
    from holdfast.idempotency.events import DecisionKind
    from holdfast.idempotency.request import Message, Receive, Scope, Send, Shape, Site
    from holdfast.idempotency.unit import Ending
    from holdfast.idempotency.values import Headers, KeyRecord, Outcome

__all__ = ["Exchange", "respond"]

Found: TypeAlias = "Replay | InFlight | Conflict"

NONE_LISTED: Headers = []
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
    """A request that a rule covers and that has a key, or lacks one that is required.

    Attributes:
        send: The server's.
    """

    _entered: float | None = None
    _key: str | None = None
    _principal: Principal | None = None
    _reading: Reading | None = None
    _ticket: Ticket | None = None
    _kind: DecisionKind = "refused"
    _status: int | None = None
    _code: str | None = None
    _attempt: int | None = None
    _told = False

    def __init__(self, site: Site, covered: Covered, shape: Shape, scope: Scope, receive: Receive, send: Send) -> None:
        self._site = site
        self._guard = guard = site.guard
        self._rule = covered.rule
        self._route = covered.route
        self._scope = scope
        self._receive = receive
        self.send = send
        self._shape = shape
        # Copied once: trailers that a server appends while the body arrives are no headers.
        self._headers: Headers = list(scope["headers"])
        self._clock = guard.clock
        self._began = self._clock.monotonic()

    async def conduct(self) -> None:
        """Answer the request.

        Raises:
            BaseException: What the application, or its `principal`, raised.
        """
        try:
            asked = await self._ask()
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
            if not self._told:
                self._tell()

    # --- steps 2 to 6

    async def _ask(self) -> Ticket | Refusal | None:
        """Return what is asked for, or why it is refused; None: the client left."""
        rule, guard = self._rule, self._guard
        if not self._shape.keyed:
            return Refusal("key_missing")
        if rule.key == "forbidden":
            return Refusal("key_forbidden")
        try:
            shape, config, headers = self._shape, guard.config, self._headers
            if shape.key is not None:
                key: str | None = identity.decoded_key(headers[shape.key][1], config)
            else:
                key = identity.parse_key(self._chosen(shape.keys), config)
            assert key is not None, "one of its fields is the key's"
            first_sent_at = None
            if shape.sent:
                first_sent_at = identity.parse_first_sent(self._chosen(shape.sent), now=self._clock.now())
            told = config.principal(self._scope)
            if not isinstance(told, (Principal, str)) and inspect.isawaitable(told):
                told = await told
            self._key, self._principal = key, proven(told)
            if too_long(headers, shape, rule.request_bytes_max):
                return self._too_large()
            listed = self._chosen(shape.listed) if shape.listed else NONE_LISTED
            recipe = self._site.recipes.find(self._scope, self._chosen(shape.plain), listed, rule)
            reading = self._reading = Reading(self._receive, recipe, rule=rule, config=config, clock=self._clock)
            whole = reading.read()
            if not (whole if isinstance(whole, bool) else await whole):
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

    def _chosen(self, places: tuple[int, ...]) -> Headers:
        """The fields at some places."""
        found: Headers = []
        for at in places:
            name, value = self._headers[at]
            found.append((name, value))  # a tuple, whatever the server gives
        return found

    # --- steps 7 and 8

    async def _decide(self, ticket: Ticket) -> None:
        """Look up, or claim, or wait for, the key; and do what follows."""
        guard, sent_at = self._guard, ticket.first_sent_at
        found: Held | Found | Refusal | None
        try:
            if sent_at is not None and self._is_late(ticket, sent_at):
                found = await guard.lookup(ticket) or Refusal("key_window_passed", key_ref=ticket.key_ref)
            else:
                found = await guard.claim(ticket)
                if isinstance(found, InFlight) and self._rule.on_in_flight == "wait" and not guard.config.observe:
                    found = await self._waited(ticket, found)
        except StoreUnavailable as error:
            if self._rule.on_store_error == "open" and not guard.config.observe:
                return await self._unprotected(ticket)
            return await self._refuse(self._refusal(error))
        if isinstance(found, Held):
            return await self._run(ticket, found)
        return await (self._leave() if found is None else self._answer(ticket, found))

    async def _waited(self, ticket: Ticket, found: InFlight) -> Held | Found | None:
        """Wait for the key; None: the client left meanwhile."""
        assert self._reading is not None
        heard = self._reading.watch()
        decided = await self._guard.wait(ticket, found, gone=heard)
        return None if isinstance(decided, InFlight) and heard.done() and _is_disconnect(heard) else decided

    def _is_late(self, ticket: Ticket, sent_at: int) -> bool:
        """Say whether its outcome may have been forgotten already."""
        return sent_at + micros(ticket.rule.ttl) < self._guard.clock.now()

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
        asked = self._headers
        if headers.needs_transcoding(made, asked):
            if len(made.body) > TRANSCODE_BYTES:
                return await asyncio.to_thread(headers.transcode, made, asked)
            return headers.transcode(made, asked)
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
        assert self._reading is not None
        site, idem = self._site, Idem(self._guard, held)
        self._entered = self._clock.monotonic()
        responder = Responder(
            site, ticket, idem, send=self.send, end=partial(self._end, idem, held),
            interrupt=interruptible(site, self._rule, held),
        )  # fmt: skip
        try:
            await play(site, self._reading, idem, self._scope, responder, codings=self._shape.coding)
        except GeneratorExit:
            raise  # the loop is gone, and nothing can be awaited
        except BaseException as error:
            if pick(error, Crashed) is not None or not await self._broke(responder, idem, held, error):
                raise
        else:
            if responder.turning is not None:
                await responder.turned()
            if not responder.ended:
                await self._end_unfinished(responder, idem, held, "raised")
                await responder.forward()

    async def _end(self, idem: Idem, held: Held, responder: Responder, ending: Ending) -> bool:
        """Make the outcome of a response durable; False: the claim is lost, and so is the response."""
        guard = self._guard
        self._ran()
        self._status = responder.status
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
        else:
            responder.drop()
            await self._displaced(held.ticket, responder)
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

    async def _broke(self, responder: Responder, idem: Idem, held: Held, error: BaseException) -> bool:
        """Let go of the key after the application raised; say whether the client was answered in its place."""
        await responder.outlive()
        if responder.ended:
            return False
        struck = responder.interrupt.reason if responder.interrupt is not None else None
        timed_out = isinstance(error, HandlerTimeout) and struck == "timeout"
        displaced = isinstance(error, LeaseLost) and held.lost
        await self._end_unfinished(responder, idem, held, "timeout" if timed_out else "raised")
        if responder.sent or not (timed_out or displaced):
            if isinstance(error, Exception):
                with suppress(Exception):  # its own failure is what the server shall see
                    await responder.forward()
            return False
        responder.drop()
        if displaced:
            await self._displaced(held.ticket, responder)
        else:
            self._note("proceed", code="handler_timeout", attempt=held.attempt)
            await self._send_answer(self._failed(held.ticket, "timeout"))
        return True

    async def _displaced(self, ticket: Ticket, responder: Responder) -> None:
        """Answer from the record as it stands: the claim is lost, and the application's response with it."""
        if responder.sent:
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
        assert self._reading is not None
        runs = Runs(self._site, ticket, self._reading, self._scope, self)
        try:
            found = await transaction.conduct(self._guard, ticket, runs)
        except StoreUnavailable as error:
            if error is runs.failure:
                raise
            if self._rule.on_store_error == "open" and runs.attempts == 0 and not self._guard.config.observe:
                return await self._unprotected(ticket)
            self._reading.rewind()  # nothing of those runs was written or sent
            return await self._refuse(self._refusal(error))
        except HandlerTimeout as error:
            if error is not runs.failure or not runs.timed_out:
                raise
            self._note("proceed", code="handler_timeout", attempt=self._attempt)
            await self._send_answer(self._failed(ticket, "timeout"))
        else:
            if found is not None:
                return await self._answer(ticket, found)
            if runs.last is not None and not runs.last.ended:
                self._status = runs.last.status
                await runs.last.forward()

    def began(self, attempt: int) -> None:
        """Note that an attempt of mode `transaction` begins."""
        self._entered = self._clock.monotonic()
        self._note("proceed", attempt=attempt)

    def committed(self, status: int | None) -> None:
        """Tell that it is committed, or was let go."""
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
            await self.send(message)

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
            await self.send(message)

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
            made = replace(made, headers=headers.without(made.headers, b"connection"))
        self._tell()
        await respond(self.send, made)

    # --- what is told

    def _note(self, kind: DecisionKind, code: str | None = None, attempt: int | None = None) -> None:
        self._kind, self._code, self._attempt = kind, code, attempt

    def _ran(self) -> None:
        if self._entered is not None:
            self._guard.events.handled(self._route, self._clock.monotonic() - self._entered)
            self._entered = None

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._guard.events.decision(self._kind, self._route, self._decision)

    def _decision(self) -> IdempotencyEvent:
        key_ref, scope_ref = self._refs()
        return IdempotencyEvent(
            kind=self._kind,
            at=self._guard.clock.now(),
            method=self._scope["method"],
            route=self._route,
            status=self._status,
            code=self._code,
            key_ref=key_ref,
            scope_ref=scope_ref,
            attempt=self._attempt,
            latency_us=int((self._clock.monotonic() - self._began) * 1_000_000),
        )


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
