"""Mode A where the database refuses, vanishes or is another: aborts, lost commits, and the units themselves."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import pytest
from sqlalchemy import String, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.flow.units import KINDS, ON_POSTGRES, RULE, Shop, World, counter, world

from holdfast.core.clock import SystemClock
from holdfast.core.errors import ConfigError, SchemaMismatch, StoreError, Unavailable
from holdfast.idempotency import current
from holdfast.idempotency.unit import UnitOfWork, WatchedTx
from holdfast.integrations.aiosqlite import ConnectionUnit as AiosqliteUnit
from holdfast.integrations.apsw import ConnectionUnit as ApswUnit
from holdfast.integrations.asyncpg import PoolUnit
from holdfast.integrations.sqlalchemy import SessionUnit
from holdfast.store import open_database
from holdfast.store.adopt import adopt

MakeTarget = Callable[[str], str]


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, make_target: MakeTarget) -> AsyncIterator[World]:
    async with world(request.param, make_target) as made:
        yield made


@pytest.fixture(params=ON_POSTGRES)
async def served(request: pytest.FixtureRequest, make_target: MakeTarget) -> AsyncIterator[World]:
    async with world(request.param, make_target) as made:
        yield made


@pytest.fixture
async def pooled(make_target: MakeTarget) -> AsyncIterator[World]:
    async with world("asyncpg", make_target) as made:
        yield made


async def outside(place: World, statement: str) -> None:
    """Run a statement on PostgreSQL in a transaction of its own."""
    connection = await asyncpg.connect(place.target)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


# --- HX-69: the database aborts, and the unit runs again


class Contended:
    """A handler of REPEATABLE READ whose row another transaction changes, for as many runs as it is told."""

    def __init__(self, place: World, times: int, how: str = "plain") -> None:
        self.place = place
        self.times = times
        self.how = how
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, shop: Shop) -> int:
        await shop.order(f"milk {shop.runs}")
        await self.place.execute(shop.handle, "SELECT item FROM orders")  # takes the snapshot
        if shop.runs <= self.times:
            await outside(self.place, "UPDATE orders SET item = item || '+' WHERE item LIKE 'stock%'")
        change = self.place.execute(shop.handle, "UPDATE orders SET item = item || '!' WHERE item NOT LIKE 'milk%'")
        if self.how == "swallowed":
            try:
                await change
            except Exception:  # noqa: BLE001 - as a careless handler does
                return 500
        elif self.how == "grouped":
            async with asyncio.TaskGroup() as group:
                group.create_task(change)
        else:
            await change
        return 201


@asynccontextmanager
async def contended(place: World, times: int, how: str = "plain", **rule: Any) -> AsyncIterator[tuple[Shop, Any]]:
    await outside(place, "INSERT INTO orders (item) VALUES ('stock')")
    shop = Shop(place, Contended(place, times, how))
    async with counter(shop, place, rule=replace(RULE, isolation="repeatable read", **rule)) as desk:
        yield shop, desk


@pytest.mark.parametrize("how", ["plain", "grouped", "swallowed"])
async def test_an_aborted_unit_runs_again_as_if_for_the_first_time(served: World, how: str) -> None:
    async with contended(served, 1, how) as (shop, desk):
        done = await desk.ask(body=b"the body")
        assert (done.status, done.body, done.error) == (201, b"run 2", None)
        assert (shop.attempts, len(set(shop.keys)), shop.bodies) == ([1, 2], 1, [b"the body"] * 2)
        placed, events, states = await desk.left()
        assert [item for item in placed if "milk" in item] == ["milk 2"]
        assert (events, states) == (["milk 2"], ["COMPLETED"])
        assert desk.kinds() == ["proceed"]
        assert (await desk.ask(body=b"the body")).replayed


async def test_a_unit_that_is_aborted_every_time_is_refused_and_leaves_nothing(served: World) -> None:
    async with contended(served, 99, retries=2) as (shop, desk):
        done = await desk.ask()
        assert (done.status, done.code) == (503, "store_unavailable")
        assert shop.runs == 3
        assert (await desk.topics(), await desk.records()) == ([], [])


async def test_an_abort_at_the_commit_runs_the_unit_again(served: World) -> None:
    """Write skew: each reads what the other writes, and only one may commit."""
    shop = Shop(served, None)
    other = await asyncpg.connect(served.target)

    async def skewed(shop: Shop) -> int:
        await served.execute(shop.handle, "SELECT count(*) FROM orders WHERE item = 'tea'")
        await shop.order(f"milk {shop.runs}")
        if shop.runs == 1:
            async with other.transaction(isolation="serializable"):
                await other.fetch("SELECT count(*) FROM orders WHERE item LIKE 'milk%'")
                await other.execute("INSERT INTO orders (item) VALUES ('tea')")
        return 201

    shop.handler = skewed
    async with counter(shop, served, rule=replace(RULE, isolation="serializable")) as desk:
        done = await desk.ask()
        assert (done.status, done.body) == (201, b"run 2")
        assert await desk.left() == (["milk 2", "tea"], ["milk 2"], ["COMPLETED"])
    await other.close()


async def test_a_deadlock_runs_the_unit_again(served: World) -> None:
    await outside(served, "INSERT INTO orders (item) VALUES ('a'), ('b')")
    other = await asyncpg.connect(served.target)
    take = "UPDATE orders SET item = item WHERE item = '{}'"
    theirs: list[asyncio.Task[Any]] = []

    async def crossing(shop: Shop) -> int:
        await served.execute(shop.handle, "SET LOCAL deadlock_timeout = '10ms'")
        if shop.runs > 1:
            await theirs[0]
            await other.execute("COMMIT")
        await served.execute(shop.handle, take.format("a"))
        if shop.runs == 1:
            await other.execute("BEGIN; SET LOCAL deadlock_timeout = '1min'")
            await other.execute(take.format("b"))
            theirs.append(asyncio.ensure_future(other.execute(take.format("a"))))
            while not await waiting(served):  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.005)
        await served.execute(shop.handle, take.format("b"))
        await shop.order()
        return 201

    shop = Shop(served, crossing)
    async with counter(shop, served) as desk:
        assert (await desk.ask()).body == b"run 2"
        assert shop.attempts == [1, 2]
    await other.close()


async def waiting(place: World) -> bool:
    connection = await asyncpg.connect(place.target)
    try:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    finally:
        await connection.close()


class SnapshotUnit:
    """A unit of the application's own, whose transaction begins to write later than it reads."""

    library = "sqlite3"

    def __init__(self, path: str) -> None:
        self.path = path

    @asynccontextmanager
    async def begin(self, *, isolation: str | None, lock_timeout: timedelta) -> AsyncIterator[UnitOfWork]:
        connection = await aiosqlite.connect(self.path, isolation_level=None)
        try:
            await connection.execute("BEGIN")
            yield Snapshot(connection)
        finally:
            await connection.close()


