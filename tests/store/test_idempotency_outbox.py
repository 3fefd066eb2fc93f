"""Events come in the order their transactions committed, and never behind a reader."""

from __future__ import annotations

import asyncio
import random

import pytest

from holdfast.core.errors import CodecError, ConfigError, LimitError
from holdfast.idempotency import outbox
from holdfast.store.database import Database
from holdfast.testing.store_contract import LocalStore

shared = pytest.mark.parametrize("store", ["sqlite-file", "postgres"], indirect=True)
on_postgres = pytest.mark.parametrize("store", ["postgres"], indirect=True)


async def put(database: Database, *topics: str) -> None:
    """Emit events in a transaction of their own."""
    async with database.write() as tx:
        for topic in topics:
            await outbox.emit(tx, topic, topic.encode(), now=1)


async def topics(database: Database, after: str | None = None, limit: int = 500) -> list[str]:
    return [event.topic for event in await outbox.read(database, after=after, limit=limit)]


async def come(database: Database, count: int, after: str | None = None) -> list[outbox.OutboxEvent]:
    """Read so many events, waiting for them: a test on the same server may have older transactions open."""
    events = await outbox.read(database, after=after)
    async with asyncio.timeout(60):
        while len(events) < count:
            events = await outbox.read(database, after=after)
    return events


async def test_events_come_in_pages_in_their_order(db: Database) -> None:
    assert await outbox.read(db) == []
    names = [f"event {number}" for number in range(7)]
    await put(db, *names[:3])
    for name in names[3:]:
        await put(db, name)
    await come(db, 7)
    seen: list[str] = []
    cursor = None
    while page := await outbox.read(db, after=cursor, limit=2):
        assert len(page) <= 2
        seen += [event.topic for event in page]
        cursor = page[-1].cursor
    assert seen == names
    [first] = await outbox.read(db, limit=1)
    assert (first.payload, first.created_at) == (b"event 0", 1)
    assert await topics(db, first.cursor) == names[1:]


async def rolled_back(database: Database, meanwhile: Database | None = None) -> None:
    """Emit an event in a transaction that fails, while another commits one if there is one."""
    async with database.write() as tx:
        await outbox.emit(tx, "never", b"", now=1)
        if meanwhile is not None:
            await put(meanwhile, "younger")
        raise ZeroDivisionError


async def test_what_is_rolled_back_is_no_event(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        await rolled_back(db)
    await put(db, "kept")
    assert [event.topic for event in await come(db, 1)] == ["kept"]


async def test_pruned_events_are_gone_and_their_numbers_are_never_used_again(db: Database) -> None:
    await put(db, "a", "b", "c")
    events = await come(db, 3)
    async with db.write() as tx:
        assert await outbox.prune(tx, upto=events[2].cursor, limit=2) == 2
        assert await outbox.prune(tx, upto=events[2].cursor, limit=2) == 1
        assert await outbox.prune(tx, upto=events[2].cursor, limit=2) == 0
    await put(db, "d")
    assert [event.topic for event in await come(db, 1, events[2].cursor)] == ["d"]
    assert await topics(db) == ["d"]


@pytest.mark.parametrize(
    ("topic", "payload", "error"),
    [("", b"", ConfigError), ("t" * 256, b"", LimitError), ("t", bytes(2**20 + 1), LimitError)],
)
async def test_an_event_has_its_limits(db: Database, topic: str, payload: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        async with db.write() as tx:
            await outbox.emit(tx, topic, payload, now=1)
    assert await outbox.read(db) == []


async def test_a_cursor_of_something_else_is_refused(db: Database) -> None:
    with pytest.raises(CodecError):
        await outbox.read(db, after="nonsense")
    with pytest.raises(LimitError):
        await outbox.read(db, limit=501)


@on_postgres
async def test_an_event_waits_for_older_transactions(store: LocalStore, db: Database) -> None:
    """The younger transaction commits first: its event is shown once nothing older can commit any more."""
    async with store.opened() as other:
        async with db.write() as older:
            await outbox.emit(older, "older, first", b"", now=1)
            await put(other, "younger")
            assert await topics(other) == []
            await outbox.emit(older, "older, second", b"", now=1)
        assert [event.topic for event in await come(other, 3)] == ["older, first", "older, second", "younger"]


@on_postgres
async def test_a_transaction_that_rolls_back_holds_nothing_back_for_good(store: LocalStore, db: Database) -> None:
    async with store.opened() as other:
        with pytest.raises(ZeroDivisionError):
            await rolled_back(db, other)
        assert [event.topic for event in await come(other, 1)] == ["younger"]


@shared
async def test_no_event_ever_appears_behind_a_cursor(store: LocalStore) -> None:
    """HX-91: eight writers whose transactions overlap at random, and a reader that pages all the while."""
    chance = random.Random(7)  # noqa: S311 - a schedule, not a secret
    seen: list[str] = []
    async with store.opened() as reading:
        handles = [await store.open() for _ in range(4)]

        async def write(number: int) -> None:
            for step in range(6):
                async with handles[number % 4].write() as tx:
                    for part in range(2):
                        await outbox.emit(tx, f"{number}.{step}.{part}", b"", now=1)
                        for _ in range(chance.randrange(5)):
                            await asyncio.sleep(0)

        cursor: str | None = None

        async def read() -> None:
            nonlocal cursor
            page = await outbox.read(reading, after=cursor, limit=5)
            seen.extend(event.topic for event in page)
            cursor = page[-1].cursor if page else cursor

        writing = asyncio.gather(*(write(number) for number in range(8)))
        while not writing.done():
            await read()
            await asyncio.sleep(0)
        await writing
        async with asyncio.timeout(60):
            while len(seen) < 96:
                await read()
        for handle in handles:
            await handle.close()
    assert sorted(seen) == sorted(f"{n}.{step}.{part}" for n in range(8) for step in range(6) for part in range(2))
    for number in range(8):
        mine = [topic for topic in seen if topic.startswith(f"{number}.")]
        assert mine == sorted(mine)
    pairs = [topic.rpartition(".")[0] for topic in seen]
    assert all(pairs[at] == pairs[at + 1] for at in range(0, len(pairs), 2)), "events of one transaction come together"
