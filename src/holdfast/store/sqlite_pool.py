"""The connections to one SQLite file: how they are opened, lent to readers, and closed.

A read-only ledger that nobody has open is read without locks, for with locks SQLite would make a log beside
it and leave it there. Such a reader is told apart by the file's stamp: it serves as long as the file stays
as it was, and what it has read is thrown away when the file changed meanwhile.

Invariants:
    - A connection lent to a reader is nobody else's until it comes back.
    - In a forked child no connection is ever closed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import urllib.parse

import apsw

from holdfast.core.errors import Busy, StoreError
from holdfast.store.home import leak

__all__ = ["Pool", "Reader", "find_file", "make_file", "pragmas"]

READERS_IDLE_MAX = 4
BUSY_MS = 1000
"""How long a read, or opening, may hold up the loop while another process makes or recovers the log; rare."""
CACHE_KIB = 16 * 1024
STATEMENTS_CACHED = 256

_Stamp = tuple[int, ...]


class Reader:
    """A connection that serves one read block at a time.

    Attributes:
        stamp: The state of a file that is read without locks, else None.
    """

    __slots__ = ("connection", "stamp")

    def __init__(self, connection: apsw.Connection, stamp: _Stamp | None) -> None:
        self.connection = connection
        self.stamp = stamp


class Pool:
    """All connections to one file, or the one to a database in memory.

    Args:
        path: The file.
        read_only: Whether the ledger is; then a file nobody has open is read without locks.
    """

    def __init__(self, path: str, *, read_only: bool) -> None:
        self._path = path
        self._read_only = read_only
        self._open: list[apsw.Connection] = []
        self._idle: list[Reader] = []
        self.closed = False

    def connect(self, flags: int, *, immutable: bool = False) -> apsw.Connection:
        """Open a connection that this pool closes."""
        name = self._path
        if immutable:
            name, flags = f"file:{urllib.parse.quote(name)}?immutable=1", flags | apsw.SQLITE_OPEN_URI
        connection = apsw.Connection(name, flags=flags, statementcachesize=STATEMENTS_CACHED)
        try:
            connection.set_busy_timeout(BUSY_MS)
            pragmas(connection, f"cache_size = -{CACHE_KIB}", "temp_store = MEMORY", "trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        self._open.append(connection)
        return connection

    def take(self) -> Reader:
        """Lend a connection to a reader."""
        stamp = _quiet_stamp(self._path) if self._read_only else None
        while self._idle:
            reader = self._idle.pop()
            if reader.stamp == stamp:
                return reader
            self.part_with(reader.connection)
        return Reader(self.connect(apsw.SQLITE_OPEN_READONLY, immutable=stamp is not None), stamp)

    def give(self, reader: Reader) -> None:
        """Take a connection back."""
        if self.closed:
            return
        if len(self._idle) < READERS_IDLE_MAX:
            self._idle.append(reader)
        else:
            self.part_with(reader.connection)

    def verify(self, reader: Reader) -> None:
        """Make sure that what was read belongs together.

        Raises:
            Busy: The file was read without locks, and somebody changed it meanwhile.
        """
        if reader.stamp is not None and _stamp(self._path) != reader.stamp:
            raise Busy(f"{self._path} was changed while it was read", "read again")

    def part_with(self, connection: apsw.Connection) -> None:
        """Close one connection."""
        self._open.remove(connection)
        connection.close(True)  # noqa: FBT003 - force: its cursors go with it

    def close(self) -> None:
        """Close all; what still uses one gets an error."""
        self.closed = True
        self._idle.clear()
        for connection in reversed(self._open):
            connection.close(True)  # noqa: FBT003 - force, as above
        self._open.clear()

    def leave_log(self) -> None:
        """Have closing leave the log as it is, as the death of the process would."""
        for connection in self._open:
            leave_log(connection)

    def leak(self) -> None:
        """Never close any of them: this is a forked child."""
        for connection in self._open:
            leak(connection)


def leave_log(connection: apsw.Connection) -> None:
    """Have closing a connection leave the log as it is."""
    with contextlib.suppress(apsw.Error):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


def pragmas(connection: apsw.Connection, *settings: str) -> None:
    """Set pragmas on a connection."""
    for setting in settings:
        connection.execute(f"PRAGMA {setting}").fetchall()


def make_file(path: str) -> None:
    """Make an empty file with mode 0600 unless there is one; SQLite's own would have the umask's mode.

    Raises:
        StoreError: It cannot be made, or something else is there.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        _check_kind(path)
    except FileNotFoundError as error:
        raise StoreError(
            f"the folder of {path} does not exist", "make it, or give another path", code="store.cannot_open"
        ) from error
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path!r} cannot be created: {getattr(error, 'strerror', error)}",
            "its folder must be there and writable",
            code="store.cannot_open",
        ) from error


def find_file(path: str) -> None:
    """Make sure that there is a file to read.

    Raises:
        StoreError: There is none (`store.missing`), or something else is there.
    """
    if not os.path.exists(path):
        hint = "check the path, or open it for writing"
        raise StoreError(f"there is no ledger at {path}", hint, code="store.missing")
    _check_kind(path)


def _check_kind(path: str) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise StoreError(f"{path} is not a file", "give the path of a file", code="store.cannot_open")


def _stamp(path: str) -> _Stamp | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_ino, state.st_size, state.st_mtime_ns)


def _quiet_stamp(path: str) -> _Stamp | None:
    """Return the state of a file that nobody has open, None for one that must be read with locks."""
    if os.path.exists(path + "-wal") or os.path.exists(path + "-journal"):
        return None
    stamp = _stamp(path)
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    return stamp if head[18:20] == b"\x02\x02" else None  # 2: the file's mode is the write-ahead log
