"""Events go through the router: claimed, asked about and settled once, whoever comes twice, late or all at once."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.unit.plans import context, payload, request, response

from holdfast import ConfigError
from holdfast.core.clock import SystemClock
from holdfast.core.errors import Unavailable
from holdfast.lifecycle import (
    AdapterIdNotFound,
    AdapterVersionMismatch,
    CallbackRequest,
    CallbackResponse,
    CapabilityRequirement,
    Command,
    Dispatched,
    EmptyField,
    EventInFlight,
    InvalidPayloadRef,
    LifecycleReceipt,
    PayloadEnvelope,
    PayloadRef,
    ReceiptConflict,
    ReceiptEmittedNotEmittable,
    Registry,
    Router,
    SchemaVersionMismatch,
    failure_of,
)
from holdfast.lifecycle import ledger as receipts
from holdfast.lifecycle.ledger import Inserted, Replayed
from holdfast.store import Database, StoreSettings, open_database
from holdfast.testing import crash
from holdfast.testing.boundaries import CrashingDatabase, Where

ROOT = Path(__file__).parents[2]
SECOND = timedelta(seconds=1)


class Client:
    """Counts how often it is asked, and may wait before it answers."""

    def __init__(self, answer: CallbackResponse | None = None, *, waits: bool = False) -> None:
        self.answer = answer if answer is not None else response()
        self.calls: list[tuple[CallbackRequest, tuple[PayloadEnvelope, ...]]] = []
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()
        if not waits:
            self.let_go.set()

    async def __call__(self, about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse | None:
        self.calls.append((about, payloads))
        self.asked.set()
        await self.let_go.wait()
        return self.answer


def router_on(database: Database, **settings: Any) -> Router:
    return Router(database, registry=Registry.builtin(), clock=database.clock, **settings)


@pytest.fixture
async def router(db: Database) -> AsyncIterator[Router]:
    async with router_on(db) as router:
        yield router


async def everything(database: Database) -> list[LifecycleReceipt]:
    async with database.read() as tx:
        return [stored.receipt for stored in reversed(await receipts.list_receipts(tx))]


async def pending(database: Database) -> list[receipts.Pending]:
    async with database.read() as tx:
        return await receipts.pending(tx)


async def intact(database: Database) -> None:
    async with database.read() as tx:
        assert isinstance(await receipts.verify(tx), receipts.Verified)


# --- one event ----------------------------------------------------------------------------------------


async def test_a_client_is_asked_and_its_answer_recorded(router: Router, db: Database) -> None:
    wanted = payload(("pre_prompt_frame", "required"))
    client = Client(response("delivered", receipt_refs=("theirs-1",)))
    made = await router.dispatch(request(), client=client, context=context(), payloads=[wanted])
    assert client.calls == [(request(), (wanted,))]
    assert isinstance(made.outcome, Inserted)
    assert (made.receipt.status, made.receipt.sequence, made.response) == ("delivered", 1, client.answer)
    assert made.error is None
    assert made.annotations is not None
    assert (made.annotations.dispatched, made.annotations.attempts) == (True, 1)
    assert await everything(db) == [made.receipt]
    assert await pending(db) == []
    await intact(db)


async def test_a_client_that_says_nothing_has_observed(router: Router) -> None:
    async def silent(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> None:
        return None

    made = await router.dispatch(request(), client=silent, context=context())
    assert (made.receipt.status, made.response) == ("observed", None)


async def test_an_event_without_a_client_is_observed(router: Router, db: Database) -> None:
    made = await router.dispatch(request(), client=None, context=context())
    assert (made.receipt.status, made.response) == ("observed", None)
    assert made.annotations is not None
    assert not made.annotations.dispatched
    again = await router.dispatch(request(), client=None, context=context())
    assert (again.receipt, type(again.outcome)) == (made.receipt, Replayed)
    assert len(await everything(db)) == 1


@pytest.mark.parametrize("label", ["lifeloop.v0.1", "lifeloop.v0.2", "lifeloop.v0.3"])
async def test_a_receipt_has_its_request_s_label(router: Router, label: str) -> None:
    """LA-3."""
    made = await router.dispatch(
        request(schema_version=label), client=Client(response(schema_version=label)), context=context()
    )
    assert (made.receipt.schema_version, made.receipt.status) == (label, "delivered")


@pytest.mark.parametrize(
    ("about", "payloads", "error"),
    [
        (request(schema_version="lifeloop.v0"), [], SchemaVersionMismatch),
        (request(), [payload(("receipt_only", "optional"), schema_version="lifeloop.v0.2")], SchemaVersionMismatch),
        (request(adapter_id="nobody"), [], AdapterIdNotFound),
        (request(adapter_version="9.9.9"), [], AdapterVersionMismatch),
        (request(event="receipt.emitted", idempotency_key=None), [], ReceiptEmittedNotEmittable),
    ],
)
async def test_a_request_that_cannot_be_routed_reaches_neither_client_nor_ledger(
    router: Router, db: Database, about: CallbackRequest, payloads: list[PayloadEnvelope], error: type[Exception]
) -> None:
    """LA-3, LA-6, LA-13."""
    client = Client()
    with pytest.raises(error) as caught:
        await router.dispatch(about, client=client, context=context(), payloads=payloads)
    with pytest.raises(error):
        await router.emit(about, response(schema_version=about.schema_version), context(), payloads=payloads)
    if error in (AdapterIdNotFound, AdapterVersionMismatch):
        assert failure_of(caught.value)[0] == "adapter_unavailable"
    assert (client.calls, await everything(db), await pending(db)) == ([], [], [])


async def test_the_bad_one_of_several_payload_references_is_named(router: Router) -> None:
    """LA-14."""
    refs = tuple(PayloadRef(payload_id=name, payload_kind="k") for name in ("a", "b", "", "d"))
    with pytest.raises(InvalidPayloadRef) as caught:
        await router.dispatch(request(payload_refs=refs), client=None, context=context())
    assert caught.value.index == 2


async def test_a_context_that_breaks_a_rule_is_refused_before_the_client_is_asked(router: Router) -> None:
    client = Client()
    with pytest.raises(EmptyField):
        await router.dispatch(request(), client=client, context=context(receipt_id=""))
    assert client.calls == []


async def test_an_alias_is_stored_under_the_adapter_s_own_id(router: Router) -> None:
    """LA-15."""
    client = Client()
    made = await router.dispatch(request(adapter_id="claude_code"), client=client, context=context())
    assert made.receipt.adapter_id == client.calls[0][0].adapter_id == "claude"


async def test_a_plan_that_is_blocked_never_starts_the_client(router: Router, db: Database) -> None:
    """LA-27."""
    client = Client()
    need = CapabilityRequirement(capability="session_rename", level="required", desired="native")
    made = await router.dispatch(request(), client=client, context=context(), requirements=[need])
    assert client.calls == []
    assert (made.receipt.status, made.receipt.failure_class) == ("failed", "capability_unsupported")
    assert await everything(db) == [made.receipt]
    assert await pending(db) == []


async def test_a_payload_without_a_place_stays_here(router: Router) -> None:
    fits = payload(("pre_prompt_frame", "preferred"), payload_id="fits")
    large = payload(("pre_prompt_frame", "preferred"), payload_id="large", body="x" * 20_000, byte_size=20_000)
    client = Client()
    made = await router.dispatch(request(), client=client, context=context(), payloads=[large, fits])
    assert [each.payload_id for each in client.calls[0][1]] == ["fits"]
    assert [each.status for each in made.receipt.payload_receipts] == ["skipped", "delivered"]


@pytest.mark.parametrize(
    ("code", "seconds", "failure", "retry"),
    [
        (None, 60, "transport_error", "safe_retry"),
        ("print('junk')", 60, "invalid_request", "do_not_retry"),
        ("print(ANSWER); sys.exit(3)", 60, "transport_error", "safe_retry"),
        ("time.sleep(600)", 0.3, "timeout", "safe_retry"),
    ],
)
async def test_a_client_that_fails_leaves_a_failed_receipt(
    router: Router, db: Database, tmp_path: Path, code: str | None, seconds: float, failure: str, retry: str
) -> None:
    """LA-25, LA-26."""
    script = tmp_path / "client.py"
    script.write_text(
        f'import sys, time\nANSWER = \'{{"schema_version":"lifeloop.v0.3","status":"delivered"}}\'\n{code}'
    )
    argv = (str(tmp_path / "missing"),) if code is None else (sys.executable, "-S", str(script))
    command = Command(argv, seconds * SECOND)
    made = await router.dispatch(request(), client=command, context=context(), deadline=60 * SECOND)
    assert (made.receipt.status, made.receipt.failure_class, made.receipt.retry_class) == ("failed", failure, retry)
    assert made.error is not None
    assert failure_of(made.error) == (failure, retry)
    assert await everything(db) == [made.receipt]
    assert await pending(db) == []


async def test_annotations_may_be_added_to_before_they_are_stored(router: Router, db: Database) -> None:
    made = await router.dispatch(
        request(),
        client=Client(),
        context=context(),
        origin="hook",
        note=lambda notes, _: replace(notes, delivery="d-1"),
    )
    assert made.annotations is not None
    assert (made.annotations.delivery, made.annotations.attempts) == ("d-1", 1)
    async with db.read() as tx:
        (stored,) = await receipts.show(tx, "rcp-1")
    assert (stored.annotations, stored.origin) == (made.annotations, "hook")


async def test_a_chain_key_has_its_length(db: Database) -> None:
    with pytest.raises(ConfigError):
        router_on(db, chain_key=b"short")


# --- duplicates ---------------------------------------------------------------------------------------


async def test_a_duplicate_is_answered_with_what_was_recorded(router: Router, db: Database) -> None:
    """LA-41."""
    client = Client(response("skipped", metadata={"why": "asleep"}))
    first = await router.dispatch(request(), client=client, context=context())
    second = await router.dispatch(request(), client=client, context=context())
    assert len(client.calls) == 1
    assert (second.receipt, second.response, second.annotations) == (first.receipt, first.response, first.annotations)
    assert isinstance(second.outcome, Replayed)
    assert len(await everything(db)) == 1


async def test_another_try_is_a_duplicate_in_semantic_mode_only(router: Router) -> None:
    client = Client()
    first = await router.dispatch(request(), client=client, context=context())
    later = context(receipt_id="rcp-2", at_epoch_s=context().at_epoch_s + 9)
    with pytest.raises(ReceiptConflict) as caught:
        await router.dispatch(request(), client=client, context=later)
    assert set(caught.value.fields) == {"receipt_id", "at_epoch_s"}
    again = await router.dispatch(request(), client=client, context=later, mode="semantic")
    assert (again.receipt, len(client.calls)) == (first.receipt, 1)


async def test_another_event_under_the_same_key_is_a_conflict(router: Router) -> None:
    client = Client()
    await router.dispatch(request(), client=client, context=context())
    for asked in (client, None):
        with pytest.raises(ReceiptConflict, match="duplicate_id_conflict"):
            await router.dispatch(request(event="session.ended"), client=asked, context=context())
    assert len(client.calls) == 1


async def test_a_blocked_duplicate_of_what_was_delivered_is_a_duplicate(router: Router) -> None:
    first = await router.dispatch(request(), client=Client(), context=context())
    assert (await router.dispatch(request(), client=None, context=context())).receipt == first.receipt


async def test_who_comes_while_the_client_is_asked_waits_and_gets_the_same(router: Router, db: Database) -> None:
    client = Client(waits=True)
    first = asyncio.ensure_future(router.dispatch(request(), client=client, context=context()))
    await client.asked.wait()
    (intent,) = await pending(db)
    assert (intent.receipt_id, intent.key, intent.event, intent.attempts) == ("rcp-1", "idem-1", "session.started", 1)
    others = [
        asyncio.ensure_future(router.dispatch(request(), client=each, context=context())) for each in (client, None)
    ]
    await SystemClock().sleep(0.15)
    assert not any(other.done() for other in others)
    client.let_go.set()
    made = await asyncio.gather(first, *others)
    assert len({each.receipt.receipt_id for each in made}) == 1
    assert [type(each.outcome) for each in made] == [Inserted, Replayed, Replayed]
    assert len(client.calls) == 1


async def test_who_waits_gives_up_at_its_deadline(router: Router) -> None:
    client = Client(waits=True)
    first = asyncio.ensure_future(router.dispatch(request(), client=client, context=context()))
    await client.asked.wait()
    with pytest.raises(EventInFlight):
        await router.dispatch(request(), client=client, context=context(), deadline=0.1 * SECOND)
    client.let_go.set()
    await first


async def test_many_who_come_at_once_ask_once(router: Router, db: Database) -> None:
    client = Client()
    made = await asyncio.gather(*(router.dispatch(request(), client=client, context=context()) for _ in range(20)))
    assert len(client.calls) == 1
    assert {each.receipt.sequence for each in made} == {1}
    assert sum(isinstance(each.outcome, Inserted) for each in made) == 1
    assert len(await everything(db)) == 1


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.torture)])
async def test_many_processes_emit_one_key_once(ledger: str, count: int) -> None:
    """LA-35: forked ones, several at a time, on a ledger that is there."""
    database = await open_database(ledger, clock=SystemClock())
    await database.close()
    parts = 3 if count < 100 else 8
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", EMITTING, ledger, str(count // parts), cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(parts)
    ]
    said = "".join([(await each.communicate())[0].decode() for each in processes]).split()
    assert sorted(said) == ["Inserted"] + ["Replayed"] * (count - 1)
    database = await open_database(ledger, clock=SystemClock())
    try:
        assert [receipt.sequence for receipt in await everything(database)] == [1]
        async with database.read() as tx:
            assert await receipts.peek_sequence(tx, "run-1") == 1
    finally:
        await database.close()


EMITTING = """
import asyncio, os, sys
from tests.unit.plans import context, request, response
from holdfast.core.clock import SystemClock
from holdfast.lifecycle import Registry, Router
from holdfast.store import open_database

