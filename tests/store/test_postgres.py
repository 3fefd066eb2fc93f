"""What only PostgreSQL does: outages, sessions that end, locks that meet, settings that are refused."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.store.appenders import Appenders

from holdfast.core.clock import SystemClock
from holdfast.core.errors import Busy, ConfigError, HoldfastError, StoreError, Unavailable
from holdfast.core.loops import spawn
from holdfast.store import Append, Database, StoreSettings, postgres_pool
from holdfast.store.batch import Batch
from holdfast.store.postgres import READERS_MAX, PostgresDatabase
from holdfast.store.postgres_batch import Lane
from holdfast.store.postgres_errors import label_of
from holdfast.store.postgres_pool import Link
from holdfast.store.writer import Overdue
from holdfast.testing.postgres import PostgresServer
from holdfast.testing.store_contract import LocalStore
from holdfast.testing.store_contract.ledgers import create, entries, entry, executions, put, reserve, settled_all

SECRET = "hunter2"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that tests may break."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
async def fragile(server: PostgresServer, tmp_path: Path) -> AsyncIterator[PostgresDatabase]:
    """A ledger on it, whose appends wait for as long as a busy machine takes to bring the server back."""
    server.start()
    settings = StoreSettings(owner_dir=tmp_path / "owners", ack_timeout_ms=60_000)
    async with LocalStore(server.fresh_schema()).opened(settings=settings) as database:
        assert isinstance(database, PostgresDatabase)
        yield database
        await asyncio.to_thread(server.start)


# Outages


@pytest.mark.parametrize("way", ["kill", "stop"])
async def test_a_server_that_dies_loses_nothing_acknowledged(
    way: str, fragile: PostgresDatabase, server: PostgresServer
) -> None:
    appenders = Appenders(fragile, await executions(fragile, 12))
    await appenders.more(10)
    for _ in range(2):
        await asyncio.to_thread(getattr(server, way))
        acknowledged = dict(appenders.acknowledged)
        await asyncio.to_thread(server.start)
        await appenders.more(5)
        assert all(appenders.acknowledged[pk] > count for pk, count in acknowledged.items())
    await appenders.stop()


async def test_connections_that_are_cut_cost_nothing_but_time(
    fragile: PostgresDatabase, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    appenders = Appenders(fragile, await executions(fragile, 12))
    for _ in range(4):
        await appenders.more(3)
        await cut(server)
    await appenders.more(3)
    await appenders.stop()
    assert fragile.writer.failures > 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def cut(server: PostgresServer) -> None:
    """End every session of the ledger."""
    await asyncio.to_thread(
        server.sql,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'holdfast'",
    )


async def test_what_was_in_doubt_is_there_once(fragile: PostgresDatabase, server: PostgresServer) -> None:
    """The answer of a commit is lost together with the connection."""
    pks = await executions(fragile, 40)
    for number in range(5):
        appends = [entry(fragile, pk, number) for pk in pks]
        for each in appends:
            assert fragile.writer.offer(each)
        await fragile.clock.sleep(0)
        fragile.writer.die()
        assert all(result.fence == 1 for result in await settled_all(*appends))
    for pk in pks:
        assert [row.idx for row in await entries(fragile, pk)] == list(range(5))


async def test_a_server_that_does_not_answer_is_waited_for(server: PostgresServer, tmp_path: Path) -> None:
    server.start()
    store = LocalStore(server.fresh_schema(), tmp_path / "owners")
    async with store.opened(settings=StoreSettings(ack_timeout_ms=100)) as database:
        [pk] = await executions(database)
        await put(database, entry(database, pk, 0))
        server.pause()
        try:
            late = entry(database, pk, 1)
            assert database.writer.offer(late)
            assert isinstance((await settled_all(late))[0], Overdue)
            assert database.writer.degraded
        finally:
            server.resume()
        await database.writer.drained()
        assert not database.writer.degraded
        assert len(await entries(database, pk)) == 2


async def test_a_connection_that_hangs_is_replaced(
    fragile: PostgresDatabase, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session may wake up and commit what is being committed again."""
    monkeypatch.setattr(postgres_pool, "STALL_S", 0.3)
    pks = await executions(fragile, 6)
    await put(fragile, *(entry(fragile, pk, 0) for pk in pks))
    appends = [entry(fragile, pk, 1) for pk in pks]
    server.pause()
    try:
        for each in appends:
            assert fragile.writer.offer(each)
        while fragile.writer.failures < fragile.lanes:
            await fragile.clock.sleep(0.01)
    finally:
        server.resume()
    assert all(result.fence == 1 for result in await settled_all(*appends))
    for pk in pks:
        assert [row.idx for row in await entries(fragile, pk)] == [0, 1]


