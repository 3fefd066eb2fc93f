"""Turn rows of `idem_keys` into records, and outcomes into columns.

A row may come from a newer release or from a damaged file. Both are told apart from a missing row here, before
any rule looks at the record: neither may ever be treated as absent.

Invariants:
    - A row that this release does not understand makes no record.
"""

from __future__ import annotations

from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.values import RECORD_FORMAT, KeyRecord, Sealed, State
from holdfast.store.database import Row

__all__ = ["FP_VERSION", "NEWER", "columns_of", "is_newer", "record_of"]

FP_VERSION = 1
"""The newest version of the fingerprint's rules that this release knows."""
CODEC = 1
"""The newest way of storing a body that it knows."""
NEWER = "idempotency.record_newer"
SETTLED = (State.COMPLETED, State.TOMBSTONE)
_STATES = {state.value: state for state in State}


def is_newer(row: Row) -> bool:
    """Say whether a newer release wrote a row in a way this one does not know."""
    return bool(row.format > RECORD_FORMAT or row.fp_version > FP_VERSION or row.codec > CODEC)


def record_of(row: Row) -> KeyRecord:
    """Make the record of a row; its outcome stays sealed.

    Raises:
        RecordUnreadable: The row is damaged (`record_unreadable`), or of a newer release (`record_newer`).
    """
    # Every replay comes through here: taking the row apart at once costs half of asking it for each column.
    (
        key_id, scope_id, _alias_of, record_id, number, fingerprint, fp_version, method, route, fence, claim_id,
        attempt, owner, lease_until, mode, on_lapse, irreversible, status, headers, body, body_bytes, body_digest,
        block_sum, codec, cipher_key, reason, execution_id, created_at, claimed_at, settled_at, expires_at,
        first_sent_at, format,
    ) = row  # fmt: skip
    if format > RECORD_FORMAT or fp_version > FP_VERSION or codec > CODEC:
        raise _newer(key_id)
    state = _STATES.get(number)
    if state is None:
        raise _unreadable(key_id, number)
    sealed = None
    # Lists leave header block and body out: then there is nothing to open.
    if state in SETTLED and headers is not None and block_sum is not None and status is not None:
        sealed = Sealed(status, headers, body, body_bytes, body_digest, block_sum, codec, cipher_key, reason)
    return KeyRecord(
        key_id=key_id,
        scope_id=scope_id,
        record_id=record_id,
        state=state,
        fingerprint=fingerprint,
        method=method,
        route=route,
        fence=fence,
        claim_id=claim_id,
        owner=owner,
        lease_until=lease_until,
        created_at=created_at,
        claimed_at=claimed_at,
        expires_at=expires_at,
        fp_version=fp_version,
        attempt=attempt,
        mode=mode,
        on_lapse=on_lapse,
        irreversible=irreversible != 0,
        sealed=sealed,
        status=status,
        body_bytes=body_bytes,
        reason=reason,
        execution_id=execution_id,
        settled_at=settled_at,
        first_sent_at=first_sent_at,
    )


def _newer(key_id: bytes) -> RecordUnreadable:
    return RecordUnreadable(
        f"the record of key {key_id.hex()[:12]} was written by a newer Holdfast",
        "upgrade this one",
        code=NEWER,
    )


def _unreadable(key_id: bytes, state: object) -> RecordUnreadable:
    return RecordUnreadable(
        f"the record of key {key_id.hex()[:12]} is in no state that there is: {state}",
        "look at it with holdfast verify",
        code="idempotency.record_unreadable",
    )


def columns_of(sealed: Sealed | None) -> dict[str, object]:
    """Return the columns of an outcome, or those of a record without one."""
    if sealed is None:
        return dict(_NO_OUTCOME)
    return {
        "status": sealed.status,
        "headers": sealed.headers,
        "body": sealed.body,
        "body_bytes": sealed.body_bytes,
        "body_digest": sealed.body_digest,
        "block_sum": sealed.block_sum,
        "codec": sealed.codec,
        "cipher_key": sealed.cipher_key,
        "reason": sealed.reason,
    }


_NO_OUTCOME = {
    "status": None, "headers": None, "body": None, "body_bytes": None, "body_digest": None, "block_sum": None,
    "codec": 0, "cipher_key": None, "reason": None,
}  # fmt: skip
