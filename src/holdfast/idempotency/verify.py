"""Check the records of idempotency keys against their own rules, row by row, without any secret or cipher.

State and columns agree, the sum over an outcome holds, a pointer row leads to a record, no fence is above the
issuer's, and what was forced has its audit row. Problems are listed in the order they are met; the first names the
first broken row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from holdfast.core.errors import ConfigError
from holdfast.idempotency import keys
from holdfast.idempotency.errors import IdempotencyError, RecordUnreadable
from holdfast.idempotency.identity import execution_id
from holdfast.idempotency.rows import is_newer, record_of
from holdfast.idempotency.sealing import check_sum
from holdfast.idempotency.values import Lapse, Mode, State, TombstoneReason, UnknownReason

if TYPE_CHECKING:
    from holdfast.store.database import Database, Row, Tx

__all__ = ["Problem", "VerifyReport", "verify"]

_BATCH = 50
"""Rows read at once: each may carry a body of megabytes."""
_WIDTHS = {"key_id": 16, "scope_id": 16, "record_id": 16, "fingerprint": 32, "claim_id": 16}
_OUTCOME = ("status", "headers", "body", "body_digest", "block_sum", "cipher_key")


@dataclass(frozen=True, slots=True)
class Problem:
    """One broken invariant.

    Attributes:
        key_ref: The key; empty when a row belongs to none.
        table: Where.
        row: Which row: its key id in hex, or its number.
        code: A stable name of the invariant.
        message: What is wrong.
    """

    key_ref: str
    table: str
    row: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        ok: Whether there is no problem.
        checked_count: Keys checked; pointer rows are not counted.
        problems: What is broken.
    """

    ok: bool
    checked_count: int
    problems: tuple[Problem, ...]


async def verify(database: Database, ref: str | None = None) -> VerifyReport:
    """Check every record, or the one a reference means.

    Args:
        database: The ledger; one that is open for reading only will do.
        ref: The first 8 to 32 hex digits of a key id; None: all records.

    Raises:
        ConfigError: The reference is none, or more than one key has it (`config.key_ref`).
        IdempotencyError: No key has it (`idempotency.unknown_key`).
    """
    if ref is not None:
        return await _one(database, ref)
    problems: list[Problem] = []
    checked = 0
    after = b""
    while True:
        async with database.read() as tx:
            rows = await tx.all("keys.scan", after=after, most=_BATCH)
            problems += await _problems(tx, rows)
        checked += sum(row.state != State.ALIAS for row in rows)
        if len(rows) < _BATCH:
            break
        after = rows[-1].key_id
        await database.clock.sleep(0)
    return VerifyReport(not problems, checked, tuple(problems))


async def _one(database: Database, ref: str) -> VerifyReport:
    async with database.read() as tx:
        found = await keys.search(tx, ref)
        if not found:
            raise IdempotencyError(f"no key has the reference {ref}", code="idempotency.unknown_key")
        if len(found) > 1:
            raise ConfigError(f"more than one key has the reference {ref}", "give more digits", code="config.key_ref")
        row = await tx.one("keys.get", key_id=found[0])
        problems = await _problems(tx, [row] if row is not None else [])
    return VerifyReport(not problems, 1, tuple(problems))


async def _problems(tx: Tx, rows: list[Row]) -> list[Problem]:
    """Check rows in the view they were read in."""
    # Read after the rows: a sequence is of the present even in an older view, so it is never behind them.
    issuer = await tx.one("keys.issued")
    issued = -1 if issuer is None else issuer.fence
    found = []
    for row in rows:
        said = [*_check(row, issued)]
        if row.state == State.ALIAS:
            said += await _check_alias(tx, row)
        elif row.owner == "" and not await _is_audited(tx, row):
            said.append(("audit", f"forced under fence {row.fence}, but no audit row says by whom"))
        found += [Problem(row.key_id.hex()[:12], "idem_keys", row.key_id.hex(), *each) for each in said]
    return found


Said = tuple[str, str]


