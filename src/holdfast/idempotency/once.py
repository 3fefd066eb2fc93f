"""Run a function once per key, on the records that requests have.

Invariants:
    - The function runs only under a claim, or where a rule or the configuration says it may run without one.
    - What it returned is durable before `once` returns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, assert_never

from holdfast.core.errors import ConfigError
from holdfast.idempotency import answers, errors, identity, machine
from holdfast.idempotency import headers as fields
from holdfast.idempotency.claims import Held
from holdfast.idempotency.events import IdempotencyEvent
from holdfast.idempotency.fingerprint import RequestParts, fingerprint
from holdfast.idempotency.gate import Expired, bounded
from holdfast.idempotency.idem import Idem, entered
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import Completed, Conflict, InFlight, Once, Replay, State, Tombstone

if TYPE_CHECKING:
    from holdfast.idempotency.claims import Ticket
    from holdfast.idempotency.errors import IdempotencyError
    from holdfast.idempotency.events import DecisionKind
    from holdfast.idempotency.guard import Idempotency
    from holdfast.idempotency.values import KeyRecord, Outcome, Principal

__all__ = ["METHOD", "once"]

METHOD = "CALL"
OK = 200
HASH_OFF_LOOP_BYTES = 256 * 1024
"""Larger payloads are hashed in a thread."""

Op = Callable[[Idem], Awaitable[bytes]]


async def once(  # noqa: PLR0913 - the signature of `Idempotency.once`
    guard: Idempotency,
    key: str,
    payload: bytes,
    op: Op,
    *,
    principal: Principal | str,
    name: str,
    rule: RouteRule | None = None,
) -> Once:
    """Run an operation once per key; see `Idempotency.once`."""
    rule = guard.config.ruled(rule or guard.config.rule or RouteRule())
    if rule.mode == "transaction":
        raise ConfigError(
            "once() has no mode transaction", "use mode separate, or a keyed request", code="config.mode_conflict"
        )
    began = guard.clock.monotonic()
    ticket = await _ticket(guard, key, payload, principal=principal, name=name, rule=rule)

    def tell(kind: DecisionKind, error: IdempotencyError | None = None, attempt: int | None = None) -> None:
        code = None if error is None else error.code.removeprefix("idempotency.")
        latency_us = int((guard.clock.monotonic() - began) * 1_000_000)
        event = IdempotencyEvent(
            kind=kind, at=guard.clock.now(), method=METHOD, route=name, code=code,
            key_ref=ticket.key_ref, scope_ref=ticket.scope_ref, attempt=attempt, latency_us=latency_us,
        )  # fmt: skip
        guard.events.decision(kind, name, lambda: event)

    kind: DecisionKind
    try:
        found = await _decide(guard, ticket, tell)
    except errors.StoreUnavailable as error:
        tell("refused", error)
        raise
    match found:
        case Held() as held:
            return await _run(guard, held, op)
        case Replay(record):
            return _answered(record, tell)
        case InFlight():
            refusal, kind = _in_flight(ticket.key_ref, guard.retry_after(found, ticket)), "in_flight"
        case Conflict(why):
            refusal = _conflicting(why, ticket.key_ref, guard.retry_after(found, ticket))
            kind = why if why == "reused" or why == "unknown" else "refused"
        case _:
            assert_never(found)
    tell(kind, refusal)
    raise refusal


def _answered(record: KeyRecord, tell: Callable[..., None]) -> Once:
    try:
        result = _replayed(record)
    except errors.AlreadyExecuted as error:
        tell("executed", error, record.attempt)
        raise
    tell("replay", attempt=record.attempt)
    return result


async def _ticket(
    guard: Idempotency, key: str, payload: bytes, *, principal: Principal | str, name: str, rule: RouteRule
) -> Ticket:
    """Make the ticket of a call.

    Raises:
        KeyInvalid: It is no key.
        IdentityUnproven: The principal has no name.
        ConfigError: The call has no name.
    """
    if not name:
        raise ConfigError("a guarded call needs a name", "name what it does, such as 'orders.charge'")
    who = identity.principal_of(principal)
    if who is None:
        raise errors.IdentityUnproven("the principal of a guarded call has no subject", "say on whose behalf it runs")
    header = guard.config.headers[0].lower().encode()
    try:
        parsed = identity.parse_key([(header, fields.sf_string(key))], guard.config)
    except ValueError:
        parsed = None
    if parsed is None:
        raise errors.KeyInvalid("a key has 1 to 255 printable ASCII characters", "encode it, for example in hex")
    parts = RequestParts(
        method=METHOD, raw_path=name.encode(), query=b"", content_type=b"", content_encoding=b"", headers=(),
        body=payload,
    )  # fmt: skip
    digest = await asyncio.to_thread(fingerprint, parts) if len(payload) > HASH_OFF_LOOP_BYTES else fingerprint(parts)
    return guard.ticket(principal=who, key=parsed, rule=rule, method=METHOD, route=name, fingerprint=digest)


async def _decide(guard: Idempotency, ticket: Ticket, tell: Callable[..., None]) -> Held | Replay | InFlight | Conflict:
    """Claim, wait if the rule says so, and tell of what runs."""
    if guard.config.observe:
        held = await guard.observe(ticket)
        tell("proceed" if held is not None else "observed", attempt=held.attempt if held is not None else None)
        return held or guard.unprotected(ticket)
    try:
        found = await guard.claim(ticket)
        if isinstance(found, InFlight) and ticket.rule.on_in_flight == "wait":
            found = await guard.wait(ticket, found)
    except errors.StoreUnavailable as error:
        if ticket.rule.on_store_error != "open":
            raise
        tell("unprotected", error)
        return guard.unprotected(ticket)
    if isinstance(found, Held):
        tell("proceed", attempt=found.attempt)
    return found


async def _run(guard: Idempotency, held: Held, op: Op) -> Once:
    """Run the operation under its claim, and write what came of it."""
    ticket, rule, idem = held.ticket, held.ticket.rule, Idem(guard, held)
    began = guard.clock.monotonic()
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    running = struck = False

    def strike() -> None:
        nonlocal struck
        if running:
            struck = True
            task.cancel()

    if rule.on_lost == "cancel":
        held.on_lost(strike)
    try:
        running = True
        try:
            with entered(idem):
                value = await _bounded(guard, op(idem), rule)
        finally:
            running = False
            guard.events.handled(ticket.route, guard.clock.monotonic() - began)
        _check(value, ticket.route)
    except Expired:
        await _failed(guard, idem, held, "timeout")
        raise errors.HandlerTimeout(
            f"the operation {ticket.route} took longer than its handler_timeout", "make it quicker, or allow more"
        ) from None
    except asyncio.CancelledError:
        await _failed(guard, idem, held, "raised")
        if struck and task.uncancel() <= before:
            return await _as_it_stands(guard, held)
        raise
    except BaseException:
        await _failed(guard, idem, held, "raised")
        raise
    return await _conclude(guard, idem, held, value)


def _check(value: object, name: str) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"the operation {name} returned {type(value).__name__}, not bytes")


async def _bounded(guard: Idempotency, work: Awaitable[bytes], rule: RouteRule) -> bytes:
    async def waited() -> bytes:
        return await work

    if rule.handler_timeout is None:
        return await work
    return await bounded(guard.clock, waited(), rule.handler_timeout.total_seconds())


async def _conclude(guard: Idempotency, idem: Idem, held: Held, value: bytes) -> Once:
    """Write what the operation returned, and return it."""
    if idem.discarded and not held.irreversible:
        await guard.release(held)
        return Once(value, replayed=False, attempt=held.attempt)
    if idem.result is not None and (idem.result.status, idem.result.body) != (OK, value):
        guard.events.notice("result_differs", held.ticket, attempt=held.attempt)
    outcome: Outcome = Completed(OK, [], value)
    if len(value) > held.ticket.rule.response_bytes_max:
        outcome = Tombstone(OK, [], "oversize", body_bytes=len(value))
    if not await guard.settle(held, outcome, ttl=idem.retention):
        return await _as_it_stands(guard, held)
    return Once(value, replayed=False, attempt=held.attempt)


async def _failed(guard: Idempotency, idem: Idem, held: Held, end: machine.End) -> None:
    """Write what becomes of an operation that raised, was cancelled or took too long."""
    match machine.classify_end(None, held.ticket.rule, irreversible=held.irreversible):
        case "release" | "truncated":
            await guard.release(held)
        case "unknown":
            await guard.mark_unknown(held, machine.unknown_reason(end, None))
        case "freeze":
            code = "handler_timeout" if end == "timeout" else "handler_failed"
            refusal = answers.Refusal(code, key_ref=held.ticket.key_ref)
            await guard.settle(held, answers.answer(refusal, guard.config), ttl=idem.retention)


async def _as_it_stands(guard: Idempotency, held: Held) -> Once:
    """Answer from the record of a call whose own outcome was refused, because its claim was lost."""
    record = await guard.record(held.ticket)
    ref = held.ticket.key_ref
    if record is not None and record.outcome is not None:
        return _replayed(record)
    if record is not None and record.state is State.RESERVED:
        raise _in_flight(ref, None)
    raise _unknown(ref)


def _replayed(record: KeyRecord) -> Once:
    match record.outcome:
        case Completed(status, _, body) if status < 400:
            return Once(body, replayed=True, attempt=record.attempt)
        case Completed():
            raise errors.AlreadyExecuted(
                f"the call of key {record.key_ref} was made, and failed",
                "a failure is kept too: use a new key to try again",
                code="idempotency.handler_failed",
            )
        case _:
            raise errors.AlreadyExecuted(
                f"the call of key {record.key_ref} was made; what it returned is not kept", "do not make it again"
            )


def _in_flight(ref: str, seconds: int | None) -> IdempotencyError:
    return errors.KeyInFlight(f"a call with key {ref} is running", "try again later", retry_after=seconds)


def _unknown(ref: str) -> IdempotencyError:
    return errors.OutcomeUnknown(
        f"the outcome of an earlier call with key {ref} is unknown", "decide with `holdfast keys decide`"
    )


def _conflicting(why: str, ref: str, seconds: int) -> IdempotencyError:
    match why:
        case "reused":
            return errors.KeyReused(f"key {ref} was used for another call", "use a new key for every new call")
        case "unknown":
            return _unknown(ref)
        case "quota":
            return errors.QuotaExceeded(
                "the principal has too many calls under way or stored", "try again later", retry_after=seconds
            )
        case "newer":
            return errors.RecordUnreadable(
                f"the record of key {ref} was written by a newer Holdfast", "upgrade this process",
                code="idempotency.record_newer",
            )  # fmt: skip
        case _:
            return errors.RecordUnreadable(f"the record of key {ref} cannot be read", "run holdfast verify",
                                           code="idempotency.record_unreadable")  # fmt: skip
