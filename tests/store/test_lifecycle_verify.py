"""Receipts that nobody can change unseen: every edit is found and named. Files of receipts: out, checked, back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tests.flow.tamper import change
from tests.store.lifecycle_bench import NOW, claim, draft, emit, peek, put, receipt, settle, verified

from holdfast.core.clock import SystemClock
from holdfast.lifecycle import audit, ledger, verify, wire
from holdfast.lifecycle.documents import LifecycleReceipt
from holdfast.lifecycle.errors import ChainBroken, UndecodableDocument
from holdfast.store import open_database
from holdfast.store.database import Database
from holdfast.testing.store_contract import LocalStore

files = pytest.mark.parametrize("store", ["sqlite-file", "postgres"], indirect=True)
KEY = bytes(range(32))


async def furnish(database: Database) -> None:
    """Leave a run of three receipts, two of them settled, and a loose one."""
    for i in (1, 2):
        going = await claim(database, draft(f"k{i}", run="A", receipt_id=f"r{i}"), now=NOW + i)
        await settle(database, going, draft(f"k{i}", run="A", receipt_id=f"r{i}"), now=NOW + i)
    await emit(database, draft("k3", run="A", receipt_id="r3"), now=NOW + 3)
    await emit(database, draft("k4", receipt_id="r4"), now=NOW + 4)


# Each a statement that names nothing of a dialect; `{b}` opens and `{e}` closes a literal of bytes.
_OF = "UPDATE lifecycle_receipts SET {set} WHERE receipt_id = '{id}'"
EDITS: list[tuple[str, str, str]] = [
    *(
        (_OF.format(set=each, id="r2"), "column_mismatch", "r2")
        for each in (
            "client_id = 'ccx'", "adapter_id = 'coden'", "idempotency_key = 'k9'", "run_id = 'B'", "session_id = 's'",
            "sequence = 7", "event = 'session.ended'", "status = 'failed'", "failure_class = 'timeout'",
            "label = 'lifeloop.v0.3'", "at_epoch_s = 1800000001", "full_digest = hash", "semantic_digest = hash",
            "request_digest = hash", "origin = 'hand'", "recorded_at = recorded_at + 5", "recorded_at = 0",
            "prev_hash = full_digest", "hash = full_digest", "chain_id = '[\"run\",\"B\"]'", "chain_index = 9",
            "chain_index = 0",
        )
    ),
    ("UPDATE lifecycle_receipts SET receipt_id = 'r9' WHERE receipt_id = 'r2'", "column_mismatch", "r9"),
    (_OF.format(set="hash = full_digest", id="r3"), "column_mismatch", "r3"),
    ("DELETE FROM lifecycle_receipts WHERE receipt_id = 'r1'", "missing_row", "r2"),
    ("DELETE FROM lifecycle_receipts WHERE receipt_id = 'r2'", "missing_row", "r3"),
    ("DELETE FROM lifecycle_receipts WHERE receipt_id = 'r3'", "missing_row", "r2"),
    ("DELETE FROM lifecycle_chains WHERE run_id = 'A'", "missing_row", "r1"),
    ("UPDATE lifecycle_chains SET head_index = 2 WHERE run_id = 'A'", "head_mismatch", "r3"),
    ("UPDATE lifecycle_chains SET head_index = 4 WHERE run_id = 'A'", "head_mismatch", "r3"),
    ("UPDATE lifecycle_chains SET head_hash = base_hash WHERE run_id = 'A'", "head_mismatch", "r3"),
    ("UPDATE lifecycle_chains SET last_sequence = 2 WHERE run_id = 'A'", "counter_below_sequence", "r3"),
    ("UPDATE lifecycle_chains SET run_id = 'B' WHERE run_id = 'A'", "column_mismatch", "r3"),
    ("UPDATE lifecycle_intents SET receipt_row = 99 WHERE claim_key = 'k:k2'", "orphan_intent", "r2"),
    ("UPDATE lifecycle_intents SET claim_key = 'k:k7' WHERE claim_key = 'k:k2'", "orphan_intent", "r2"),
]  # fmt: skip


@files
@pytest.mark.parametrize(("edit", "why", "receipt_id"), EDITS)
async def test_an_edit_is_found_and_named(store: LocalStore, edit: str, why: str, receipt_id: str) -> None:
    """LA-39."""
    async with store.opened() as database:
        await furnish(database)
        assert await verified(database) == ledger.Verified(2, 4)
        await change(store.target, edit)
        found = await verified(database)
        assert isinstance(found, ChainBroken)
        assert (found.why, found.receipt_id) == (why, receipt_id)
        report = await verify.verify(database)
        assert not report.ok
        assert (report.problems[0].code, report.problems[0].receipt_id) == (why, receipt_id)


@files
@pytest.mark.parametrize(
    ("column", "old", "new", "why"),
    [
        ("body", '"evt-1"', '"evt-2"', "body_changed"),
        ("body", '"evt-1"', '"evt-1', "body_changed"),
        ("annotations", '"0.1.0"', '"0.1.1"', "annotations_changed"),
        ("annotations", '"0.1.0"', '"0.1.0', "annotations_changed"),
    ],
)
async def test_a_byte_of_what_is_linked_is_found(store: LocalStore, column: str, old: str, new: str, why: str) -> None:
    """LA-39."""
    async with store.opened() as database:
        await furnish(database)
        async with database.read() as tx:
            [found] = await ledger.show(tx, "r2")
        data = wire.encode(found.receipt) if column == "body" else found.notes
        text = data.decode()
        assert old in text
        edited = text.replace(old, new).encode().hex()
        literal = f"'\\x{edited}'::bytea" if database.dialect == "postgres" else f"x'{edited}'"
        await change(store.target, _OF.format(set=f"{column} = {literal}", id="r2"))
        broken = await verified(database)
        assert isinstance(broken, ChainBroken)
        assert (broken.why, broken.receipt_id, broken.index) == (why, "r2", 2)


@files
async def test_a_receipt_that_was_never_valid_is_named(store: LocalStore) -> None:
    async with store.opened() as database:
        bad = LifecycleReceipt(**{name: getattr(receipt(), name) for name in LifecycleReceipt.__struct_fields__})
        async with database.write() as tx:
            sheet = ledger.Sheet(tx, now=NOW)
            chain = '["loose","ccd","codex"]'
            await sheet.hold([(chain, None)])
            sheet.insert(chain, bad, wire.encode(bad).replace(b"delivered", b"failed"), b"{}", origin="emit")
            await sheet.write()
        broken = await verified(database)
        assert isinstance(broken, ChainBroken)
        assert broken.why == "body_invalid"


@files
async def test_a_receipt_written_anew_is_found_by_the_next(store: LocalStore) -> None:
    async with store.opened() as database:
        await furnish(database)
        async with database.read() as tx:
            [row] = await tx.all("receipts.chain", chain_id='["run","A"]', after=1, most=1)
        body = row.body.replace(b"evt-1", b"evt-2")
        forged = wire.decode(body, LifecycleReceipt)
        values = {
            "body": body,
            "full_digest": ledger_digest(forged),
            "semantic_digest": ledger_digest(forged, semantic=True),
            "hash": audit.link(
                row.prev_hash, index=2, recorded_at=row.recorded_at, body=body, annotations=row.annotations
            ),
        }
        sets = ", ".join(
            f"{name} = '\\x{value.hex()}'::bytea" if database.dialect == "postgres" else f"{name} = x'{value.hex()}'"
            for name, value in values.items()
        )
        await change(store.target, _OF.format(set=sets, id="r2"))
        broken = await verified(database)
        assert isinstance(broken, ChainBroken)
        assert (broken.why, broken.receipt_id) == ("body_changed", "r2")


def ledger_digest(found: LifecycleReceipt, *, semantic: bool = False) -> bytes:
    return audit.semantic_digest(found) if semantic else audit.full_digest(found)


async def test_a_chain_key_is_needed_where_there_is_one(db: Database) -> None:
    async with db.write() as tx:
        await ledger.record_one(tx, ledger.Emit(draft("k", run="A"), "strict"), now=NOW, chain_key=KEY)
    assert await verified(db, chain_key=KEY) == ledger.Verified(1, 1)
    assert isinstance(await verified(db), ChainBroken)


async def test_heads_kept_elsewhere_must_still_be_there(db: Database) -> None:
    await furnish(db)
    anchor = audit.read_heads(b"".join(await exported(db)))
    await emit(db, draft("k5", run="A", receipt_id="r5"), now=NOW + 9)
    assert isinstance(await verified(db, anchor=anchor), ledger.Verified)
    for changed in (
        audit.Head('["run","A"]', 3, "00" * 32),
        audit.Head('["run","A"]', 9, "00" * 32),
        audit.Head('["run","gone"]', 1, "00" * 32),
    ):
        assert isinstance(await verified(db, anchor=audit.Heads((changed,))), ChainBroken)
    with pytest.raises(UndecodableDocument):
        audit.read_heads(b"nothing")


async def test_one_chain_can_be_checked(db: Database) -> None:
    await furnish(db)
    assert (await verify.verify(db, "A")).checked_count == 3
    assert (await verify.verify(db, '["loose","ccd","codex"]')).checked_count == 1
    assert (await verify.verify(db, "nothing")).checked_count == 0


# --- files --------------------------------------------------------------------------------------------


async def exported(database: Database, run_id: str | None = None) -> list[bytes]:
    async with database.read() as tx:
        return [line async for line in ledger.export(tx, run_id)]


async def replayed(database: Database, lines: list[bytes]) -> ledger.ReplayCounts:
    async with database.write() as tx:
        return await ledger.replay(tx, lines, now=NOW + 100)


@asynccontextmanager
async def another() -> AsyncIterator[Database]:
    database = await open_database(":memory:", clock=SystemClock())
    try:
        yield database
    finally:
        await database.close()


async def test_a_file_goes_out_and_comes_back(db: Database) -> None:
    """LA-44."""
    await furnish(db)
    lines = await exported(db)
    assert len(lines) == 6
    assert ledger.verify_file(lines) == ledger.Verified(2, 4)
    assert len(await exported(db, "A")) == 5
    assert len(await exported(db, "none")) == 2
    async with another() as other:
        first = await replayed(other, lines)
        assert (first.inserted, first.replayed, first.conflicts, first.gaps) == (4, 0, (), ())
        again = await replayed(other, lines)
        assert (again.inserted, again.replayed) == (0, 4)
        assert await peek(other, "A") == 3
        async with db.read() as tx, other.read() as copy:
            mine, theirs = [await ledger.list_receipts(each) for each in (tx, copy)]
        assert {each.receipt.receipt_id: (each.receipt, each.notes) for each in mine} == {
            each.receipt.receipt_id: (each.receipt, each.notes) for each in theirs
        }
        assert (await verify.verify(other)).ok
        await emit(other, draft("other", run="B", receipt_id="x"))
    async with another() as other:
        await emit(other, draft("k2", run="A", receipt_id="else"))
        # The number 1 is taken by `else`, and so is the key.
        assert [each.stored_receipt_id for each in (await replayed(other, lines)).conflicts] == ["else", "else"]


async def test_a_pruned_chain_goes_out_as_well(db: Database) -> None:
    await furnish(db)
    async with db.write() as tx:
        await ledger.prune(tx, before=NOW + 100, now=NOW)
    await emit(db, draft("k9", run="A", receipt_id="r9"))
    assert ledger.verify_file(await exported(db)) == ledger.Verified(1, 1)


async def test_a_gap_in_a_file_is_told_of_once(db: Database) -> None:
    """LA-40."""
    async with another() as other:
        for number in (1, 2, 5):
            await put(other, receipt(receipt_id=f"r{number}", harness_run_id="A", sequence=number))
        lines = await exported(other)
    told = await replayed(db, lines)
    [gap] = told.gaps
    assert (gap.event, gap.sequence, gap.harness_run_id, gap.status) == ("receipt.gap_detected", None, None, "observed")
    assert "3 to 4" in gap.warnings[0]["message"]
    assert (await replayed(db, lines)).gaps == ()
    assert (await verify.verify(db)).ok


@pytest.mark.parametrize("lines", [[], [b"x\n"], [b'{"format":"other"}\n'], [b'{"format":"holdfast.receipts.v1"}\n']])
async def test_what_is_no_file_of_receipts_is_refused(db: Database, lines: list[bytes]) -> None:
    with pytest.raises(UndecodableDocument):
        ledger.verify_file(lines)
    with pytest.raises(UndecodableDocument):
        await replayed(db, lines)


@pytest.fixture(scope="module")
def file() -> bytes:
    async def make() -> bytes:
        async with another() as database:
            await furnish(database)
            return b"".join(await exported(database))

    return asyncio.run(make())


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_byte_of_a_file_breaks_it(file: bytes, data: st.DataObject) -> None:
    """LA-44."""
    at = data.draw(st.integers(0, len(file) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != file[at]))
    edited = file[:at] + bytes([byte]) + file[at + 1 :]
    try:
        found: Any = ledger.verify_file(edited.splitlines(keepends=True))
    except UndecodableDocument:
        return
    assert isinstance(found, ChainBroken)


# --- any byte -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bytes") / "ledger.db"

    async def make() -> None:
        database = await open_database(str(path), clock=SystemClock())
        await furnish(database)
        await database.close()

    asyncio.run(make())
    return path


_LOOK = "SELECT {} FROM lifecycle_receipts WHERE id = ?"
_CHANGE = "UPDATE lifecycle_receipts SET {} = ? WHERE id = ?"
COVERED = [
    "chain_id", "chain_index", "receipt_id", "client_id", "adapter_id", "idempotency_key", "run_id", "sequence",
    "event", "status", "label", "at_epoch_s", "body", "annotations", "full_digest", "semantic_digest",
    "request_digest", "origin", "recorded_at", "prev_hash", "hash",
]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_byte_of_a_row_breaks_its_chain(furnished: Path, data: st.DataObject) -> None:
    """LA-39."""
    break_a_byte(furnished, data)


@pytest.mark.torture
@settings(max_examples=2_000, deadline=None)
@given(data=st.data())
def test_any_byte_of_any_row_breaks_its_chain(furnished: Path, data: st.DataObject) -> None:
    """LA-39."""
    break_a_byte(furnished, data)


def break_a_byte(furnished: Path, data: st.DataObject) -> None:
    """Change one byte, or one bit of a number, of what the chain covers or repeats, and have it found."""
    column = data.draw(st.sampled_from(COVERED))
    row = data.draw(st.integers(1, 2))
    connection = apsw.Connection(str(furnished))
    [(before,)] = connection.execute(_LOOK.format(column), (row,))
    connection.close()
    edited = _edited(data, before)

    async def check() -> Any:
        try:
            await _set(furnished, column, row, edited)
        except apsw.ConstraintError:
            reject()
        database = await open_database(str(furnished), clock=SystemClock())
        try:
            return await verified(database)
        finally:
            await database.close()
            await _set(furnished, column, row, before)

    assert isinstance(asyncio.run(check()), ChainBroken)


def _edited(data: st.DataObject, before: Any) -> Any:
    if isinstance(before, int):
        return before ^ (1 << data.draw(st.integers(0, 40)))
    raw = before if isinstance(before, bytes) else before.encode()
    at = data.draw(st.integers(0, len(raw) - 1))
    if isinstance(before, bytes):
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != raw[at]))
        return raw[:at] + bytes([byte]) + raw[at + 1 :]
    char = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda char: char != before[at]))
    return before[:at] + char + before[at + 1 :]


async def _set(path: Path, column: str, row: int, value: Any) -> None:
    connection = apsw.Connection(str(path))
    connection.execute(_CHANGE.format(column), (value, row))
    connection.close()
