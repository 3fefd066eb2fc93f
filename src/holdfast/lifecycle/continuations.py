"""Keep what a client wants to find again after a compaction, a reset or a restart. Records over a transaction.

A continuation is a blob under a name in a thread. Nobody here looks into it.

Invariants:
    - A put replaces the whole blob, and raises its version by one; one that expired counts as absent.
    - A thread never holds more than `NAMES_MAX` names or `THREAD_BYTES_MAX` bytes that have not expired.
    - No message holds any of a blob.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from holdfast.core.clock import micros
from holdfast.lifecycle.errors import ContinuationConflict, ContinuationRefused

if TYPE_CHECKING:
    from holdfast.store.database import Row, Tx

__all__ = [
    "BODY_BYTES_MAX", "NAMES_MAX", "NAME_MAX", "THREAD_BYTES_MAX", "TTL", "TTL_MAX", "Blob", "Kept",
    "drop_continuation", "drop_thread", "get_continuation", "list_continuations", "prune_continuations",
    "put_continuation",
]  # fmt: skip

BODY_BYTES_MAX = 256 * 1024
NAMES_MAX = 64
"""Names of a thread."""
THREAD_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of all blobs of a thread."""
TTL = timedelta(days=7)
TTL_MAX = timedelta(days=30)
NAME_MAX = 256
"""Characters of a thread's or a blob's name: an id, and what somebody prefixed it with."""
PRUNED_MAX = 1_000
"""Expired blobs that go at once: many times what one put can have made."""
PAGE = 500


class Kept(NamedTuple):
    """What is known of a continuation without its blob.

    Attributes:
        thread: Its thread.
        name: Its name.
        byte_size: How large the blob is.
        digest: BLAKE3 of the blob, 32 bytes.
        version: How often it was put, since it was absent.
        created_at: When it was put last, microseconds.
        expires_at: From when on it is absent, microseconds.
    """

    thread: str
    name: str
    byte_size: int
    digest: bytes
    version: int
    created_at: int
    expires_at: int


class Blob(NamedTuple):
    """A continuation.

    Attributes:
        entry: What is known of it.
        body: The blob.
    """

    entry: Kept
    body: bytes


async def put_continuation(  # noqa: PLR0913 - a blob, its two names, and how to put it
    tx: Tx,
    thread: str,
    name: str,
    body: bytes,
    *,
    ttl: timedelta = TTL,
    if_version: int | None = None,
    now: int,
) -> int:
    """Put a blob in the place of what is there; return its version.

    Args:
        tx: A transaction that may write.
        thread: Whose it is: a session, a task.
        name: What it is called there.
        body: The blob, of at most `BODY_BYTES_MAX`.
        ttl: How long it is kept, at most `TTL_MAX`.
        if_version: Only if this version is there; 0: only if there is none.
        now: Microseconds.

    Raises:
        ContinuationConflict: Another version is there.
        ContinuationRefused: A name cannot be one, or a limit would be passed.
    """
    _named(thread, name)
    if len(body) > BODY_BYTES_MAX:
        raise ContinuationRefused(f"a blob has at most {BODY_BYTES_MAX} bytes")
    if not timedelta(0) < ttl <= TTL_MAX:
        raise ContinuationRefused(f"a blob is kept for some time, but at most {TTL_MAX.days} days")
    await tx.one("continuations.hold", thread=thread)
    await prune_continuations(tx, now=now)
    others = {entry.name: entry for entry in await list_continuations(tx, thread, now=now)}
    mine = others.pop(name, None)
    found = 0 if mine is None else mine.version
    if if_version is not None and if_version != found:
        raise ContinuationConflict(thread, name, if_version, found)
    if len(others) >= NAMES_MAX:
        raise ContinuationRefused(f"the thread has {NAMES_MAX} names already", "drop one first")
    if sum(entry.byte_size for entry in others.values()) + len(body) > THREAD_BYTES_MAX:
        raise ContinuationRefused(f"the thread would have more than {THREAD_BYTES_MAX} bytes", "drop a blob first")
    row = (thread, name, body, len(body), blake3(body).digest(), found + 1, now, now + micros(ttl))
    await tx.run("continuations.put", [row])
    return found + 1


async def get_continuation(tx: Tx, thread: str, name: str, *, now: int) -> Blob | None:
    """Return a blob; None: there is none, or it has expired."""
    if not (_is_name(thread) and _is_name(name)):
        return None
    row = await tx.one("continuations.get", thread=thread, name=name, now=now)
    return None if row is None else Blob(_kept(row), row.body)


async def list_continuations(tx: Tx, thread: str | None = None, *, now: int) -> list[Kept]:
    """Return what is known of a thread's blobs, or of all threads', in the order of their names."""
    if thread is not None:
        rows = await tx.all("continuations.list", thread=thread, now=now) if _is_name(thread) else []
        return [_kept(row) for row in rows]
    found: list[Kept] = []
    last = ("", "")
    while True:
        rows = await tx.all("continuations.page", after_thread=last[0], after_name=last[1], now=now, most=PAGE)
        found += map(_kept, rows)
        if len(rows) < PAGE:
            return found
        last = (found[-1].thread, found[-1].name)


async def drop_continuation(tx: Tx, thread: str, name: str, *, now: int) -> bool:
    """Delete a blob; tell whether there was one."""
    if not (_is_name(thread) and _is_name(name)):
        return False
    return await tx.one("continuations.drop", thread=thread, name=name, now=now) is not None


async def drop_thread(tx: Tx, thread: str, *, now: int) -> int:
    """Delete all blobs of a thread; return how many there were."""
    if not _is_name(thread):
        return 0
    return sum(row.expires_at > now for row in await tx.all("continuations.drop_thread", thread=thread))


async def prune_continuations(tx: Tx, *, now: int) -> int:
    """Delete blobs that have expired, at most `PRUNED_MAX`; return how many."""
    return await tx.run("continuations.prune", [(now, PRUNED_MAX)])


def _kept(row: Row) -> Kept:
    return Kept(row.thread, row.name, row.byte_size, row.digest, row.version, row.created_at, row.expires_at)


def _named(*names: str) -> None:
    if not all(map(_is_name, names)):
        raise ContinuationRefused(f"a thread and a name have 1 to {NAME_MAX} characters that print")


def _is_name(name: str) -> bool:
    """Tell whether every database can keep it, and every terminal show it."""
    return 0 < len(name) <= NAME_MAX and name.isprintable()
