"""What a checker infers of `holdfast.idempotency`: guards, rules, handlers. Checked, never run."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, assert_never, assert_type

import holdfast
from holdfast.core.keyring import KeyRing
from holdfast.idempotency import (
    CORS_ALLOW_HEADERS,
    CORS_EXPOSE_HEADERS,
    Absent,
    Completed,
    Conflict,
    Decision,
    Idem,
    Idempotency,
    IdempotencyConfig,
    IdempotencyEvent,
    IdempotencyMiddleware,
    InFlight,
    KeyRecord,
    Once,
    Principal,
    Proceed,
    Replay,
    Rerun,
    RouteRule,
    Running,
    State,
    Tombstone,
    Undecided,
    Unit,
    UnitOfWork,
    current,
    idempotent,
    openapi_for,
    outbox,
    principal_from_peer,
    principal_from_user,
    shared_principal,
)
from holdfast.integrations.apsw import ConnectionUnit
from holdfast.store import Tx

App = Callable[[Any, Any, Any], Awaitable[None]]


async def a_guard_takes_a_target_or_an_open_ledger(hf: holdfast.Holdfast, config: IdempotencyConfig) -> None:
    """And is an asynchronous context manager of itself."""
    async with Idempotency("orders.db", config) as guard:
        assert_type(guard, Idempotency)
        assert_type(guard.policy(), dict[str, object])
        assert_type((await guard.sweep()).marked_unknown, int)
        await guard.stop(timedelta(0))
    Idempotency(hf.database, config, clock=holdfast.SystemClock(), unit=ConnectionUnit("orders.db"))
    Idempotency("orders.db")  # type: ignore[call-arg]  # nobody is proven without a configuration
    Idempotency("orders.db", config, ConnectionUnit("orders.db"))  # type: ignore[call-arg]  # a unit is named


async def a_function_runs_once(guard: Idempotency) -> None:
    """It is asynchronous, takes what speaks for the call, and returns bytes."""

    async def charge(idem: Idem) -> bytes:
        return idem.derived_key("charge").encode()

    async def silent(idem: Idem) -> None:
        idem.no_store()

    once = await guard.once("order-17", b"478", charge, principal=Principal("ann", "acme"), name="charge")
    assert_type(once, Once)
    assert_type((once.value, once.replayed, once.attempt), tuple[bytes, bool, int])
    await guard.once("order-17", b"", silent, principal="ann", name="charge")  # type: ignore[arg-type]  # nothing to keep
    await guard.once("order-17", "", charge, principal="ann", name="charge")  # type: ignore[arg-type]  # bytes


def rules_are_checked_word_by_word() -> None:
    """Choices are literals, durations timedeltas, everything by name."""
    RouteRule(
        path="/orders/{id}", mode="transaction", ttl=timedelta(hours=72), statuses={409: "store", "5xx": "unknown"}
    )
    RouteRule(mode="both")  # type: ignore[arg-type]  # there is no such mode
    RouteRule(ttl=60)  # type: ignore[arg-type]  # durations are timedeltas
    RouteRule("/orders")  # type: ignore[call-arg]  # fields are named
    RouteRule(retention=timedelta(1))  # type: ignore[call-arg]  # there is no such field


def who_asks(scope: Mapping[str, Any]) -> Principal | None:
    """A principal function of the application's own."""
    return Principal(scope["user"].id) if "user" in scope else None


async def asked(scope: Mapping[str, Any]) -> str:
    """An asynchronous one."""
    return str(scope["user"].id)


async def reconcile(record: KeyRecord) -> Rerun | Completed | Undecided:
    """What became of an unknown record."""
    assert_type((record.state, record.key_ref), tuple[State, str])
    return Rerun() if record.attempt == 1 else Undecided()


def settings_are_checked_too() -> None:
    """Whoever proves the caller may do so asynchronously."""
    for principal in (who_asks, principal_from_user, principal_from_peer(["10.0.0.0/8"]), shared_principal("shop")):
        IdempotencyConfig(principal=principal, secrets=[bytes(32)])
    IdempotencyConfig(
        principal=asked, secrets=(bytes(32),), rule=None, routes=(RouteRule(),), key_format=re.compile("[0-9a-f]{32}"),
        profile={"in_flight": 425}, cipher=KeyRing(current=(1, bytes(32))), reconcile=reconcile,
        redact=lambda kept: None, on_event=told.append,
        authorize_replay=lambda record, principal, scope: record.route == "/orders",
    )  # fmt: skip
    IdempotencyConfig(secrets=[bytes(32)])  # type: ignore[call-arg]  # somebody has to ask
    IdempotencyConfig(principal=who_asks, secrets=["text"])  # type: ignore[list-item]  # secrets are bytes


told: list[IdempotencyEvent] = []


def events_have_kinds(event: IdempotencyEvent) -> None:
    """Which are literals."""
    if event.kind == "replay":
        assert_type(event.latency_us, int | None)
    if event.kind == "replayed":  # type: ignore[comparison-overlap]  # there is no such kind
        raise AssertionError


@idempotent(required=True, ttl=timedelta(hours=72))
async def endpoint(order: int) -> str:
    """A declaration leaves a function what it is."""
    idem = current()
    assert_type(idem, Idem | None)
    if idem is not None:
        await idem.mark_irreversible()
        await idem.set_result(201, [(b"location", b"/orders/1")], b"")
        await idem.emit("ordered", b"1")
        assert_type((idem.attempt, idem.fence, idem.lost, idem.execution_id), tuple[int, int, bool, str])
        assert_type(idem.handle, object)
        assert_type(idem.tx, Tx | None)
        idem.ttl(60)  # type: ignore[arg-type]  # durations are timedeltas
    return str(order)


async def a_declared_endpoint_keeps_its_signature() -> None:
    assert_type(await endpoint(17), str)
    idempotent(mode="both")  # type: ignore[arg-type]  # there is no such mode
    idempotent(path="/orders")  # type: ignore[call-arg]  # a declaration has its place already


def a_middleware_wraps_an_application(app: App, guard: Idempotency) -> None:
    """And is one."""
    wrapped: App = IdempotencyMiddleware(app, guard, rule=RouteRule(key="required"))
    IdempotencyMiddleware(wrapped, guard)
    assert_type(openapi_for(RouteRule(), guard.config), dict[str, Any])
    names: tuple[str, ...] = (*CORS_ALLOW_HEADERS, *CORS_EXPOSE_HEADERS)
    assert_type(names[0], str)


def a_decision_is_one_of_four(decision: Decision) -> str:
    match decision:
        case Proceed():
            assert_type(decision.fence, int)
            return "runs"
        case Replay(record):
            assert_type(record.outcome, Completed | Tombstone | None)
            return "is answered"
        case InFlight() | Conflict():
            return "is refused"
        case _:
            assert_never(decision)


async def attach(id: str) -> Running | Completed | Absent:
    """What became of an execution."""
    return Running() if id else Absent()


async def a_unit_opens_transactions(unit: Unit, hf: holdfast.Holdfast) -> None:
    """Its work is a transaction that Holdfast's records can be written in."""
    RouteRule(mode="execution", attach=attach)
    async with unit.begin(isolation=None, lock_timeout=timedelta(seconds=1)) as work:
        assert_type(work, UnitOfWork)
        await outbox.emit(work.tx, "ordered", b"1", now=0)
    events = await outbox.read(hf.database, after=None)
    assert_type(events, list[outbox.OutboxEvent])
