"""Fresh ledgers in PostgreSQL for tests, migrated already.

Holdfast migrates a few ledgers once, by opening them. What a test gets is a copy of one, made with its whole
database: that takes a tenth of what migrating takes, and a test opens it as it would open an empty schema.

Invariants:
    - Nobody but the migrations has written into a ledger that is given away, and each has a namespace of its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from holdfast.testing.postgres import PostgresServer
from holdfast.testing.store_contract import LocalStore

SCHEMAS = tuple(f"s{number}" for number in range(8))
"""The ledgers of one database: the more, the less each costs to copy, and the larger is the catalogue of all."""

MEMORY = Path("/dev/shm")  # noqa: S108 - the server makes a directory of its own there
MEMORY_BYTES = 10 * 2**30
"""What all ledgers of the suite and their log may take, with much to spare."""


def memory() -> Path | None:
    """Where files lie in memory and a program may lie too; None: nowhere, or there is not enough of it."""
    if not MEMORY.is_dir():
        return None
    there = os.statvfs(MEMORY)
    room = there.f_bavail * there.f_frsize  # which it may have, and the machine not
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            room = min(room, int(line.split()[1]) * 1024)
    return MEMORY if room > MEMORY_BYTES and not there.f_flag & os.ST_NOEXEC else None


class Ledgers:
    """Gives away ledgers of a server."""

    def __init__(self, server: PostgresServer, owners: Path) -> None:
        self._server = server
        self._owners = owners
        self._template = ""
        self._ready: list[str] = []

    def fresh(self) -> str:
        """The address of a ledger that was migrated, and that nobody has opened since."""
        if not self._ready:
            self._template = self._template or self._migrated()
            self._ready = self._copied()
        return self._ready.pop()

    def _copied(self) -> list[str]:
        database = self._database(f"TEMPLATE {self._template}")
        for_each = (
            f"UPDATE {schema}.holdfast_ledger SET value = '\\x{secrets.token_hex(16)}' WHERE name = 'namespace';"  # noqa: S608 - names and digits of our own
            for schema in SCHEMAS
        )
        self._server.sql("".join(for_each), database)
        return self._addresses(database)

    def _migrated(self) -> str:
        """Let Holdfast make the ledgers of a database."""
        database = self._database()
        self._server.sql("".join(f"CREATE SCHEMA {schema};" for schema in SCHEMAS), database)
        with ThreadPoolExecutor(1) as thread:  # in this one a test's loop may be running
            thread.submit(asyncio.run, self._open(database)).result()
        return database

    async def _open(self, database: str) -> None:
        for address in self._addresses(database):
            async with LocalStore(address, self._owners).opened():
                pass

    def _database(self, how: str = "") -> str:
        name = f"t{secrets.token_hex(6)}"
        self._server.sql(f"CREATE DATABASE {name} {how} STRATEGY wal_log")
        return name

    def _addresses(self, database: str) -> list[str]:
        return [f"{self._server.url(database)}&search_path={schema}" for schema in SCHEMAS]