class Snapshot:
    interfering: Callable[[], None] | None = None

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.tx = WatchedTx(adopt(connection, "sqlite"))
        self.handle: object = connection

    async def savepoint(self) -> None:
        await self.connection.execute("SAVEPOINT here")

    async def undo(self) -> None:
        await self.connection.execute("ROLLBACK TO here")

    async def commit(self) -> None:
        await self.connection.execute("COMMIT")

    async def rollback(self) -> None:
        await self.connection.execute("ROLLBACK")

    def intact(self) -> bool:
        return self.connection.in_transaction


async def test_a_stale_snapshot_of_a_file_runs_the_unit_again(make_target: MakeTarget) -> None:
    """SQLITE_BUSY_SNAPSHOT, in a unit that an application wrote itself."""
    async with world("aiosqlite", make_target) as place:
        place.unit = SnapshotUnit(place.target)
        begun = place.unit.begin
        stale: list[int] = []

        @asynccontextmanager
        async def begin(**options: Any) -> AsyncIterator[UnitOfWork]:
            async with begun(**options) as work:
                assert isinstance(work, Snapshot)
                async with work.connection.execute("SELECT count(*) FROM orders") as cursor:
                    await cursor.fetchone()
                if len(stale) == 1:  # the first is the look at the unit's database
                    with sqlite3.connect(place.target) as other:
                        other.execute("INSERT INTO orders (item) VALUES ('tea')")
                    other.close()
                stale.append(1)
                yield work

        place.unit.begin = begin
        shop = Shop(place, None)

        async def orders(shop: Shop) -> int:
            await shop.order()
            return 201

        shop.handler = orders
        async with counter(shop, place) as desk:
            assert (await desk.ask()).status == 201
            assert await desk.left() == (["milk", "tea"], ["milk"], ["COMPLETED"])
            assert (len(stale), shop.attempts) == (3, [2])


