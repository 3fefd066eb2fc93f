"""The books of the demo's services: what really happened, as seen from outside Holdfast.

A book is a file of JSON lines that only grows. Its owner is killed at random moments like everything
else here, so an entry counts once `append` has returned and never half.

Invariants:
    - After `append` the entry survives the death of the process and of the machine.
    - A line cut short by a crash is dropped when the book is opened again: nobody was told of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from holdfast.core.clock import SystemClock
from holdfast.idempotency import outbox
from holdfast.store import Database, open_database

__all__ = ["Book", "Follower", "Outbox", "Tally"]

_MODE = 0o600


class Book:
    """A service's durable record of what it did."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, _MODE)
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.ftruncate(self._file, len(whole))
        self.entries: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def append(self, **entry: object) -> None:
        """Add an entry and return once it is on disk."""
        os.write(self._file, json.dumps(entry).encode() + b"\n")
        os.fsync(self._file)
        self.entries.append(entry)


class Tally:
    """Marks an agent leaves behind, one short line each: they survive its SIGKILL, which is all they must."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, _MODE)

    def mark(self, event: str) -> None:
        """Add a mark, signed with the process's number."""
        os.write(self._file, json.dumps({"event": event, "pid": os.getpid()}).encode() + b"\n")


class Follower:
    """Reads a book that another process writes, entry by entry, as it grows.

    Attributes:
        entries: Everything read so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.entries: list[dict[str, Any]] = []

    def follow(self) -> list[dict[str, Any]]:
        """Read what was added since the last time and return all entries."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
            whole = added[: added.rfind(b"\n") + 1]
            self._offset += len(whole)
            self.entries.extend(json.loads(line) for line in whole.splitlines())
        return self.entries

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the entries read so far that record one kind of event."""
        return [entry for entry in self.entries if entry["event"] == event]


class Outbox:
    """Reads the events another process commits with its payments, as they come.

    Attributes:
        receipts: The payload of every event read so far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: Database | None = None
        self._cursor: str | None = None
        self.receipts: list[dict[str, Any]] = []

    async def follow(self) -> None:
        """Read what was added since the last time."""
        if self._database is None:
            if not self._path.exists():
                return
            self._database = await open_database(self._path, clock=SystemClock())
        while events := await outbox.read(self._database, after=self._cursor):
            self.receipts += [json.loads(event.payload) for event in events]
            self._cursor = events[-1].cursor

    async def close(self) -> None:
        """Read no more."""
        if self._database is not None:
            await self._database.close()
