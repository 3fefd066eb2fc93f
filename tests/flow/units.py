"""Applications on each driver that a unit is made for: their tables, their writes, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import aiosqlite
import apsw
import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from tests.flow.exchanges import Answer, Call, ask, call, config

from holdfast.core.clock import Clock, SystemClock
from holdfast.idempotency import (
    Idempotency,
    IdempotencyEvent,
    IdempotencyMiddleware,
    Principal,
    RouteRule,
    current,
    keys,
    outbox,
)
from holdfast.idempotency.unit import Unit
from holdfast.idempotency.values import KeyRecord
from holdfast.integrations import aiosqlite as aiosqlite_units
from holdfast.integrations import apsw as apsw_units
from holdfast.integrations import asyncpg as asyncpg_units
from holdfast.integrations import sqlalchemy as sqlalchemy_units
from holdfast.store.database import Database

HORIZON_TRIES, HORIZON_SECONDS = 1500, 0.02
"""On PostgreSQL an event is read once every older transaction of the server has ended, other tests' among them."""

KINDS = ("asyncpg", "sqlalchemy-postgres", "apsw", "aiosqlite", "sqlalchemy-sqlite")
ON_POSTGRES = ("asyncpg", "sqlalchemy-postgres")
ON_SQLITE = ("apsw", "aiosqlite", "sqlalchemy-sqlite")
RULE = RouteRule(mode="transaction", lock_timeout=timedelta(milliseconds=300))
CREATE = "CREATE TABLE IF NOT EXISTS orders (item TEXT NOT NULL)"
INSERT = "INSERT INTO orders (item) VALUES ('{}')"
SELECT = "SELECT item FROM orders ORDER BY item"


def sqlalchemy_url(url: str) -> str:
    """A URL as SQLAlchemy spells it; its settings are given apart."""
    return "postgresql+asyncpg://" if url.startswith("postgres") else f"sqlite+aiosqlite:///{url}"


@dataclass
class World:
    """One application's database, which is also the guard's ledger, and a driver to it.

    Attributes:
        kind: Which driver and database.
        target: Path or URL.
        unit: What opens its transactions.
    """

    kind: str
    target: str
    unit: Unit
    pool: Any = None
    engine: AsyncEngine | None = None

    async def execute(self, handle: Any, statement: str) -> None:
        """Run a statement as a handler would, on what `Idem.handle` gives."""
        if self.kind == "apsw":
            handle.execute(statement).fetchall()
        elif self.kind.startswith("sqlalchemy"):
            await handle.execute(text(statement))
        else:
            await handle.execute(statement)

    async def insert(self, handle: Any, item: str) -> None:
        """Write an order."""
        await self.execute(handle, INSERT.format(item))

    async def commit(self, handle: Any) -> None:
        """End the transaction as a handler would that does not know better."""
        await (self.execute(handle, "COMMIT") if self.kind in ("apsw", "asyncpg") else handle.commit())

    async def rollback(self, handle: Any) -> None:
        """The same, without a trace."""
        await (self.execute(handle, "ROLLBACK") if self.kind in ("apsw", "asyncpg") else handle.rollback())

    async def close(self, handle: Any) -> None:
        """Close what the handler was given."""
        if self.kind == "apsw":
            handle.close(True)
        else:
            await handle.close()

    async def orders(self) -> list[str]:
        """What is in the application's table, seen from outside."""
        return await self._select(SELECT)

    async def events(self) -> int:
        """How many events are in the outbox, readable yet or not."""
        return len(await self._select("SELECT id FROM idem_outbox"))

    async def _select(self, statement: str) -> list[Any]:
        if self.pool is not None:
            return [row[0] for row in await self.pool.fetch(statement)]
        if self.engine is not None:
            async with self.engine.connect() as connection:
                return list((await connection.execute(text(statement))).scalars())
        if self.kind == "apsw":
            return [row[0] for row in apsw.Connection(self.target).execute(statement)]
        with contextlib.closing(sqlite3.connect(self.target)) as file:  # the library that the application uses
            return [row[0] for row in file.execute(statement)]


@asynccontextmanager
async def world(kind: str, make_target: Callable[[str], str]) -> AsyncIterator[World]:
    """Make an application's database with its table, and a unit on it."""
    target = make_target("postgres" if kind in ON_POSTGRES else "sqlite-file")
    async with opened(kind, target) as made:
        if kind in ON_POSTGRES:
            connection = await asyncpg.connect(target)
            await connection.execute(CREATE)
            await connection.close()
        elif kind == "apsw":
            apsw.Connection(target).execute(CREATE)
        else:
            with contextlib.closing(sqlite3.connect(target)) as connection:
                connection.execute(CREATE)
        yield made


