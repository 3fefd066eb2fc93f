"""What operators are shown of a key, and what they may say of it; on the command line and over HTTP alike.

Invariants:
    - A view holds no key, no principal and nothing of a stored response.
    - What an operator answers for a request is kept as the guard keeps its own answers, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from holdfast.core.clock import to_datetime
from holdfast.core.errors import ConfigError
from holdfast.idempotency import keys
from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.headers import keepable
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.sealing import open_outcome, seal_outcome
from holdfast.idempotency.values import Completed

if TYPE_CHECKING:
    from holdfast.core.keyring import KeyRing
    from holdfast.idempotency.values import KeyRecord, Outcome, Sealed
    from holdfast.store.database import Tx

__all__ = ["KeyView", "answer_of", "sealed", "view"]


@dataclass(frozen=True, slots=True)
class KeyView:
    """What may be shown of a record.

    Attributes:
        ref: What it is called: the beginning of the key's id.
        scope_ref: The same of whose it is.
        route: The route it was sent to.
        method: With this method.
        state: `reserved`, `completed`, `tombstone`, `unknown` or `released`.
        reason: Why it is so, if there is more to say.
        attempt: Which run of the operation.
        mode: How the route is guarded.
        irreversible: Whether the handler said that it cannot be taken back.
        status: The response's, once there is one.
        body_bytes: The size of its body.
        execution_id: The execution that answers for it.
        created_at, claimed_at, lease_until, settled_at, expires_at, first_sent_at: Instants, aware UTC.
    """

    ref: str
    scope_ref: str
    route: str
    method: str
    state: str
    reason: str | None
    attempt: int
    mode: str
    irreversible: bool
    status: int | None
    body_bytes: int | None
    execution_id: str | None
    created_at: datetime | None
    claimed_at: datetime | None
    lease_until: datetime | None
    settled_at: datetime | None
    expires_at: datetime | None
    first_sent_at: datetime | None


def view(record: KeyRecord) -> KeyView:
    """Return what may be shown of a record."""
    return KeyView(
        ref=record.key_ref,
        scope_ref=record.scope_id.hex()[:12],
        route=record.route,
        method=record.method,
        state=record.state.name.lower(),
        reason=record.reason,
        attempt=record.attempt,
        mode=record.mode,
        irreversible=record.irreversible,
        status=record.status,
        body_bytes=record.body_bytes,
        execution_id=record.execution_id,
        created_at=_at(record.created_at),
        claimed_at=_at(record.claimed_at),
        lease_until=_at(record.lease_until),
        settled_at=_at(record.settled_at),
        expires_at=_at(record.expires_at),
        first_sent_at=_at(record.first_sent_at),
    )


def _at(instant: int | None) -> datetime | None:
    return None if instant is None else to_datetime(instant)


def answer_of(status: int, headers: Iterable[tuple[str, str]], body: str) -> Completed | None:
    """Make the answer that an operator gives for a request: as much of it as a guard would keep.

    Returns:
        The answer; None: one of its header fields could not be sent.
    """
    try:
        lines = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
    except UnicodeError:
        return None
    kept = keepable(status, lines, RouteRule())
    return None if kept is None else Completed(status, kept, body.encode())


async def sealed(tx: Tx, record: KeyRecord, outcome: Outcome, ring: KeyRing | None) -> Sealed:
    """Seal an operator's answer as the guard seals its own.

    Raises:
        ConfigError: The guard seals what it keeps, and its cipher is not configured here, or is another one.
    """
    last = await keys.last_sealed(tx) if isinstance(outcome, Completed) else None
    if last is not None and last.sealed is not None:
        try:
            open_outcome(last.sealed, key_id=last.key_id, record_id=last.record_id, cipher=ring)
        except RecordUnreadable as error:
            what = "no cipher is configured" if ring is None else "the configured cipher does not open what it sealed"
            raise ConfigError(
                f"the guard seals what it keeps, and {what}: nothing was changed",
                "set HOLDFAST_IDEMPOTENCY_CIPHER, or cipher in [idempotency], to the guard's keys as NUMBER:BASE64",
                code="config.cipher_missing",
                keys=("cipher",),
            ) from error
    return seal_outcome(outcome, key_id=record.key_id, record_id=record.record_id, cipher=ring)