async def emit(target):
    database = await open_database(target, clock=SystemClock())
    try:
        router = Router(database, registry=Registry.builtin(), clock=database.clock)
        made = await router.dispatch(request(), client=None, context=context())
        return type(made.outcome).__name__
    finally:
        await database.close()

target, count = sys.argv[1], int(sys.argv[2])
for _ in range(count):
    pid = os.fork()
    if not pid:
        said = asyncio.run(emit(target))
        os.write(1, (said + "\\n").encode())
        os._exit(0)
    os.waitpid(pid, 0)
"""


# --- emitting and telling -----------------------------------------------------------------------------


async def test_an_event_is_recorded_that_was_told_elsewhere(router: Router, db: Database) -> None:
    made = await router.emit(request(), response("skipped"), context())
    assert (made.status, made.sequence) == ("skipped", 1)
    assert await router.emit(request(), response("skipped"), context()) == made
    with pytest.raises(ReceiptConflict):
        await router.emit(request(), response("delivered"), context())
    with pytest.raises(SchemaVersionMismatch):
        await router.emit(request(), response(schema_version="lifeloop.v0.2"), context())
    assert await everything(db) == [made]


async def test_subscribers_hear_of_new_receipts_after_the_commit(router: Router, db: Database) -> None:
    told: list[str] = []

    def broken(receipt: LifecycleReceipt) -> None:
        raise ValueError

    router.subscribe(broken)
    stop = router.subscribe(lambda receipt: told.append(receipt.receipt_id))
    waiting = asyncio.ensure_future(db.wait("receipts", 10.0))
    await asyncio.sleep(0)
    for _ in range(2):
        await router.dispatch(request(), client=Client(), context=context())
    assert await waiting
    await router.emit(request(idempotency_key="idem-2"), None, context(receipt_id="rcp-2"))
    await router.dispatch(request(idempotency_key="idem-3"), client=None, context=context(receipt_id="rcp-3"))
    assert told == ["rcp-1", "rcp-2", "rcp-3"]
    stop()
    stop()
    await router.emit(request(idempotency_key="idem-4"), None, context(receipt_id="rcp-4"))
    assert len(told) == 3


# --- callers that die, and answers that come late -----------------------------------------------------


async def lapsed(database: Database, ambiguous: str) -> tuple[Client, Dispatched, list[str]]:
    """Let a client's caller lose its lease while it is asked, and another dispatch the event."""
    told: list[str] = []
    first, second = Client(response("delivered"), waits=True), Client(response("skipped"))
    slow, quick = router_on(database), router_on(database, ambiguous=ambiguous)
    quick.subscribe(lambda receipt: told.append(receipt.status))
    asking = asyncio.ensure_future(slow.dispatch(request(), client=first, context=context(), deadline=5 * SECOND))
    await first.asked.wait()
    await quick.start()
    async with database.write() as tx:  # as if the time had passed for everybody but the caller
        (intent,) = await receipts.pending(tx)
        await receipts.renew(tx, intent.intent, intent.fence, 0)
    made = await quick.dispatch(request(), client=second, context=context())
    first.let_go.set()
    late = await asking
    assert late.receipt == made.receipt
    assert isinstance(late.outcome, Replayed)
    async with database.read() as tx:
        row = await tx.one("intents.get", id=intent.intent)
    assert row is not None
    assert b'"status":"delivered"' in row.late
    await intact(database)
    return second, made, told


