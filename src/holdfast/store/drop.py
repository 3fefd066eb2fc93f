"""Drop a hook call where it survives, before anything else is known about it.

A hook call is a process of its own that the harness waits for, so this is the shortest way to a durable row: one
connection, one transaction, no catalogue and no event loop. A call goes into the ledger; one that the ledger cannot
take goes into a spool file beside it, and is moved to the ledger under the same id by whoever derives receipts.

This module is imported where `typing`, `asyncio` and most of the standard library would cost too much.

Invariants:
    - What `append` or `spool` has returned from survives a crash of the machine.
    - A call that is dropped twice under one id is there once.
    - A ledger whose schema is not the expected one is left as it is.
    - The log is not copied into the file on the way out, but when it has grown; others do that better.
"""

from __future__ import annotations

import os

import apsw

TYPE_CHECKING = False  # what `typing` says too
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FILE_NAME", "Refused", "append", "forget", "spool", "waiting"]

FILE_NAME = "hooks.db"
"""The spool file, in the state directory."""
LOG_BYTES_MAX = 1024 * 1024
"""A log that is longer is copied into its file at the end: every call that opens the file alone reads all of it."""
WAIT_MS = 1000
"""How long those who empty a spool file wait for those who fill it: longer than any of their transactions takes."""

_SQL = os.path.join(os.path.dirname(__file__), "sql")


class Refused(Exception):
    """A file could not take the call.

    Attributes:
        why: What is wrong, without a word of the call.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def append(path: str, row: tuple[object, ...], *, schema: int, wait_ms: int) -> None:
    """Write a call into the ledger, durably.

    Args:
        path: The ledger's file, which has to be there.
        row: The parameters of `hooks.append`, in its order.
        schema: The schema that the ledger must have.
        wait_ms: How long to wait for another process to end its transaction.

    Raises:
        Refused: The ledger is locked, full, unreadable, or has another schema.
    """
    with _File(path, wait_ms) as connection:
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute(_statement("sqlite/ledger.sql", "ledger.get"), ("schema",)).fetchall()
        if found != [(str(schema).encode(),)]:
            raise Refused(f"{path} has another schema than {schema}")
        connection.execute(_statement("sqlite/hooks.sql", "hooks.append"), row).fetchall()
        connection.execute("COMMIT")


def spool(path: str, row: tuple[object, ...], *, wait_ms: int) -> None:
    """Write a call into a spool file, durably; make the file and its folder when they are missing.

    Raises:
        Refused: It cannot be made or written.
    """
    _make(path)
    with _File(path, wait_ms) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(_statement("spool/spool.sql", "hooks.make"))
        connection.execute(_statement("sqlite/hooks.sql", "hooks.append"), row).fetchall()


def waiting(path: str, limit: int = 100) -> list[tuple[object, ...]]:
    """Return the calls in a spool file, oldest first, as parameters of `hooks.append`; none if there is no file.

    Raises:
        Refused: It cannot be read.
    """
    if not os.path.exists(path):
        return []
    with _File(path, WAIT_MS) as connection:
        connection.execute(_statement("spool/spool.sql", "hooks.make"))
        return connection.execute(_statement("spool/spool.sql", "hooks.waiting"), (limit,)).fetchall()


def forget(path: str, ids: Iterable[str]) -> None:
    """Take calls out of a spool file that are in the ledger; those that are not there any more are no matter.

    Raises:
        Refused: It cannot be written.
    """
    if not os.path.exists(path):
        return
    with _File(path, WAIT_MS) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_statement("spool/spool.sql", "hooks.make"))
        connection.executemany(_statement("spool/spool.sql", "hooks.forget"), [(id,) for id in ids])
        connection.execute("COMMIT")


class _File:
    """A connection for a block. What is not committed at its end is rolled back, and what fails is `Refused`."""

    __slots__ = ("_connection", "_path", "_wait_ms")

    def __init__(self, path: str, wait_ms: int) -> None:
        self._path = path
        self._wait_ms = wait_ms
        self._connection: apsw.Connection | None = None

    def __enter__(self) -> apsw.Connection:
        try:
            self._connection = connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READWRITE)
            connection.set_busy_timeout(self._wait_ms)
            if _size(self._path + "-wal") <= LOG_BYTES_MAX:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            for setting in ("synchronous = FULL", "fullfsync = ON", "wal_autocheckpoint = 0", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {setting}")
        except (apsw.Error, OSError, ValueError) as error:
            self._close()
            raise _refused(self._path, error) from error
        return connection

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close()
        if isinstance(error, (apsw.Error, OSError, ValueError)):
            raise _refused(self._path, error) from error

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close(True)  # noqa: FBT003 - force: its cursors go with it


def _make(path: str) -> None:
    if os.path.exists(path):
        return
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except (OSError, ValueError) as error:
        raise _refused(path, error) from error


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _statement(file: str, name: str) -> str:
    """The text of one named statement, found without reading the catalogue."""
    with open(os.path.join(_SQL, file), encoding="utf-8") as source:
        _, _, rest = source.read().partition(f"-- name: {name}(")
    if not rest:
        raise ValueError(f"{file} has no statement {name}")
    lines = rest.split("\n-- name:")[0].split("\n")[1:]
    return "\n".join(line for line in lines if not line.startswith("--")).strip()


def _refused(path: str, error: Exception) -> Refused:
    why = getattr(error, "strerror", None) or type(error).__name__
    return Refused(f"{path} cannot be written: {why}")