@asynccontextmanager
async def opened(kind: str, target: str) -> AsyncIterator[World]:
    """Open an application's own way to its database."""
    if kind == "asyncpg":
        async with asyncpg.create_pool(target, min_size=1, max_size=6) as pool:
            yield World(kind, target, asyncpg_units.PoolUnit(pool), pool=pool)
    elif kind == "apsw":
        yield World(kind, target, apsw_units.ConnectionUnit(lambda: apsw.Connection(target)))
    elif kind == "aiosqlite":
        yield World(kind, target, aiosqlite_units.ConnectionUnit(lambda: aiosqlite.connect(target)))
    else:
        creator: dict[str, Any] = {"async_creator": lambda: asyncpg.connect(target)} if kind in ON_POSTGRES else {}
        engine = create_async_engine(sqlalchemy_url(target), **creator)
        try:
            unit = sqlalchemy_units.SessionUnit(async_sessionmaker(engine))
            yield World(kind, target, unit, engine=engine)
        finally:
            await engine.dispose()


Handler = Callable[["Shop"], Awaitable[int]]


@dataclass
class Shop:
    """An application that orders things in the unit's transaction.

    Attributes:
        world: Its database.
        handler: What it does; returns the status.
        runs: How often it ran.
        attempts: What each run was told.
        keys: The derived key each run had.
    """

    world: World
    handler: Handler
    runs: int = 0
    attempts: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def handle(self) -> Any:
        idem = current()
        assert idem is not None
        return idem.handle

    async def order(self, item: str = "milk") -> None:
        """Write an order and an event."""
        await self.world.insert(self.handle, item)
        idem = current()
        assert idem is not None
        await idem.emit("ordered", item.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        idem = current()
        if idem is not None:
            self.attempts.append(idem.attempt)
            self.keys.append(idem.derived_key("charge"))
        message = await receive()
        self.bodies.append(message["body"])
        status = await self.handler(self)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"run %d" % self.runs})


@dataclass
class Counter:
    """A shop behind a guard."""

    app: Callable[[Any, Any, Any], Awaitable[None]]
    guard: Idempotency
    world: World
    events: list[IdempotencyEvent]

    async def ask(self, key: str | None = "order-17-of-may", **request: Any) -> Answer:
        return await ask(self.app, key, **request)

    def call(self, key: str | None = "order-17-of-may", **request: Any) -> Call:
        return call(self.app, key, **request)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind != "weak_key"]

    async def record(self, key: str) -> KeyRecord | None:
        principal = Principal("user-1", "acme")
        ticket = self.guard.ticket(
            principal=principal, key=key, rule=RULE, method="POST", route="*", fingerprint=bytes(32)
        )
        return await self.guard.record(ticket)

    async def records(self) -> list[KeyRecord]:
        return await records(self.guard.database)

    async def topics(self) -> list[str]:
        return [event.payload.decode() for event in await outbox.read(self.guard.database)]

    async def left(self) -> tuple[list[str], list[str], list[str]]:
        """What is there: orders, events, states of records."""
        found = [record.state.name for record in await self.records()]
        orders, events, topics = await self.world.orders(), await self.world.events(), await self.topics()
        for _ in range(HORIZON_TRIES):
            if len(topics) >= events:
                break
            await asyncio.sleep(HORIZON_SECONDS)
            topics = await self.topics()
        return orders, topics, found


async def records(database: Database) -> list[KeyRecord]:
    async with database.read() as tx:
        page = await keys.list(tx, limit=200)
    return list(page.items)


PATIENCE = {"store_timeout": timedelta(seconds=20), "release_timeout": timedelta(seconds=20)}
"""What a machine that is busy with other tests may need."""


@asynccontextmanager
async def counter(
    app: Any, world: World, *, rule: RouteRule = RULE, database: Any = None, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Counter]:
    """Put an application behind an open guard whose unit is the world's."""
    events: list[IdempotencyEvent] = []
    made = config(**{"rule": rule, "on_event": events.append, **PATIENCE, **settings})
    guard = Idempotency(database or world.target, made, unit=world.unit, clock=clock or SystemClock())
    try:
        await guard.start()
        yield Counter(IdempotencyMiddleware(app, guard), guard, world, events)
    finally:
        await guard.stop()