async def test_a_lapsed_call_is_closed_and_the_late_answer_noted(db: Database) -> None:
    """LA-42, LA-43."""
    second, made, told = await lapsed(db, "close")
    assert second.calls == []
    assert (made.receipt.status, made.receipt.failure_class) == ("failed", "state_conflict")
    assert made.receipt.retry_class == "retry_after_reread"
    assert made.annotations is not None
    assert made.annotations.outcome_unknown
    assert made.receipt.sequence == 1
    assert told == ["failed"]


async def test_a_lapsed_call_is_made_again_where_that_is_wanted(db: Database) -> None:
    second, made, told = await lapsed(db, "rerun")
    assert len(second.calls) == 1
    assert made.receipt.status == "skipped"
    assert made.annotations is not None
    assert made.annotations.attempts == 2
    assert told == ["skipped"]


async def test_who_lost_its_claim_to_a_call_under_way_waits_for_its_end(db: Database) -> None:
    first, second = Client(response("delivered"), waits=True), Client(response("skipped"), waits=True)
    slow, quick = router_on(db), router_on(db, ambiguous="rerun")
    losing = asyncio.ensure_future(slow.dispatch(request(), client=first, context=context()))
    await first.asked.wait()
    async with db.write() as tx:
        (intent,) = await receipts.pending(tx)
        await receipts.renew(tx, intent.intent, intent.fence, 0)
    winning = asyncio.ensure_future(quick.dispatch(request(), client=second, context=context()))
    await second.asked.wait()
    first.let_go.set()
    await SystemClock().sleep(0.1)
    assert not losing.done()
    second.let_go.set()
    assert (await losing).receipt == (await winning).receipt
    assert (await winning).receipt.status == "skipped"


