"""Every cell of the table of a record's ways: what an event answers, and what it leaves.

A cell is written as what the record is afterwards and what is answered: `reserved P(2)`. `=` is a record that has not
changed by a bit, `gone` no row. A row that has expired behaves as if there were none, so its columns repeat the first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from holdfast.idempotency import keys, machine
from holdfast.idempotency.machine import DecideOutcome, DecideRerun, ForceExpire, ForceRelease
from holdfast.idempotency.values import Decision, KeyRecord
from holdfast.testing.key_contract.bench import (
    COLUMNS,
    LEASE,
    NOW,
    RESPONSE,
    STREAMED,
    TTL,
    Bench,
    Subject,
    told,
)
from holdfast.testing.verdicts import Verdict

__all__ = ["ROWS", "Row", "became", "cells"]

Answer = Decision | bool
Act = Callable[[Bench, Subject], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Row:
    """One event of the table.

    Attributes:
        name: As the table calls it.
        act: Lets it happen.
        event: What the machine calls it.
        expected: The cells, in the order of `COLUMNS`.
    """

    name: str
    act: Act
    event: Callable[[Bench, Subject], machine.Event]
    expected: tuple[str, ...]


def _row(name: str, act: Act, event: Callable[[Bench, Subject], machine.Event] | machine.Event, table: str) -> Row:
    """Read the cells of a row. `x *3` is three of x, and the last one stands for all that follow."""
    given: list[str] = []
    for part in table.split("|"):
        cell, _, times = part.partition("*")
        given += [cell.strip()] * int(times or 1)
    make = event if callable(event) else lambda _bench, _subject: event
    return Row(name, act, make, tuple(given + given[-1:] * (len(COLUMNS) - len(given))))


# The events


async def _claim(bench: Bench, subject: Subject) -> Answer:
    return await bench.attempt(subject.again())


async def _claim_other(bench: Bench, subject: Subject) -> Answer:
    return await bench.attempt(subject.again(fingerprint=bench.digest("other"), record_id=bench.digest("new")[:16]))


async def _claim_over_quota(bench: Bench, subject: Subject) -> Answer:
    another = bench.claim(scope_ids=subject.claim.scope_ids)
    await bench.attempt(another)
    return await bench.attempt(subject.again(), in_flight_max=1)


async def _renew(bench: Bench, subject: Subject) -> Answer:
    async with bench.database.write() as tx:
        held = await keys.renew(tx, [(subject.key_id, subject.fence)], lease_until=NOW + 2 * LEASE, now=NOW)
    return subject.key_id in held


async def _mark(bench: Bench, subject: Subject) -> Answer:
    return await keys.mark_irreversible(bench.calls, subject.key_id, subject.fence, now=NOW)


async def _settle_response(bench: Bench, subject: Subject) -> Answer:
    return await keys.settle(bench.calls, subject.key_id, subject.fence, RESPONSE, expires_at=NOW + TTL, now=NOW)


async def _settle_tombstone(bench: Bench, subject: Subject) -> Answer:
    return await keys.settle(bench.calls, subject.key_id, subject.fence, STREAMED, expires_at=NOW + TTL, now=NOW)


async def _release(bench: Bench, subject: Subject) -> Answer:
    return await keys.release(bench.calls, subject.key_id, subject.fence, expires_at=NOW + TTL, now=NOW)


async def _doubt(bench: Bench, subject: Subject) -> Answer:
    return await keys.mark_unknown(bench.calls, subject.key_id, subject.fence, "timeout", now=NOW)


async def _write_stale(bench: Bench, subject: Subject) -> Answer:
    """Every write of a holder, under the fence before; True if any of them is let through."""
    stale = Subject(subject.claim, subject.fence - 1)
    writes = (_renew, _mark, _settle_response, _settle_tombstone, _release, _doubt)
    return any([await write(bench, stale) for write in writes])


def _forced(action: keys.Action) -> Act:
    async def act(bench: Bench, subject: Subject) -> Answer:
        async with bench.database.write() as tx:
            return await keys.force(tx, subject.key_id, action, actor="ops", reason="a test", now=NOW)

    return act


async def _sweep(bench: Bench, subject: Subject) -> Answer:
    async with bench.database.write() as tx:
        found = [
            record
            for record in await keys.lapsed(tx, now=NOW, after=_below(subject.key_id), limit=1)
            if record.key_id == subject.key_id
        ]
        return any([await keys.lapse(tx, record, now=NOW) for record in found])


async def _prune(bench: Bench, subject: Subject) -> Answer:
    before, pruned = await bench.record(subject), 100
    while pruned == 100:
        async with bench.database.write() as tx:
            pruned = await keys.prune(tx, now=NOW, limit=100)
    return before is not None and await bench.record(subject) is None


def _below(key_id: bytes) -> bytes:
    return (int.from_bytes(key_id, "big") - 1).to_bytes(16, "big")


def _claims(bench: Bench, subject: Subject, **changes: Any) -> machine.Claim:
    claim = subject.claim
    given: dict[str, Any] = {
        "key_id": subject.key_id, "scope_id": claim.scope_ids[0], "record_id": claim.record_id,
        "fingerprint": claim.fingerprint, "claim_id": bench.digest("another claim")[:16], "owner": claim.owner,
        "method": claim.method, "route": claim.route, "fence": 0, "lease_until": NOW + LEASE, "expires_at": NOW + TTL,
    }  # fmt: skip
    return machine.Claim(**{**given, **changes})


# The table. Columns: absent | live | live, marked irreversible | lapsed: rerun | ambiguous | marked | execution |
# transaction | completed | tombstone | unknown | released | expired: claim | response | tombstone | release

ROWS = (
    _row(
        "claim, same fingerprint",
        _claim,
        _claims,
        "reserved P(1) | = InFlight *2 | reserved P(2) | unknown Conflict(unknown) *2 | = InFlight"
        "| unknown Conflict(unknown) | = Replay *2 | = Conflict(unknown) | reserved P(2) | reserved P(1)",
    ),
    _row(
        "claim, other fingerprint",
        _claim_other,
        lambda bench, subject: _claims(bench, subject, fingerprint=bench.digest("other")),
        "reserved P(1) | = Conflict(reused) *10 | reserved P(1)",
    ),
    _row(
        "claim, quota reached",
        _claim_over_quota,
        lambda bench, subject: _claims(bench, subject, quota_reached=True),
        "= Conflict(quota) | = InFlight *2 | = Conflict(quota) *3 | = InFlight | = Conflict(quota) | = Replay *2"
        "| = Conflict(unknown) | = Conflict(quota)",
    ),
    _row(
        "renew, own fence",
        _renew,
        lambda _, subject: machine.Renew(fence=subject.fence, lease_until=NOW + 2 * LEASE),
        "= F | reserved T *7 | = F",
    ),
    _row(
        "mark irreversible, own fence",
        _mark,
        lambda _, subject: machine.MarkIrreversible(fence=subject.fence),
        "= F | reserved T | = T | reserved T *2 | = T | reserved T *2 | = F",
    ),
    _row(
        "settle completed, own fence",
        _settle_response,
        lambda _, subject: machine.Settle(fence=subject.fence, outcome=RESPONSE, expires_at=NOW + TTL),
        "= F | completed T *7 | = T *2 | completed T | = F",
    ),
    _row(
        "settle tombstone, own fence",
        _settle_tombstone,
        lambda _, subject: machine.Settle(fence=subject.fence, outcome=STREAMED, expires_at=NOW + TTL),
        "= F | tombstone T *7 | = T *2 | tombstone T | = F",
    ),
    _row(
        "release, own fence",
        _release,
        lambda _, subject: machine.Release(fence=subject.fence, expires_at=NOW + TTL),
        "= F | released T | unknown T | released T *2 | unknown T | released T *2 | = F *3 | = T | = F",
    ),
    _row(
        "ambiguous, own fence",
        _doubt,
        lambda _, subject: machine.MarkUnknown(fence=subject.fence, reason="timeout"),
        "= F | unknown T *7 | = F *2 | = T | = F",
    ),
    _row(
        "any write, stale fence",
        _write_stale,
        lambda _, subject: machine.Release(fence=subject.fence - 1, expires_at=NOW + TTL),
        "= F",
    ),
    _row(
        "operator release",
        _forced(ForceRelease()),
        ForceRelease(),
        "= F | released T *7 | = F *2 | released T | = F",
    ),
    _row(
        "operator expire",
        _forced(ForceExpire()),
        ForceExpire(),
        "= F *8 | expired T *2 | = F | expired T | = F",
    ),
    _row(
        "decide rerun",
        _forced(DecideRerun()),
        DecideRerun(),
        "= F *3 | released T *5 | = F *2 | released T | = F",
    ),
    _row(
        "decide result",
        _forced(DecideOutcome(RESPONSE)),
        DecideOutcome(RESPONSE),
        "= F *3 | completed T *5 | = F *2 | completed T | = F",
    ),
    _row(
        "decide tombstone",
        _forced(DecideOutcome(STREAMED)),
        DecideOutcome(STREAMED),
        "= F *3 | tombstone T *5 | = F *2 | tombstone T | = F",
    ),
    _row(
        "sweep",
        _sweep,
        machine.Sweep(),
        "= F *4 | unknown T *2 | = F | unknown T | = F",
    ),
    _row(
        "prune",
        _prune,
        machine.Prune(),
        "= F *12 | gone T",
    ),
)


async def cells(bench: Bench) -> list[Verdict]:
    """Try every event on a record of every column."""
    return [await _verdict(bench, row, index) for row in ROWS for index in range(len(COLUMNS))]


async def _verdict(bench: Bench, row: Row, index: int) -> Verdict:
    column, expected = COLUMNS[index], row.expected[index]
    name = f"{row.name} / {column}"
    try:
        subject = await bench.make(column)
        before = await bench.record(subject)
        answer = await row.act(bench, subject)
        after = await bench.record(subject)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the verdict
        return Verdict(name, ok=False, detail=f"{type(error).__name__}: {error}")
    seen = f"{became(before, after)} {told(answer)}"
    if seen != expected:
        return Verdict(name, ok=False, detail=f"{seen}, not {expected}")
    wrong = _fence(before, after, moves=row.name.startswith(("claim", "operator", "decide")))
    return Verdict(name, ok=not wrong, detail=wrong)


def became(before: KeyRecord | None, after: KeyRecord | None) -> str:
    if before == after:
        return "="
    if after is None:
        return "gone"
    if machine.expired(after, now=NOW) and before is not None and not machine.expired(before, now=NOW):
        return "expired"
    return after.state.name.lower()


def _fence(before: KeyRecord | None, after: KeyRecord | None, *, moves: bool) -> str:
    """A new claim and a forced action have a fence above the one before; nothing else moves it."""
    if before is None or after is None or before == after:
        return ""
    turned_unknown = after.state.name == "UNKNOWN" and after.claim_id == before.claim_id
    if moves and not turned_unknown:
        return "" if after.fence > before.fence else f"fence {after.fence} after {before.fence}"
    return "" if after.fence == before.fence else f"the fence moved from {before.fence} to {after.fence}"