async def _check_alias(tx: Tx, row: Row) -> list[Said]:
    target = None if row.alias_of is None else await tx.one("keys.get", key_id=row.alias_of)
    if target is None:
        return [("alias", "leads to no record")]
    return [("alias", "leads to another pointer row")] if target.state == State.ALIAS else []


async def _is_audited(tx: Tx, row: Row) -> bool:
    return any(each.fence == row.fence for each in await keys.trail(tx, row.record_id))


def _check(row: Row, issued: int) -> Iterator[Said]:
    if is_newer(row):
        yield "format", "written by a newer Holdfast, whose rules are not known here"
        return
    if row.fence > issued:
        yield "fence", f"written under fence {row.fence}, only {issued} were issued"
    try:
        state = State(row.state)
    except ValueError:
        yield "state", f"there is no state {row.state}"
        return
    if state is State.ALIAS:
        if row.fence != 0 or row.expires_at is not None or any(getattr(row, name) is not None for name in _OUTCOME):
            yield "state", "a pointer row with the columns of a record"
        return
    yield from _check_values(row)
    yield from ((("state", f"{state.name.lower()}, but {what}")) for what in _CHECKS[state](row))
    if state in (State.COMPLETED, State.TOMBSTONE):
        yield from _check_sum(row)


def _check_values(row: Row) -> Iterator[Said]:
    for name, width in _WIDTHS.items():
        if len(getattr(row, name)) != width:
            yield "value", f"{name} has {len(getattr(row, name))} bytes, not {width}"
    if row.mode not in get_args(Mode) or row.on_lapse not in get_args(Lapse) or row.irreversible not in (0, 1):
        yield "value", "its policy is none that there is"
    if row.attempt < 1 or row.fence < 1:
        yield "value", f"attempt {row.attempt} under fence {row.fence}"
    wanted = execution_id(row.record_id) if row.mode == "execution" else None
    if row.execution_id != wanted:
        yield "value", "its execution id is not that of its record id"
    if row.alias_of is not None:
        yield "value", "a record that leads to another"


def _check_sum(row: Row) -> Iterator[Said]:
    try:
        sealed = record_of(row).sealed
    except RecordUnreadable:
        return
    if sealed is not None and not check_sum(sealed):
        yield "block_sum", "status, header block and body do not have the sum they were written with"


def _open(row: Row) -> Iterator[str]:
    """What holds for every record without an outcome."""
    if any(getattr(row, name) is not None for name in _OUTCOME) or row.settled_at is not None:
        yield "it has an outcome"


def _reserved(row: Row) -> Iterator[str]:
    yield from _open(row)
    if row.owner == "":
        yield "nobody claimed it"
    if row.expires_at is None or row.reason is not None:
        yield "its retention or its reason is not that of a claim"


def _released(row: Row) -> Iterator[str]:
    yield from _open(row)
    if row.expires_at is None or row.reason is not None:
        yield "its retention or its reason is not that of a released claim"


def _unknown(row: Row) -> Iterator[str]:
    yield from _open(row)
    if row.expires_at is not None:
        yield "it expires"
    if row.reason not in get_args(UnknownReason):
        yield f"its reason is {row.reason!r}"


def _settled(row: Row) -> Iterator[str]:
    if row.status is None or row.headers is None or row.block_sum is None:
        yield "status, header block or sum is missing"
    if row.settled_at is None or row.expires_at is None:
        yield "it was settled at no time, or never expires"


def _completed(row: Row) -> Iterator[str]:
    yield from _settled(row)
    if row.body is None or row.body_bytes is None:
        yield "the body is missing"
    if row.reason is not None:
        yield f"its reason is {row.reason!r}"


def _tombstone(row: Row) -> Iterator[str]:
    yield from _settled(row)
    if row.body is not None:
        yield "it has a body"
    if row.reason not in get_args(TombstoneReason):
        yield f"its reason is {row.reason!r}"


_CHECKS: dict[State, Callable[[Row], Iterator[str]]] = {
    State.RESERVED: _reserved,
    State.COMPLETED: _completed,
    State.TOMBSTONE: _tombstone,
    State.UNKNOWN: _unknown,
    State.RELEASED: _released,
}
