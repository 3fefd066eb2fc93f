"""A database that is full, locked or away while events are recorded: a clear failure, and nothing half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.flow.tamper import held, look
from tests.flow.test_lifecycle_router import Client, everything, intact, pending, router_on
from tests.unit.plans import context, payload, request, response

from holdfast.core.clock import SystemClock
from holdfast.core.errors import Busy, StoreError, Unavailable
from holdfast.lifecycle import CallbackResponse, Router, failure_of
from holdfast.store import Database, open_database
from holdfast.testing.boundaries import CrashingDatabase

CONFLICTED = ("state_conflict", "retry_after_reread")


async def test_a_full_database_is_told_of_and_got_over(tmp_path: Path) -> None:
    """LA-38: at a claim and at a settling; what was answered meanwhile has its receipt when there is room again."""
    database: Any = await open_database(str(tmp_path / "ledger.db"), clock=SystemClock())
    try:
        connection = database.connection
        router = router_on(database)
        await router.emit(request(idempotency_key="idem-0"), None, context(receipt_id="rcp-0"))
        large = payload(("pre_prompt_frame", "preferred"), body="x" * 60_000, byte_size=60_000)

        def fill(*, full: bool = True) -> None:
            pages = connection.pragma("page_count") if full else 2**30
            connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()

        fill()
        client = Client()
        with pytest.raises(Unavailable, match="full") as caught:
            await router.dispatch(request(metadata={"much": "x" * 60_000}), client=client, context=context())
        assert failure_of(caught.value) == CONFLICTED
        assert (client.calls, await pending(database)) == ([], [])
        fill(full=False)

        async def answering(about: object, payloads: object) -> CallbackResponse:
            fill()
            database.clock.call_later(0.15, lambda: fill(full=False))
            return response("delivered", metadata={"much": "y" * 60_000})

        made = await router.dispatch(request(), client=answering, context=context(), payloads=[large])
        assert (made.receipt.status, made.receipt.sequence) == ("delivered", 2)
        assert [receipt.sequence for receipt in await everything(database)] == [1, 2]
        await intact(database)
    finally:
        await database.close()


async def test_a_locked_database_is_told_of_and_got_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LA-38."""
    monkeypatch.setattr("holdfast.store.sqlite.BUSY_S", 0.2)
    target = str(tmp_path / "ledger.db")
    database = await open_database(target, clock=SystemClock())
    try:
        router, client = router_on(database), Client()
        await router.start()
        async with held(target):
            for attempt in (
                router.dispatch(request(), client=client, context=context()),
                router.emit(request(), response(), context()),
            ):
                with pytest.raises(Busy) as caught:
                    await attempt
                assert failure_of(caught.value) == CONFLICTED
        assert client.calls == []
        assert await look(target, "SELECT count(*) FROM lifecycle_chains") == [(0,)]
        made = await router.dispatch(request(), client=client, context=context())
        assert (made.receipt.sequence, len(client.calls)) == (1, 1)
        await intact(database)
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Busy("locked"), CONFLICTED),
        (Unavailable("away"), CONFLICTED),
        (StoreError("odd"), ("internal_error", "retry_after_reread")),
    ],
    ids=["busy", "away", "odd"],
)
async def test_a_database_that_fails_anywhere_leaves_all_or_nothing(
    db: Database, failure: StoreError, told: tuple[str, str]
) -> None:
    """LA-38: before every statement and every commit of recording one event; another try records it once."""
    await router_on(db).emit(request(idempotency_key="idem-0"), None, context(receipt_id="rcp-0"))
    quiet = CrashingDatabase(db)
    await emit(router_on(quiet), 0)
    errors: list[StoreError] = []
    for number in range(1, quiet.boundaries + 1):
        router = router_on(CrashingDatabase(db, number, failure=failure))
        try:
            await emit(router, number)
        except StoreError as error:
            errors.append(error)
            await intact(db)
        await emit(router, number)
    assert {failure_of(error) for error in errors} == {told}
    found = await everything(db)
    assert [receipt.sequence for receipt in found] == list(range(1, len(found) + 1))
    assert len({receipt.idempotency_key for receipt in found}) == len(found)
    await intact(db)


async def emit(router: Router, number: int) -> None:
    name = f"trouble-{number}"
    await router.emit(request(idempotency_key=name), response(), context(receipt_id=name), mode="semantic")