async def test_an_application_of_a_framework_is_run_again_and_works_on_once(served: World) -> None:
    """Through Starlette: its error handling, a middleware that splits the response, and background work."""
    await outside(served, "INSERT INTO orders (item) VALUES ('stock')")
    handler = Contended(served, 1)
    shop = Shop(served, handler)
    worked: list[int] = []

    async def endpoint(request: Request) -> Response:
        shop.runs += 1
        request.state.mark = shop.runs
        request.scope["left"] = shop.runs
        await request.body()
        status = await handler(shop)
        return PlainTextResponse(f"run {shop.runs}", status, background=BackgroundTask(worked.append, shop.runs))

    async def on_error(request: Request, error: Exception) -> Response:
        return PlainTextResponse("handled", 500)

    async def pass_through(request: Request, call_next: Any) -> Response:
        assert "left" not in request.scope
        return await call_next(request)

    app = Starlette(
        routes=[Route("/orders", endpoint, methods=["POST"])], exception_handlers={Exception: on_error},
    )  # fmt: skip
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_through)
    async with counter(app, served, rule=replace(RULE, isolation="repeatable read")) as desk:
        done = await desk.ask()
        assert (done.status, done.body) == (201, b"run 2")
        assert worked[-1:] == [2]
        assert (await desk.ask()).replayed


# --- HX-70: the connection is lost while the transaction is committed


class LossyUnit:
    """A unit whose connections break at the commit: before the server has it, or before it says so."""

    def __init__(self, unit: Any, *losses: str) -> None:
        self.unit = unit
        self.library = unit.library
        self.losses = list(losses)

    @asynccontextmanager
    async def begin(self, **options: Any) -> AsyncIterator[UnitOfWork]:
        async with self.unit.begin(**options) as work:
            commit = work.commit

            async def lossy() -> None:
                loss = self.losses.pop(0) if self.losses else "none"
                if loss == "before":
                    await work.rollback()
                else:
                    await commit()
                if loss != "none":
                    raise ConnectionResetError("the server went away")

            work.commit = lossy
            yield work


async def orders(shop: Shop) -> int:
    await shop.order(f"milk {shop.runs}")
    return 201


async def test_a_commit_that_was_not_acknowledged_is_found(place: World) -> None:
    place.unit = LossyUnit(place.unit, "after")
    shop = Shop(place, orders)
    async with counter(shop, place) as desk:
        done = await desk.ask()
        assert (done.status, done.body, done.replayed) == (201, b"run 1", False)
        assert await desk.left() == (["milk 1"], ["milk 1"], ["COMPLETED"])
        assert (await desk.ask()).replayed
        assert shop.runs == 1


async def test_a_commit_that_did_not_happen_is_run_again(place: World) -> None:
    place.unit = LossyUnit(place.unit, "before", "before")
    shop = Shop(place, orders)
    async with counter(shop, place) as desk:
        assert (await desk.ask()).body == b"run 3"
        assert shop.attempts == [1, 2, 3]
        assert await desk.left() == (["milk 3"], ["milk 3"], ["COMPLETED"])


async def test_commits_that_never_happen_are_refused(place: World) -> None:
    place.unit = LossyUnit(place.unit, *["before"] * 4)
    shop = Shop(place, orders)
    async with counter(shop, place, rule=replace(RULE, retries=3)) as desk:
        assert (await desk.ask()).code == "store_unavailable"
        assert (shop.runs, await desk.left()) == (4, ([], [], []))


@pytest.mark.parametrize("loss", ["before", "after"])
async def test_a_commit_whose_fate_no_row_tells_is_refused_and_not_run_again(place: World, loss: str) -> None:
    async def unkept(shop: Shop) -> int:
        idem = current()
        assert idem is not None
        idem.no_store()
        return await orders(shop)

    place.unit = LossyUnit(place.unit, loss)
    shop = Shop(place, unkept)
    async with counter(shop, place) as desk:
        assert (await desk.ask()).code == "store_unavailable"
        assert shop.runs == 1