async def test_a_dispatch_that_is_cancelled_gives_back_its_claim(router: Router, db: Database) -> None:
    client = Client(waits=True)
    asking = asyncio.ensure_future(router.dispatch(request(), client=client, context=context()))
    await client.asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    (receipt,) = await router.recover()
    assert (receipt.status, receipt.failure_class, receipt.sequence) == ("failed", "state_conflict", 1)
    assert await pending(db) == []


@pytest.mark.parametrize("where", ["before", "commit", "after_ack_lost"])
async def test_an_answer_is_worth_some_patience_with_the_database(db: Database, where: Where) -> None:
    """A connection is lost while it is settled, or only the acknowledgement is."""
    quiet = CrashingDatabase(db, None, where)
    await router_on(quiet).dispatch(request(), client=Client(), context=context())
    told: list[str] = []
    troubled = CrashingDatabase(db, quiet.boundaries, where, failure=Unavailable("lost"))
    router = router_on(troubled)
    router.subscribe(lambda receipt: told.append(receipt.receipt_id))
    made = await router.dispatch(
        request(idempotency_key="idem-2"), client=Client(), context=context(receipt_id="rcp-2")
    )
    assert (made.receipt.status, type(made.outcome), told) == ("delivered", Inserted, ["rcp-2"])
    assert [receipt.receipt_id for receipt in await everything(db)] == ["rcp-1", "rcp-2"]
    assert await pending(db) == []
    await intact(db)


