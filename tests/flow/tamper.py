"""Reach past the library into a ledger: look at its rows, change them, hold its locks.

On SQLite by the same driver as the library: a second copy of SQLite in one process would drop the locks of the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import apsw
import asyncpg

from holdfast.core import trace


def is_postgres(target: str) -> bool:
    """Say which database a target leads to."""
    return target.startswith("postgresql")


@contextmanager
def _file(target: str) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(target)
    connection.set_busy_timeout(10_000)
    try:
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def _server(target: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(target)
    try:
        yield connection
    finally:
        await connection.close()


async def look(target: str, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    if is_postgres(target):
        async with _server(target) as connection:
            return [tuple(row) for row in await connection.fetch(query)]
    with _file(target) as connection:
        return list(connection.execute(query))


async def change(target: str, *statements: str) -> None:
    """Run statements that the library would not."""
    if is_postgres(target):
        async with _server(target) as connection:
            for statement in statements:
                await connection.execute(statement)
        return
    with _file(target) as connection:
        for statement in statements:
            connection.execute(statement)


@asynccontextmanager
async def held(target: str) -> AsyncIterator[None]:
    """Hold what every append needs, as a stuck transaction of somebody else would."""
    if is_postgres(target):
        async with _server(target) as connection, connection.transaction():
            await connection.execute("LOCK TABLE durable_journal IN EXCLUSIVE MODE")
            yield
        return
    with _file(target) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")


def counter(name: str) -> float:
    """The sum of one of this process's counters over its labels."""
    return sum(trace.snapshot().get(f"holdfast_durable_{name}", {}).values())


async def until(condition: Callable[[], object], seconds: float = 60.0, *, anyway: bool = False) -> None:
    """Let the loop turn until something holds; a test whose condition never comes fails here, or goes on anyway."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        if loop.time() >= end:
            assert anyway, "it never came"
            return
        done = loop.create_future()
        loop.call_later(0.002, done.set_result, None)
        await done