@pytest.mark.parametrize("status", [422, 500])
async def test_other_outcomes_are_found_too(place: World, status: int) -> None:
    async def refuses(shop: Shop) -> int:
        await shop.order()
        return status

    place.unit = LossyUnit(place.unit, "after")
    shop = Shop(place, refuses)
    async with counter(shop, place, rule=replace(RULE, on_5xx="ambiguous")) as desk:
        assert (await desk.ask()).status == status
        assert shop.runs == 1


LOSING = """
    CREATE SEQUENCE lost;
    CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF nextval('lost') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION lose();
"""


async def test_a_session_that_the_server_ends_at_the_commit_is_looked_up(served: World) -> None:
    """A real loss: in the middle of the COMMIT the server ends the session."""
    await outside(served, LOSING)
    shop = Shop(served, orders)
    async with counter(shop, served) as desk:
        assert (await desk.ask()).body == b"run 2"
        assert await desk.left() == (["milk 2"], ["milk 2"], ["COMPLETED"])


async def test_a_commit_that_the_server_refuses_is_the_applications_own_failure(served: World) -> None:
    await outside(served, "ALTER TABLE orders ADD UNIQUE (item) DEFERRABLE INITIALLY DEFERRED")
    await outside(served, "INSERT INTO orders (item) VALUES ('milk 1')")
    shop = Shop(served, orders)
    async with counter(shop, served) as desk:
        first = await desk.ask()
        assert isinstance(first.error, asyncpg.UniqueViolationError | IntegrityError)
        assert await desk.left() == (["milk 1"], [], [])
        assert (await desk.ask()).body == b"run 2"


async def test_a_server_that_is_gone_at_the_commit_leaves_the_truth_to_the_next_request(pooled: World) -> None:
    place = pooled
    lossy = LossyUnit(place.unit, "after")
    place.unit = lossy
    begin = lossy.begin

    @asynccontextmanager
    async def unreachable(**options: Any) -> AsyncIterator[UnitOfWork]:
        if not lossy.losses and len(down) < 3:
            down.append(1)
            raise Unavailable("the server is gone")
        async with begin(**options) as work:
            yield work

    down: list[int] = []
    shop = Shop(place, orders)
    async with counter(shop, place) as desk:
        lossy.begin = unreachable
        first = await desk.ask()
        assert (first.status, first.code) == (503, "store_unavailable")
        again = await desk.ask()
        assert (again.status, again.replayed, shop.runs) == (201, True, 1)


async def test_a_server_that_is_down_is_refused(pooled: World) -> None:
    shop = Shop(pooled, orders)
    async with counter(shop, pooled) as desk:
        await pooled.pool.close()
        assert (await desk.ask()).code == "store_unavailable"
        assert shop.runs == 0


async def test_a_rule_may_let_requests_pass_while_the_server_is_down(pooled: World) -> None:
    async def plain(shop: Shop) -> int:
        assert shop.handle is None
        return 201

    async with counter(Shop(pooled, plain), pooled, rule=replace(RULE, on_store_error="open")) as desk:
        await pooled.pool.close()
        answered = await desk.ask()
        assert (answered.status, answered.header("idempotency-unprotected")) == (201, "true")


# --- the unit's own promises


async def test_a_first_run_takes_two_statements_beside_those_of_the_transaction(make_target: MakeTarget) -> None:
    """HX-113."""
    seen: list[str] = []

    async def watch(connection: Any) -> None:
        connection.add_query_logger(lambda query: seen.append(query.query.split()[0].rstrip(";")))

    async def nothing(shop: Shop) -> int:
        return 201

    async with (
        world("asyncpg", make_target) as place,
        asyncpg.create_pool(place.target, min_size=1, max_size=1, init=watch) as pool,
    ):
        place.unit = PoolUnit(pool)
        async with counter(Shop(place, nothing), place) as desk:
            await asyncio.sleep(0)
            seen.clear()
            await desk.ask()
            await asyncio.sleep(0)
            first, begun = list(seen), len(seen)
            assert (await desk.ask()).replayed
            await asyncio.sleep(0)
    pooling = "SELECT"  # what the pool runs when a connection comes back
    assert first == ["BEGIN", "SET", "WITH", "SAVEPOINT", "UPDATE", "COMMIT", pooling]
    assert seen[begun:] == ["BEGIN", "SET", "WITH", "ROLLBACK", pooling]


