"""Keep the events that handlers emit in their own transaction, and page through them in the order of commits.

An event is a row of the transaction that also holds the handler's writes and the key's outcome, so it exists exactly
if they do. Whoever delivers events reads pages after a cursor and keeps the cursor: nothing here knows who has read
what.

On SQLite transactions commit one after the other, and the row's number is the order. On PostgreSQL they overlap, and
a number taken early may be committed late; so the order is that of the transactions' own numbers, and a reader is
shown those only that are older than any still under way. A transaction that stays open for long holds the events of
younger ones back. Restoring a dump into another PostgreSQL begins these numbers anew: readers must have caught up.

Invariants:
    - No event ever appears at or before a cursor that was returned.
    - Events of one transaction come together, in the order they were emitted.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.errors import ConfigError, LimitError
from holdfast.core.page import check_limit, decode_cursor, encode_cursor
from holdfast.store.database import Database, Tx

__all__ = ["OutboxEvent", "emit", "prune", "read"]

TOPIC_CHARS_MAX = 255
"""A name, not a message."""
PAYLOAD_BYTES_MAX = 1024 * 1024
"""A page of 500 such events still fits in memory; larger things are better referred to."""
_LIST = "idem_outbox"


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """One event.

    Attributes:
        cursor: Read on with it to get what follows.
        topic: What kind it is.
        payload: The bytes that were emitted.
        created_at: When it was emitted, microseconds.
    """

    cursor: str
    topic: str
    payload: bytes
    created_at: int


async def emit(tx: Tx, topic: str, payload: bytes, *, now: int) -> None:
    """Add an event to a transaction.

    Raises:
        ConfigError: The topic is empty.
        LimitError: The topic has more than 255 characters, or the payload more than 1 MiB.
    """
    if not topic:
        raise ConfigError("an event has no topic", "name what happened")
    for limit, actual, most in (
        ("event topic", len(topic), TOPIC_CHARS_MAX),
        ("event payload", len(payload), PAYLOAD_BYTES_MAX),
    ):
        if actual > most:
            raise LimitError(
                f"an {limit} of {actual} is over {most}", "emit a reference", limit=limit, maximum=most, actual=actual
            )
    await tx.run("outbox.add", [(topic, payload, now)])


async def read(database: Database, *, after: str | None = None, limit: int = 500) -> list[OutboxEvent]:
    """Return the next events in the order their transactions committed.

    An empty page means that there is nothing to see yet, not that nothing will come before what is under way.

    Args:
        database: The ledger.
        after: The cursor of the last event seen; None: from the beginning.
        limit: Events at most, up to 500.

    Raises:
        CodecError: The cursor is none of the outbox.
        ConfigError, LimitError: The limit cannot be.
    """
    token, number = _place(after)
    async with database.read() as tx:
        rows = await tx.all("outbox.read", order_token=token, after_id=number, most=check_limit(limit))
    return [
        OutboxEvent(encode_cursor(_LIST, (row.order_token, row.id)), row.topic, row.payload, row.created_at)
        for row in rows
    ]


async def prune(tx: Tx, *, upto: str, limit: int = 500) -> int:
    """Delete events that every reader has seen, up to the one a cursor stands at; return how many.

    Call it again while it deletes as many as it may.

    Raises:
        CodecError: The cursor is none of the outbox.
    """
    token, number = _place(upto)
    return await tx.run("outbox.prune", [(token, number, check_limit(limit))])


def _place(cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, 0
    token, number = decode_cursor(_LIST, cursor, int, int)
    return token, number
