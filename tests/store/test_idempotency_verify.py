"""`verify` on keys: a sound ledger is left in peace, a broken row is named."""

from __future__ import annotations

import re

import pytest
from tests.flow.tamper import change, is_postgres

from holdfast.core.errors import ConfigError
from holdfast.idempotency import keys
from holdfast.idempotency.errors import IdempotencyError
from holdfast.idempotency.machine import DecideOutcome, DecideRerun, ForceExpire, ForceRelease
from holdfast.idempotency.verify import Problem, verify
from holdfast.store.database import Database
from holdfast.testing.key_contract.bench import COLUMNS, LEASE, NOW, RESPONSE, STREAMED, TTL, Bench, Column, Subject
from holdfast.testing.store_contract import LocalStore

shared = pytest.mark.parametrize("store", ["sqlite-file", "postgres"], indirect=True)


@pytest.fixture
def bench(db: Database) -> Bench:
    return Bench(db)


async def furnish(bench: Bench) -> dict[str, Subject]:
    """Leave a record of every column, those of forced actions, and one with a pointer."""
    made = {column: await bench.make(column) for column in COLUMNS if column != "absent"}
    forced: dict[str, tuple[Column, keys.Action]] = {
        "again": ("unknown", DecideRerun()),
        "result": ("unknown", DecideOutcome(RESPONSE)),
        "gone": ("unknown", DecideOutcome(STREAMED)),
        "let go": ("live", ForceRelease()),
        "ended": ("completed", ForceExpire()),
    }
    for name, (column, action) in forced.items():
        made[name] = await bench.make(column)
        async with bench.database.write() as tx:
            assert await keys.force(tx, made[name].key_id, action, actor="ops", reason="test", now=NOW)
    rotated = bench.claim(key_ids=(b"n" * 16, b"o" * 16), scope_ids=(b"n" * 16, b"o" * 16))
    async with bench.database.write() as tx:
        await keys.claim(tx, rotated, lease_until=NOW + LEASE, expires_at=NOW + TTL, now=NOW)
    made["rotated"] = Subject(rotated, 0)
    return made


async def test_a_sound_ledger_has_no_problem(bench: Bench) -> None:
    made = await furnish(bench)
    report = await verify(bench.database)
    assert report.problems == ()
    assert (report.ok, report.checked_count) == (True, len(made))
    one = await verify(bench.database, made["completed"].key_id.hex()[:12])
    assert (one.ok, one.checked_count) == (True, 1)
    through = await verify(bench.database, (b"o" * 16).hex())
    assert (through.ok, through.checked_count) == (True, 1)


async def test_an_empty_ledger_has_no_problem(db: Database) -> None:
    assert (await verify(db)).checked_count == 0


async def test_many_rows_are_read_in_pages(bench: Bench) -> None:
    for _ in range(120):
        await bench.make("completed")
    assert (await verify(bench.database)).checked_count == 120


async def test_a_reference_must_mean_one_key(bench: Bench) -> None:
    await furnish(bench)
    with pytest.raises(ConfigError):
        await verify(bench.database, "ffff")
    with pytest.raises(IdempotencyError, match="no key"):
        await verify(bench.database, "ffffffff")
    for tail in (b"\x00", b"\x01"):
        claim = bench.claim(key_ids=(b"twin" * 3 + b"abc" + tail,))
        await keys.claim(bench.calls, claim, lease_until=NOW + LEASE, expires_at=NOW + TTL, now=NOW)
    with pytest.raises(ConfigError, match="more than one"):
        await verify(bench.database, b"twin".hex())