async def test_the_handlers_own_waits_are_not_cut_short(served: World) -> None:
    timeouts: list[str] = []

    async def looks(shop: Shop) -> int:
        if served.kind == "asyncpg":
            timeouts.append(await shop.handle.fetchval("SHOW lock_timeout"))
        else:
            timeouts.append((await shop.handle.execute(text("SHOW lock_timeout"))).scalar_one())
        return 201

    async with counter(Shop(served, looks), served) as desk:
        assert (await desk.ask()).status == 201
        assert timeouts == ["0"]


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_a_unit_runs_in_the_isolation_of_its_rule(served: World, isolation: str) -> None:
    found: list[str] = []

    async def looks(shop: Shop) -> int:
        if served.kind == "asyncpg":
            found.append(await shop.handle.fetchval("SHOW transaction_isolation"))
        else:
            found.append((await shop.handle.execute(text("SHOW transaction_isolation"))).scalar_one())
        return 201

    async with counter(Shop(served, looks), served, rule=replace(RULE, isolation=isolation)) as desk:
        assert (await desk.ask()).status == 201
        assert found == [isolation]


def give_up() -> None:
    raise ZeroDivisionError


async def test_a_handler_may_nest_transactions(place: World) -> None:
    async def nests(shop: Shop) -> int:
        handle = shop.handle
        await shop.order()
        try:
            if place.kind == "asyncpg":
                async with handle.transaction():
                    await place.insert(handle, "tea")
                    give_up()
            elif place.kind == "apsw":
                with handle:
                    await place.insert(handle, "tea")
                    give_up()
            elif place.kind == "aiosqlite":
                await handle.execute("SAVEPOINT mine")
                await place.insert(handle, "tea")
                await handle.execute("ROLLBACK TO mine")
            else:
                async with handle.begin_nested():
                    await place.insert(handle, "tea")
                    give_up()
        except ZeroDivisionError:
            pass
        return 201

    async with counter(Shop(place, nests), place) as desk:
        assert (await desk.ask()).status == 201
        assert await desk.left() == (["milk"], ["milk"], ["COMPLETED"])


async def test_a_statement_that_fails_may_be_caught_if_the_answer_says_so(served: World) -> None:
    """PostgreSQL keeps nothing after a statement that failed: a 422 undoes to the savepoint, a 201 cannot be."""
    statuses = [201, 422]

    async def spoils(shop: Shop) -> int:
        await shop.order()
        try:
            await served.execute(shop.handle, "INSERT INTO orders (item) VALUES (NULL)")
        except Exception:  # noqa: BLE001 - as a careless handler does
            return statuses[shop.runs - 1]
        return 500

    shop = Shop(served, spoils)
    async with counter(shop, served) as desk:
        first = await desk.ask()
        assert isinstance(first.error, StoreError)
        assert first.messages == []
        assert await desk.left() == ([], [], [])
        assert (await desk.ask()).status == 422
        assert await desk.left() == ([], [], ["COMPLETED"])


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    item: Mapped[str] = mapped_column(String, primary_key=True)


@pytest.fixture(params=["sqlalchemy-postgres", "sqlalchemy-sqlite"])
async def mapped(request: pytest.FixtureRequest, make_target: MakeTarget) -> AsyncIterator[World]:
    async with world(request.param, make_target) as made:
        yield made


async def test_what_is_pending_in_a_session_is_committed_or_undone_with_the_rest(mapped: World) -> None:
    async def adds(shop: Shop) -> int:
        shop.handle.add(Order(item=f"milk {shop.runs}"))
        return (422, 500, 201)[shop.runs - 1]

    shop = Shop(mapped, adds)
    async with counter(shop, mapped) as desk:
        assert (await desk.ask("order-of-the-first")).status == 422
        assert (await desk.ask()).status == 500
        assert await mapped.orders() == []
        assert (await desk.ask()).status == 201
        assert await mapped.orders() == ["milk 3"]