@pytest.mark.parametrize("stalls", [6, pytest.param(400, marks=pytest.mark.torture)])
async def test_stalls_at_random_moments_lose_and_double_nothing(
    stalls: int, fragile: PostgresDatabase, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given up while the server is silent may be committed by it when it wakes up."""
    monkeypatch.setattr(postgres_pool, "STALL_S", 0.2)
    appenders, rng = Appenders(fragile, await executions(fragile, 12)), random.Random(7)  # noqa: S311 - no secret
    for _ in range(stalls):
        await fragile.clock.sleep(rng.random() / 10)
        server.pause()
        try:
            await fragile.clock.sleep(rng.choice([0.05, 0.4]))
        finally:
            server.resume()
        await appenders.more()
    await appenders.stop()
    assert fragile.writer.failures > 0


@pytest.mark.parametrize("way", ["connecting", "making calls"])
async def test_a_batch_that_was_given_up_before_it_began_is_not_committed(way: str, pg: PostgresDatabase) -> None:
    """The writer died while the lane was connecting: what it gave up is committed again, by somebody else."""
    gate = asyncio.Event()
    links: list[Link] = []

    async def connect(settings: dict[str, str]) -> Link:
        links.append(link := await pg._connect_lane(settings))
        if len(links) == 1:
            await gate.wait()
        return link

    [pk] = await executions(pg)
    lane = Lane(connect, statements=pg.statements, label="a lane")
    preparing = spawn(lane.prepare(()) if way == "making calls" else asyncio.sleep(0), "a lane is made ready")
    batch = Batch(0, [entry(pg, pk, 0)], lambda _batch, _error: None, careful=False)
    batch.group(set())
    given_up = spawn(lane.commit(batch), "a batch")
    while not links:
        await pg.clock.sleep(0.001)
    reopening = spawn(lane.reopen(), "a lane is reopened")
    if way == "connecting":
        await reopening
    else:
        await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(preparing, reopening)
    with pytest.raises(Unavailable):
        await given_up
    assert await entries(pg, pk) == []


@pytest.mark.parametrize("way", ["read", "write"])
async def test_a_transaction_that_a_silent_server_does_not_end_is_given_up(
    way: str, fragile: PostgresDatabase, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(20):
        with monkeypatch.context() as impatient:
            try:
                with contextlib.nullcontext() if way == "read" else pytest.raises(Unavailable):
                    async with getattr(fragile, way)() as tx:
                        await tx.one("ledger.get", name="namespace")
                        impatient.setattr(postgres_pool, "STALL_S", 0.1)
                        server.pause()
            finally:
                server.resume()
        async with getattr(fragile, way)() as tx:
            assert await tx.one("ledger.get", name="namespace") is not None


async def test_idle_connections_survive_a_restart(fragile: PostgresDatabase, server: PostgresServer) -> None:
    async with fragile.write() as tx:
        await tx.run("ledger.put", [("a", b"1")])
    await asyncio.to_thread(server.restart)
    async with fragile.read() as tx:
        assert await tx.one("ledger.get", name="a") is not None
    async with fragile.write() as tx:
        await tx.run("ledger.put", [("b", b"1")])


async def test_a_statement_by_itself_survives_a_restart(fragile: PostgresDatabase, server: PostgresServer) -> None:
    before = await fragile.submit("executions.reserve")
    await asyncio.to_thread(server.restart)
    after = await fragile.submit("executions.reserve")
    assert after.first > before.first


async def test_a_server_that_is_gone_is_unavailable(fragile: PostgresDatabase, server: PostgresServer) -> None:
    await asyncio.to_thread(server.stop)
    with pytest.raises(Unavailable):
        async with fragile.read():
            pass
    with pytest.raises(Unavailable) as caught:
        await LocalStore(server.url(user=f"u:{SECRET}")).open()
    assert SECRET not in str(caught.value) + caught.value.hint
    assert caught.value.retry_after > 0


# Locks that meet


async def test_a_deadlock_is_run_again(pg: PostgresDatabase, postgres_store: LocalStore) -> None:
    """A batch holds one execution and wants another, which a transaction holds that wants the first."""
    first, second = await lane_mates(pg)
    # That transaction would wait for ever: it is the batch that finds the deadlock, and gives way.
    patient = LocalStore(f"{postgres_store.target}&deadlock_timeout=1h", postgres_store.owner_dir)
    async with patient.opened() as other, other.write() as tx:
        assert await tx.one("executions.lock", pk=second)
        appends = [entry(pg, first, 0), entry(pg, second, 0)]
        for each in appends:
            assert pg.writer.offer(each)
        await blocked(pg)
        assert await tx.one("executions.lock", pk=first)
    assert all(result.fence == 1 for result in await settled_all(*appends))
    assert pg.writer.failures == 0


async def lane_mates(database: PostgresDatabase) -> list[int]:
    """Two executions of one lane."""
    pks = await executions(database, 2 * database.lanes)
    return [pk for pk in pks if pk % database.lanes == 0][:2]


async def blocked(database: PostgresDatabase, count: int = 1) -> None:
    """Wait until sessions wait for locks."""
    link = await database.readers.begin()
    try:
        async with asyncio.timeout(10):
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND transactionid IS NOT NULL"
            while await link.connection.fetchval(query) < count:
                await database.clock.sleep(0.005)
    finally:
        await database.readers.roll_back(link)


@pytest.mark.parametrize("ends", ["commits", "fails"])
async def test_an_append_waits_for_a_claim_under_way(ends: str, pg: PostgresDatabase) -> None:
    [pk] = await executions(pg)
    append = entry(pg, pk, 0)
    with contextlib.suppress(ZeroDivisionError):
        async with pg.write() as tx:
            assert await claim(tx, pk)
            assert pg.writer.offer(append)
            await blocked(pg)
            if ends == "fails":
                raise ZeroDivisionError
    [result] = await settled_all(append)
    assert (result is None) == (ends == "commits")
    assert len(await entries(pg, pk)) == (ends == "fails")


async def claim(tx: object, pk: int) -> object:
    """Take an execution whose fence is 1."""
    return await tx.one(  # type: ignore[attr-defined] # a transaction
        "executions.claim", owner_id="o", now=1, code_version=None, recoveries=0, pk=pk, fence=1
    )


async def test_a_refused_batch_keeps_its_neighbours(pg: PostgresDatabase) -> None:
    """One call would fail as a whole: such a batch goes the long way, and the next is one call again."""
    held, lost = await lane_mates(pg)
    async with pg.write() as tx:
        assert await claim(tx, lost)
    for idx in range(3):
        results = await put(pg, entry(pg, held, idx), entry(pg, lost, idx))
        assert [result is not None for result in results] == [True, False]
    assert len(await entries(pg, held)) == 3


# One call


async def test_a_batch_is_one_statement(pg: PostgresDatabase) -> None:
    """What is created, guarded and written together is one message to the server, and one transaction."""
    first = await reserve(pg)
    first += first % pg.lanes  # the first lane's

    def batch(pk: int) -> list[Append]:
        return [create(pg, pk), entry(pg, pk, 0)]

    await put(pg, *batch(first))
    lane = pg._lanes[0]
    link = lane._link
    assert link is not None
    others: list[str] = []
    link.connection.add_query_logger(lambda record: others.append(record.query))
    assert all(await put(pg, *batch(first + 2)))
    assert others == [], "statements besides the prepared call, which is not logged"
    assert [call is not None for call in link.calls.values()] == [True]


async def test_a_lone_append_is_one_row_of_plain_values(pg: PostgresDatabase) -> None:
    [pk] = await executions(pg)
    await put(pg, entry(pg, pk, 0))
    link = pg._lanes[pk % pg.lanes]._link
    assert link is not None
    [call] = link.calls.values()
    assert (call.recipe.names, call.recipe.guarded, call.recipe.single) == (("journal.append",), True, True)
    assert call.recipe.definition == "", "it is a single statement"


async def test_a_role_without_temporary_objects_can_append(server: PostgresServer, tmp_path: Path) -> None:
    server.start()
    url = server.fresh_database()
    name = url.partition("?")[0].rpartition("/")[2]
    server.sql(f"CREATE ROLE bare_{name} LOGIN; GRANT CREATE ON DATABASE {name} TO bare_{name}")
    server.sql(f"REVOKE TEMPORARY ON DATABASE {name} FROM public")
    server.sql(f"GRANT CREATE ON SCHEMA public TO bare_{name}", name)
    async with LocalStore(server.url(name, f"bare_{name}"), tmp_path / "owners").opened() as database:
        first = await reserve(database)
        for pk in range(first, first + 3):
            assert all(await put(database, create(database, pk), entry(database, pk, 0)))
            assert await put(database, entry(database, pk, 1, fence=2)) == [None]


# What is refused


async def test_a_server_that_does_not_flush_is_refused(tmp_path: Path) -> None:
    with PostgresServer(settings={"fsync": "off"}) as unsafe:
        url = unsafe.fresh_schema()
        with pytest.raises(ConfigError) as caught:
            await LocalStore(url).open()
        assert caught.value.code == "config.unsafe_storage"
        settings = StoreSettings(allow_unsafe_storage=True, owner_dir=tmp_path)
        async with LocalStore(url).opened(settings=settings) as database:
            assert all(await put(database, *(entry(database, pk, 0) for pk in await executions(database, 2))))


async def test_sessions_wait_for_the_flush_whatever_the_role_says(postgres: PostgresServer) -> None:
    url = f"{postgres.fresh_schema()}&synchronous_commit=off"
    async with LocalStore(url).opened() as database:
        assert isinstance(database, PostgresDatabase)
        link = await database.writers.begin()
        assert await link.connection.fetchval("SHOW synchronous_commit") == "on"
        await database.writers.roll_back(link)


async def test_an_old_server_is_refused(postgres_store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "SERVER_MIN", 990_000)
    with pytest.raises(StoreError, match="runs PostgreSQL") as caught:
        await postgres_store.open()
    assert caught.value.code == "store.server_version"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda server, url: server.url("missing"), "store.cannot_open"),
        (lambda server, url: server.url(user="nobody_there"), "store.permission"),
        (lambda server, url: url + "&default_transaction_read_only=on", "store.read_only"),
        (lambda server, url: "postgresql:///db?host=/nowhere/at/all", "store.unavailable"),
        (lambda server, url: url + "&sslmode=perhaps", "config.invalid"),
    ],
    ids=["database", "role", "read-only", "socket", "setting"],
)
async def test_what_cannot_be_opened_says_why(
    spoil: Callable[[PostgresServer, str], str], code: str, postgres: PostgresServer
) -> None:
    with pytest.raises(HoldfastError) as caught:
        await LocalStore(spoil(postgres, postgres.fresh_schema())).open()
    assert caught.value.code == code


async def test_a_role_that_may_make_no_tables_is_told_so(postgres: PostgresServer) -> None:
    url = postgres.fresh_schema()
    schema, database = url.rpartition("=")[2], url.partition("?")[0].rpartition("/")[2]
    postgres.sql(f"CREATE ROLE poor_{schema} LOGIN; GRANT USAGE ON SCHEMA {schema} TO poor_{schema}", database)
    with pytest.raises(StoreError) as caught:
        await LocalStore(url.replace("//postgres@", f"//poor_{schema}@")).open()
    assert caught.value.code == "store.permission"
    assert "CREATE" in caught.value.hint


async def test_encodings_that_lose_text_are_refused(server: PostgresServer) -> None:
    server.start()
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreError) as caught:
        await LocalStore(server.url("latin")).open()
    assert caught.value.code == "store.encoding"


@pytest.mark.parametrize(
    ("url", "label"),
    [
        (f"postgresql://me:{SECRET}@db.example:5433/agents?sslmode=require", "postgresql://db.example:5433/agents"),
        (f"postgres://me:{SECRET}@db.example/agents", "postgresql://db.example/agents"),
        (f"postgresql:///agents?host=/run/pg&password={SECRET}", "postgresql:///agents?host=/run/pg"),
        (f"postgresql://me:{SECRET}@a:1,b:2/agents", "postgresql://a:1,b:2/agents"),
        (f"postgresql://me:{SECRET}@[::1]:5432/agents", "postgresql://[::1]:5432/agents"),
        (f"postgresql://me:%2F{SECRET}%40@h/agents", "postgresql://h/agents"),
    ],
)
def test_a_label_tells_no_secret(url: str, label: str) -> None:
    assert label_of(url) == label


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:/{SECRET}@h/agents",
        f"postgresql://me:{SECRET}#@h/agents",
        f"postgresql://me:?{SECRET}@h/agents",
        f"postgresql://me:1?{SECRET}",
        f"postgresql://me:5#{SECRET}",
        f"postgresql://[me:{SECRET}/agents",
    ],
)
def test_a_url_that_may_show_its_password_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        label_of(url)
    assert SECRET not in str(caught.value) + caught.value.hint


# Transactions


async def test_a_swallowed_failure_does_not_pass_for_a_commit(pg: PostgresDatabase) -> None:
    with pytest.raises(StoreError):
        await swallow(pg)
    async with pg.read() as tx:
        assert await tx.one("ledger.get", name="a") is None


async def swallow(database: Database) -> None:
    """Ignore that a statement failed."""
    async with database.write() as tx:
        await tx.run("ledger.put", [("a", b"1")])
        with contextlib.suppress(StoreError):
            await tx.run("ledger.put", [("b", None)])


async def test_more_blocks_than_connections_wait_their_turn(pg: PostgresDatabase) -> None:
    inside = 0
    most = 0

    async def use() -> None:
        nonlocal inside, most
        async with pg.read() as tx:
            inside += 1
            most = max(most, inside)
            await tx.one("ledger.get", name="a")
            inside -= 1

    tasks = [spawn(use(), "a reader") for _ in range(5 * READERS_MAX)]
    await pg.clock.sleep(0)
    for task in tasks[READERS_MAX : 2 * READERS_MAX]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == READERS_MAX
    assert sum(result is None for result in results) == 4 * READERS_MAX
    assert 1 < most <= READERS_MAX


async def test_statements_of_one_transaction_take_turns(pg: PostgresDatabase) -> None:
    async with pg.read() as tx:
        one, other = await asyncio.gather(
            tx.one("ledger.get", name="a"), tx.one("ledger.get", name="b"), return_exceptions=True
        )
    assert {type(one), type(other)} == {type(None), StoreError}


async def test_a_lock_that_is_not_to_be_had_is_busy(postgres_store: LocalStore, pg: PostgresDatabase) -> None:
    [pk] = await executions(pg)
    hasty = LocalStore(f"{postgres_store.target}&lock_timeout=20", postgres_store.owner_dir)
    async with hasty.opened() as other, pg.write() as tx:
        assert await tx.one("executions.lock", pk=pk)
        with pytest.raises(Busy):
            await lock(other, pk)


async def lock(database: Database, pk: int) -> None:
    """Take a row."""
    async with database.write() as tx:
        await tx.one("executions.lock", pk=pk)


# Time and hints


async def test_the_clock_is_the_servers(postgres_store: LocalStore) -> None:
    right, wrong = SystemClock(), SystemClock(offset=3_600_000_000)
    async with postgres_store.opened(clock=wrong):
        assert abs(wrong.now() - right.now()) < 1_000_000
    async with postgres_store.opened(clock=right):
        assert right.offset == 0, "the machine's own server has the machine's clock"


async def test_a_hint_reaches_other_processes(postgres_store: LocalStore, pg: PostgresDatabase) -> None:
    await pg.wait("other", 0.3)  # from now on it listens
    waiter = spawn(pg.wait("c", 30), "a wait")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        await asyncio.to_thread(pool.apply, hint, (postgres_store, "c"))
    async with asyncio.timeout(5):
        assert await waiter


def hint(store: LocalStore, channel: str) -> None:
    """In another process: change something, and say so."""

    async def run() -> None:
        async with store.opened() as database, database.write() as tx:
            tx.notify(channel)

    asyncio.run(run())


async def test_a_ledger_hears_no_hints_of_another(postgres: PostgresServer, pg: PostgresDatabase) -> None:
    await pg.wait("other", 0.3)
    waiter = spawn(pg.wait("c", 30), "a wait")
    async with LocalStore(postgres.fresh_schema()).opened() as stranger, stranger.write() as tx:
        tx.notify("c")
    async with pg.write() as tx:  # a message later on the same connection would find the waiter woken
        tx.notify("d")
    await pg.clock.sleep(0.05)
    assert not waiter.done()
    waiter.cancel()


async def test_whoever_waits_is_woken_when_listening_was_interrupted(
    fragile: PostgresDatabase, server: PostgresServer
) -> None:
    await fragile.wait("other", 0.3)
    waiter = spawn(fragile.wait("c", 30), "a wait")
    await fragile.clock.sleep(0)
    await cut(server)
    async with asyncio.timeout(10):
        assert await waiter
    waiter = spawn(fragile.wait("c", 30), "a wait")
    async with LocalStore(fragile._connector._url).opened() as other, other.write() as tx:
        tx.notify("c")
    async with asyncio.timeout(10):
        assert await waiter
