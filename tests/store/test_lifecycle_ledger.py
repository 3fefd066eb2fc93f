"""Receipts in the ledger, on every database (LA-46): identity, numbers, replays, conflicts, claims, recovery."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.store.lifecycle_bench import (
    DELIVERED,
    LEASE,
    NOW,
    claim,
    context,
    draft,
    emit,
    peek,
    plan,
    put,
    receipt,
    settle,
    verified,
)
from tests.store.processes import Program

from holdfast.core import points
from holdfast.lifecycle import errors, ledger, verify
from holdfast.lifecycle.documents import ReceiptKey
from holdfast.lifecycle.sequencer import Sequencer
from holdfast.store.database import Database
from holdfast.testing.store_contract import LocalStore

files = pytest.mark.parametrize("store", ["sqlite-file", "postgres"], indirect=True)


def names(found: Any) -> list[str]:
    assert isinstance(found, ledger.Conflict)
    return [field.name for field in found.fields]


async def rows(database: Database) -> list[ledger.Stored]:
    async with database.read() as tx:
        return await ledger.list_receipts(tx, limit=1000)


# --- numbers and identity -----------------------------------------------------------------------------


async def test_runs_count_for_themselves(db: Database) -> None:
    """LA-31."""
    made = [await emit(db, draft(f"k{i}", run=name, receipt_id=f"r{i}")) for i, name in enumerate(["A", "B", "A"])]
    assert [each.receipt.sequence for each in made] == [1, 1, 2]
    assert (await emit(db, draft("k9"))).receipt.sequence is None
    assert (await peek(db, "A"), await peek(db, "B"), await peek(db, "C")) == (2, 1, 0)
    assert await verified(db) == ledger.Verified(3, 4)


async def test_a_replay_takes_no_number(db: Database) -> None:
    """LA-32."""
    first = await emit(db, draft("k", run="A"))
    again = await emit(db, draft("k", run="A"))
    assert isinstance(again, ledger.Replayed)
    assert again.receipt == first.receipt
    assert (await emit(db, draft("k2", run="A", receipt_id="r2"))).receipt.sequence == 2


async def test_a_prior_lends_its_number_even_when_it_has_none(db: Database) -> None:
    loose = receipt(idempotency_key="k", harness_run_id="A", sequence=None)
    assert isinstance(await put(db, loose), ledger.Inserted)
    found = await emit(db, draft("k", run="A", receipt_id="rcp-1", at_epoch_s=loose.at_epoch_s))
    assert isinstance(found, ledger.Replayed)
    assert await peek(db, "A") == 0


async def test_a_key_belongs_to_client_and_adapter(db: Database) -> None:
    """LA-33."""
    await emit(db, draft("k"))
    assert isinstance(await emit(db, draft("k", client_id="other")), ledger.Inserted)
    other = receipt(idempotency_key="k", adapter_id="claude", receipt_id="r3")
    assert isinstance(await put(db, other), ledger.Inserted)


async def test_a_retry_differs_in_strict_mode_only(db: Database) -> None:
    """LA-34."""
    await emit(db, draft("k", run="A"))
    retry = draft("k", run="A", receipt_id="rcp-2", at_epoch_s=1_800_000_007)
    assert isinstance(await emit(db, retry, mode="semantic"), ledger.Replayed)
    found = await emit(db, retry)
    assert names(found) == ["receipt_id", "at_epoch_s"]
    assert found.error().fields == ("receipt_id", "at_epoch_s")
    assert len(await rows(db)) == 1


async def test_without_a_key_the_receipt_id_tells(db: Database) -> None:
    await emit(db, draft(run="A"))
    assert isinstance(await emit(db, draft(run="A")), ledger.Replayed)
    assert isinstance(await emit(db, draft(run="A", receipt_id="rcp-2")), ledger.Inserted)
    assert isinstance(await emit(db, draft("k", run="A")), ledger.Inserted)


async def test_a_conflict_leaves_nothing(db: Database) -> None:
    await emit(db, draft("k", run="A"))
    assert isinstance(await emit(db, draft("k", run="B")), ledger.Conflict)
    async with db.read() as tx:
        assert [row.run_id for row in await tx.all("chains.list", after="", most=10)] == ["A"]


async def test_an_invalid_receipt_leaves_no_gap(db: Database) -> None:
    """LA-36, LA-6."""
    with pytest.raises(errors.ReceiptInvalid):
        await emit(db, draft("k", run="A", receipt_id=""))
    with pytest.raises(errors.ReceiptInvalid):
        await emit(db, draft("k", run="A", receipt_id="a\0b"))
    with pytest.raises(errors.ReceiptEmittedNotEmittable):
        ledger.Emit(ledger.Draft(plan(event="receipt.emitted"), None, context()), "strict")
    assert await peek(db, "A") == 0
    assert (await emit(db, draft("k", run="A"))).receipt.sequence == 1


async def test_what_was_put_comes_back(db: Database) -> None:
    offered = receipt(idempotency_key="k", harness_run_id="A", sequence=5, warnings=[{"x": 1.0}])
    await put(db, offered)
    async with db.read() as tx:
        assert await ledger.get(tx, ReceiptKey("ccd", "codex", "k")) == offered
        assert await ledger.get(tx, ReceiptKey("ccd", "codex", "none")) is None
        assert await ledger.get(tx, ReceiptKey("ccd", "codex", "\0")) is None
        assert [each.receipt for each in await ledger.show(tx, "rcp-1")] == [offered]
        assert [each.receipt for each in await ledger.list_receipts(tx, run_id="A", event=offered.event)] == [offered]
        assert await ledger.list_receipts(tx, client_id="nobody") == []
    assert await peek(db, "A") == 5


async def test_a_number_is_held_by_one_receipt(db: Database) -> None:
    await put(db, receipt(receipt_id="r1", harness_run_id="A", sequence=2))
    found = await put(db, receipt(receipt_id="r2", harness_run_id="A", sequence=2))
    assert names(found) == ["sequence"]
    assert found.stored_receipt_id == "r1"
    async with db.read() as tx:
        assert (await ledger.peek_sequence(tx, "A"), await ledger.peek_sequence(tx, "new")) == (2, 0)
    with pytest.raises(errors.ReceiptInvalid):
        async with db.write() as tx:
            await ledger.put(tx, ReceiptKey("x", "codex", "k"), receipt(), mode="strict", now=NOW)


async def test_a_counter_moved_by_hand_leaves_a_gap(db: Database) -> None:
    await emit(db, draft("k", run="A"))
    async with db.write() as tx:
        assert await ledger.next_sequence(tx, "A", now=NOW) == 2
        assert await ledger.next_sequence(tx, "N", now=NOW) == 1
    await emit(db, draft("k2", run="A", receipt_id="r2"))
    async with db.read() as tx:
        assert await ledger.gaps(tx) == [ledger.Gap("A", 2, 2), ledger.Gap("N", 1, 1)]
        assert await ledger.gaps(tx, "A") == [ledger.Gap("A", 2, 2)]


@files
async def test_processes_share_a_counter(store: LocalStore) -> None:
    """LA-37."""
    async with store.opened() as database:
        await emit(database, draft("k", run="A"))
    with Program("emit", store.target, "A", "one", 20) as one, Program("emit", store.target, "A", "two", 20) as two:
        said = [*one.finish(), *two.finish()]
    assert sorted(map(int, said)) == list(range(2, 42))
    async with store.opened() as database:
        assert await peek(database, "A") == 41
        assert await verified(database) == ledger.Verified(1, 41)


# --- sharing transactions -----------------------------------------------------------------------------


async def test_many_callers_share_a_transaction(db: Database) -> None:
    told: list[Any] = []
    sequencer = Sequencer(db, told=told.append)
    bad = draft("bad", run="A", receipt_id="")
    offered = [draft(f"k{i}", run=f"run{i % 3}", receipt_id=f"r{i}") for i in range(300)]
    found = await asyncio.gather(
        *(sequencer.emit(each, mode="strict") for each in [*offered, bad]), return_exceptions=True
    )
    assert isinstance(found.pop(), errors.ReceiptInvalid)
    assert all(isinstance(each, ledger.Inserted) for each in found)
    assert len(told) == 300
    assert [await peek(db, f"run{i}") for i in range(3)] == [100, 100, 100]
    assert (await verify.verify(db)).ok
    await sequencer.stop()


async def test_a_row_that_the_database_refuses_fails_alone(db: Database) -> None:
    """PostgreSQL refuses a key too long for its index; SQLite takes keys of any size."""
    sequencer = Sequencer(db)
    huge = draft("".join(chr(0x4E00 + i * 7919 % 20000) for i in range(9000)), run="A", receipt_id="huge")
    offered = [draft(f"k{i}", run="A", receipt_id=f"r{i}") for i in range(5)]
    found = await asyncio.gather(
        *(sequencer.emit(each, mode="strict") for each in [huge, *offered]), return_exceptions=True
    )
    first = 1
    if db.dialect == "sqlite":
        assert isinstance(found[0], ledger.Inserted)
        first = 2
    else:
        assert isinstance(found[0], Exception)
    numbers = [each.receipt.sequence for each in found[1:] if isinstance(each, ledger.Inserted)]
    assert numbers == list(range(first, first + 5))


@files
async def test_one_key_on_two_chains_at_once_is_one_receipt(store: LocalStore) -> None:
    async with store.opened() as one, store.opened() as two:
        first, second = Sequencer(one), Sequencer(two)
        for i in range(10):
            found = await asyncio.gather(
                first.emit(draft(f"k{i}", run=f"A{i}"), mode="strict"),
                second.emit(draft(f"k{i}", run=f"B{i}"), mode="strict"),
            )
            assert sorted(type(each).__name__ for each in found) == ["Conflict", "Inserted"]
        assert isinstance(await verified(one), ledger.Verified)


@pytest.mark.parametrize("point", ["lifecycle.settling", "lifecycle.settled"])
async def test_a_crash_while_settling_leaves_all_or_nothing(db: Database, point: str) -> None:
    sequencer = Sequencer(db)
    asked = draft("k", run="A")
    lease = ledger.Lease("me", NOW + 2**50)
    going = await sequencer.claim(ledger.Claim(asked.negotiated, asked.context, lease, mode="strict"))
    assert isinstance(going, ledger.Proceed)
    entry = points.arm(point, action=_stop)
    try:
        with pytest.raises(_Stop):
            await sequencer.settle(going.intent, going.fence, asked)
    finally:
        points.disarm(entry)
    assert await peek(db, "A") == (point == "lifecycle.settled")
    assert (await verify.verify(db)).ok


class _Stop(BaseException):
    pass


def _stop() -> None:
    raise _Stop


# --- claims -------------------------------------------------------------------------------------------


async def test_a_claim_is_settled_with_its_receipt(db: Database) -> None:
    """LA-41."""
    going = await claim(db, draft("k", run="A"))
    assert (going.fence, going.attempts) == (1, 1)
    async with db.read() as tx:
        [left] = await ledger.pending(tx)
    assert (left.key, left.receipt_id, left.event) == ("k", "rcp-1", "session.started")
    assert await claim(db, draft("k", run="A")) == ledger.InFlight(NOW + LEASE)
    found = await settle(db, going, draft("k", run="A"))
    assert isinstance(found, ledger.Inserted)
    assert found.stored.annotations is not None
    assert found.stored.annotations.attempts == 1
    replay = await claim(db, draft("k", run="A"))
    assert isinstance(replay, ledger.Replay)
    assert replay.receipt == found.receipt
    assert replay.stored.response == DELIVERED
    async with db.read() as tx:
        assert await ledger.pending(tx) == []
    assert (await verify.verify(db)).ok


async def test_a_claim_of_something_else_is_a_conflict(db: Database) -> None:
    going = await claim(db, draft("k"))
    other = ledger.Draft(plan(idempotency_key="k", event_id="evt-2"), DELIVERED, context())
    assert names(await claim(db, other)) == ["request"]
    await settle(db, going, draft("k"))
    assert names(await claim(db, other)) == ["event_id"]
    retry = draft("k", receipt_id="rcp-2")
    assert names(await claim(db, retry, mode="strict")) == ["receipt_id"]
    assert isinstance(await claim(db, retry), ledger.Replay)


async def test_a_prior_without_a_digest_is_compared_by_its_fields(db: Database) -> None:
    await emit(db, draft("k", run="A"))
    assert isinstance(await claim(db, draft("k", run="A")), ledger.Replay)
    assert names(await claim(db, draft("k", run="B"))) == ["harness_run_id"]


async def test_a_dead_claim_is_closed_for_who_comes_next(db: Database) -> None:
    """LA-42."""
    going = await claim(db, draft("k", run="A"))
    later = NOW + LEASE
    found = await claim(db, draft("k", run="A"), now=later)
    assert isinstance(found, ledger.Replay)
    assert (found.receipt.status, found.receipt.failure_class) == ("failed", "state_conflict")
    assert (found.receipt.retry_class, found.receipt.sequence) == ("retry_after_reread", 1)
    assert found.receipt.warnings[-1]["code"] == "outcome_unknown"
    assert found.stored.annotations is not None
    assert found.stored.annotations.outcome_unknown
    assert found.stored.response is None
    late = await settle(db, going, draft("k", run="A"), now=later)
    assert isinstance(late, ledger.Lost)
    assert late.stored is not None
    assert late.stored.receipt == found.receipt
    async with db.read() as tx:
        row = await tx.one("intents.get", id=going.intent)
    assert row is not None
    assert b'"status":"delivered"' in row.late
    assert (await verify.verify(db)).ok


async def test_a_dead_claim_can_be_made_again(db: Database) -> None:
    """LA-43."""
    first = await claim(db, draft("k", run="A"))
    later = NOW + LEASE
    again = await claim(db, draft("k", run="A"), now=later, ambiguous="rerun")
    assert (again.fence, again.attempts) == (2, 2)
    assert await settle(db, first, draft("k", run="A"), now=later) == ledger.Lost(None, later + LEASE)
    found = await settle(db, again, draft("k", run="A"), now=later)
    assert found.stored.annotations.attempts == 2
    lost = await settle(db, first, draft("k", run="A"), now=later)
    assert lost.stored.receipt == found.receipt


async def test_recovery_closes_dead_claims(db: Database) -> None:
    """LA-42."""
    for i in range(3):
        await claim(db, draft(f"k{i}", run="A", receipt_id=f"r{i}"))
    live = await claim(db, draft("live", run="A", receipt_id="live"), now=NOW + 5)
    await emit(db, draft("k1", run="A", receipt_id="r1"))
    later = NOW + LEASE
    async with db.write() as tx:
        assert await ledger.recover(tx, now=later, intent=live.intent) == []
        closed = await ledger.recover(tx, now=later)
    assert sorted((each.receipt_id, each.sequence) for each in closed) == [("r0", 2), ("r2", 3)]
    async with db.write() as tx:
        assert await ledger.recover(tx, now=later) == []
        assert await ledger.renew(tx, live.intent, live.fence, later + 7)
        assert await ledger.expire(tx, "me") == 1
    assert len(await Sequencer(db).recover()) == 1
    assert (await verify.verify(db)).ok


async def test_an_event_recorded_without_a_claim_stands(db: Database) -> None:
    going = await claim(db, draft("k", run="A"))
    stored = await emit(db, draft("k", run="A"))
    lost = await settle(db, going, draft("k", run="A"))
    assert isinstance(lost, ledger.Lost)
    assert lost.stored is not None
    assert lost.stored.receipt == stored.receipt
    async with db.read() as tx:
        assert await ledger.pending(tx) == []


# --- pruning ------------------------------------------------------------------------------------------


async def test_a_pruned_chain_goes_on(db: Database) -> None:
    """LA-45."""
    going = await claim(db, draft("k1", run="A"))
    await settle(db, going, draft("k1", run="A"))
    await emit(db, draft("k2", run="A", receipt_id="r2"), now=NOW + 1)
    await emit(db, draft("k3", run="B", receipt_id="r3"), now=NOW + 50)
    async with db.write() as tx:
        assert await ledger.prune(tx, before=NOW + 10, now=NOW + 60) == ledger.Pruned(1, 2)
    assert await verified(db) == ledger.Verified(2, 1)
    async with db.read() as tx:
        assert await ledger.gaps(tx) == []
    again = await claim(db, draft("k1", run="A"))
    assert isinstance(again, ledger.Proceed)
    assert (await settle(db, again, draft("k1", run="A"))).receipt.sequence == 3
    assert await verified(db) == ledger.Verified(2, 2)
    async with db.read() as tx:
        assert await ledger.gaps(tx) == []