async def test_what_is_pending_in_a_session_and_cannot_be_written_is_the_applications_own_failure(
    mapped: World,
) -> None:
    async def adds(shop: Shop) -> int:
        await mapped.execute(shop.handle, "CREATE UNIQUE INDEX once ON orders (item)")
        await mapped.insert(shop.handle, "milk")
        shop.handle.add(Order(item="milk"))
        return 201

    shop = Shop(mapped, adds)
    async with counter(shop, mapped) as desk:
        first = await desk.ask()
        assert isinstance(first.error, IntegrityError)
        assert (shop.runs, await desk.left()) == (1, ([], [], []))


async def test_rows_of_the_applications_own_making_do_not_matter(make_target: MakeTarget) -> None:
    """A row factory that makes mappings, and a connection that opens its transactions by itself."""

    async def connect() -> aiosqlite.Connection:
        connection = await aiosqlite.connect(place.target, isolation_level="DEFERRED")
        connection.row_factory = lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}
        return connection

    async with world("aiosqlite", make_target) as place:
        place.unit = AiosqliteUnit(connect)
        async with counter(Shop(place, orders), place) as desk:
            assert (await desk.ask()).status == 201
            assert (await desk.ask()).replayed


@pytest.mark.parametrize("kind", ["apsw", "aiosqlite"])
async def test_a_path_is_enough_for_a_unit(kind: str, make_target: MakeTarget) -> None:
    async with world(kind, make_target) as place:
        place.unit = ApswUnit(place.target) if kind == "apsw" else AiosqliteUnit(place.target)
        async with counter(Shop(place, orders), place) as desk:
            assert (await desk.ask()).status == 201
            assert await desk.left() == (["milk 1"], ["milk 1"], ["COMPLETED"])


async def test_an_engine_that_begins_its_own_transactions_will_do(make_target: MakeTarget) -> None:
    """As SQLAlchemy's documentation has it, for savepoints on SQLite."""
    async with world("sqlalchemy-sqlite", make_target) as place:
        engine = create_async_engine(f"sqlite+aiosqlite:///{place.target}")
        event.listen(engine.sync_engine, "connect", lambda dbapi, _: setattr(dbapi, "isolation_level", None))
        event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        place.unit = SessionUnit(async_sessionmaker(engine))
        async with counter(Shop(place, orders), place) as desk:
            assert (await desk.ask()).status == 201
            assert await desk.left() == (["milk 1"], ["milk 1"], ["COMPLETED"])
        await engine.dispose()


# --- HX-73: the unit's database is the guard's


async def test_a_unit_on_another_ledger_is_refused(place: World, make_target: MakeTarget, tmp_path: Path) -> None:
    other = make_target("postgres") if place.kind in ON_POSTGRES else str(tmp_path / "other.db")
    async with counter(None, place):
        pass  # there is a ledger in it
    with pytest.raises(ConfigError) as refused:
        async with counter(None, place, database=other):
            pass
    assert refused.value.code == "config.unit_database"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_unit_on_a_database_without_a_ledger_is_refused(
    kind: str, make_target: MakeTarget, tmp_path: Path
) -> None:
    other = make_target("postgres") if kind in ON_POSTGRES else str(tmp_path / "other.db")
    async with world(kind, lambda each: make_target("postgres-empty" if each == "postgres" else each)) as place:
        with pytest.raises(SchemaMismatch):
            async with counter(None, place, database=other):
                pass


@pytest.mark.parametrize("kind", ["aiosqlite", "sqlalchemy-sqlite"])
async def test_two_libraries_never_share_a_file(kind: str, make_target: MakeTarget) -> None:
    async with world(kind, make_target) as place:
        database = await open_database(place.target, clock=SystemClock())
        try:
            for given in (database, place.target):
                with pytest.raises(ConfigError) as refused:
                    async with counter(None, place, database=given):
                        pass
                assert refused.value.code == "config.unit_database"
        finally:
            await database.close()
        async with counter(None, place):
            with pytest.raises(ConfigError):
                await open_database(place.target, clock=SystemClock())


def test_sessions_on_another_driver_are_refused() -> None:
    class Dialect:
        driver = "asyncmy"

    class Bound:
        dialect = Dialect()

    class Session:
        def get_bind(self) -> Any:
            return Bound()

    with pytest.raises(ConfigError, match="asyncmy"):
        SessionUnit(Session)