BROKEN: list[tuple[Column, str, str]] = [
    ("completed", "body = '{other}'", "block_sum"),
    ("completed", "status = 202", "block_sum"),
    ("completed", "headers = '{zero}'", "block_sum"),
    ("completed", "body = NULL", "state"),
    ("completed", "block_sum = NULL", "state"),
    ("completed", "reason = 'stream'", "state"),
    ("completed", "settled_at = NULL", "state"),
    ("completed", "state = 3", "state"),
    ("tombstone", "reason = 'nothing'", "state"),
    ("tombstone", "state = 2", "state"),
    ("live", "state = 2", "state"),
    ("live", "status = 200", "state"),
    ("live", "expires_at = NULL", "state"),
    ("live", "owner = ''", "state"),
    ("live", "state = 9", "state"),
    ("live", "state = 0", "state"),
    ("live", "attempt = 0", "value"),
    ("live", "mode = 'fast'", "value"),
    ("live", "on_lapse = 'shrug'", "value"),
    ("live", "irreversible = 2", "value"),
    ("live", "execution_id = 'idem_'", "value"),
    ("live", "claim_id = '{zero}'", "value"),
    ("live", "fingerprint = '{zero}'", "value"),
    ("live", "alias_of = key_id", "value"),
    ("live", "format = 2", "format"),
    ("completed", "codec = 2", "format"),
    ("execution", "execution_id = NULL", "value"),
    ("unknown", "expires_at = 1", "state"),
    ("unknown", "reason = NULL", "state"),
    ("unknown", "body = '{zero}'", "state"),
    ("released", "expires_at = NULL", "state"),
    ("released", "reason = 'raised'", "state"),
    ("released", "owner = ''", "audit"),
    ("completed", "owner = ''", "audit"),
]


@shared
async def test_a_broken_row_is_named(store: LocalStore, bench: Bench) -> None:
    wrong = {}
    for name, assignment, code in BROKEN:
        subject = await bench.make(name)
        await tamper(store.target, assignment, subject.key_id)
        report = await verify(bench.database, subject.key_id.hex())
        codes = {each.code for each in report.problems}
        places = {(each.key_ref, each.table, each.row) for each in report.problems}
        ref = subject.key_id.hex()
        if report.ok or code not in codes or places != {(ref[:12], "idem_keys", ref)}:
            wrong[name, assignment] = report
        await bench.database.clock.sleep(0)
    assert wrong == {}
    everything = await verify(bench.database)
    assert everything.checked_count >= len(BROKEN) - 1
    assert isinstance(everything.problems[0], Problem)


@shared
async def test_a_fence_that_was_never_issued_is_named(store: LocalStore, bench: Bench) -> None:
    subject = await bench.make("live")
    assert (await verify(bench.database)).ok
    if is_postgres(store.target):
        await change(store.target, "ALTER SEQUENCE idem_fence RESTART WITH 1")
    else:
        await change(store.target, "UPDATE holdfast_ledger SET value = 0 WHERE name = 'idem_fence'")
    report = await verify(bench.database)
    assert [(each.code, each.row) for each in report.problems] == [("fence", subject.key_id.hex())]


@shared
@pytest.mark.parametrize("what", ["gone", "pointer"])
async def test_a_pointer_to_no_record_is_named(store: LocalStore, bench: Bench, what: str) -> None:
    await furnish(bench)
    pointed = b"x" * 16 if what == "gone" else b"o" * 16
    await tamper(store.target, f"alias_of = '{{{pointed.hex()}}}'", b"o" * 16)
    report = await verify(bench.database)
    assert [(each.code, each.row) for each in report.problems] == [("alias", (b"o" * 16).hex())]


@shared
async def test_an_audit_row_that_is_gone_is_missed(store: LocalStore, bench: Bench) -> None:
    made = await furnish(bench)
    await change(store.target, "DELETE FROM idem_audit")
    report = await verify(bench.database)
    forced = {made[name].key_id.hex() for name in ("again", "result", "gone", "let go", "ended")}
    assert {each.row for each in report.problems if each.code == "audit"} == forced
    assert len(report.problems) == 5


async def tamper(target: str, assignment: str, key_id: bytes) -> None:
    """Set a column of a row. Bytes are written `'{hex}'`, and `'{zero}'` or `'{other}'`."""

    def quoted(value: bytes) -> str:
        return f"'\\x{value.hex()}'" if is_postgres(target) else f"x'{value.hex()}'"

    known = {"zero": bytes(3), "other": b"other"}
    text = re.sub(r"'\{(\w+)\}'", lambda found: quoted(known.get(found[1]) or bytes.fromhex(found[1])), assignment)
    await change(target, f"UPDATE idem_keys SET {text} WHERE key_id = {quoted(key_id)}")  # noqa: S608 - a test's own