DYING = """
import asyncio, os, sys
from pathlib import Path
from tests.unit.plans import context, request
from holdfast.core.clock import SystemClock
from holdfast.lifecycle import Registry, Router
from holdfast.store import StoreSettings, open_database

async def client(about, payloads):
    os.kill(os.getpid(), 9)

async def main(target, owners):
    database = await open_database(target, clock=SystemClock(), settings=StoreSettings(owner_dir=Path(owners)))
    router = Router(database, registry=Registry.builtin(), clock=database.clock)
    await router.dispatch(request(), client=client, context=context())

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["recover", "dispatch"])
async def test_a_caller_that_was_killed_is_found_dead_at_once(ledger: str, tmp_path: Path, how: str) -> None:
    """LA-42: its lease has half a minute left."""
    owners = tmp_path / "owners"
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", DYING, ledger, str(owners), cwd=ROOT)
    assert await dying.wait() == -signal.SIGKILL
    database = await open_database(ledger, clock=SystemClock(), settings=StoreSettings(owner_dir=owners))
    try:
        (intent,) = await pending(database)
        assert intent.lease_until > database.clock.now()
        router, client = router_on(database), Client()
        if how == "recover":
            (receipt,) = await router.recover()
            assert await router.recover() == []
        else:
            receipt = (await router.dispatch(request(), client=client, context=context())).receipt
        assert client.calls == []
        assert (receipt.status, receipt.failure_class, receipt.sequence) == ("failed", "state_conflict", 1)
        assert await pending(database) == []
        following = await router.dispatch(
            request(idempotency_key="idem-2"), client=client, context=context(receipt_id="rcp-2")
        )
        assert following.receipt.sequence == 2
        await intact(database)
    finally:
        await database.close()


async def test_a_crash_point_stands_between_every_two_steps(db: Database) -> None:
    router = router_on(db)
    names = [f"lifecycle.{name}" for name in ("claimed", "dispatching", "answered", "settling", "settled")]
    passed: list[str] = []
    for name in names:
        with crash(name, action=lambda name=name: passed.append(name)):
            await router.dispatch(
                request(idempotency_key=name), client=Client(), context=context(receipt_id=f"rcp-{name}")
            )
    assert passed == names
