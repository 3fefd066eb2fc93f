"""The errors of the idempotency slice.

    HoldfastError
    └── IdempotencyError          what a guarded call or request is refused with
        ├── KeyMissing            idempotency.key_missing
        ├── KeyInvalid            idempotency.key_invalid, key_forbidden
        ├── RequestInvalid        idempotency.body_not_canonical, first_sent_invalid, body_timeout
        ├── RequestTooLarge       idempotency.request_too_large
        ├── IdentityUnproven      idempotency.identity_unproven, replay_forbidden
        ├── KeyReused             idempotency.key_reused
        ├── KeyInFlight           idempotency.in_flight
        ├── KeyWindowPassed       idempotency.key_window_passed
        ├── QuotaExceeded         idempotency.quota_exceeded
        ├── OutcomeUnknown        idempotency.outcome_unknown; also a `holdfast.OutcomeUnknown`
        ├── AlreadyExecuted       idempotency.executed
        ├── HandlerTimeout        idempotency.handler_timeout
        ├── RecordUnreadable      idempotency.record_unreadable, record_newer
        ├── StoreUnavailable      idempotency.store_unavailable, store_busy, overloaded
        ├── TransactionMisused    idempotency.transaction_misused
        └── CallChanged           idempotency.call_changed

In problem documents the code stands without its slice: `key_reused`.

Invariants:
    - No message holds a key, a principal, a header's value or a payload.
"""

from __future__ import annotations

from typing import Any

from holdfast.core import errors
from holdfast.core.errors import CodedError

__all__ = [
    "AlreadyExecuted",
    "CallChanged",
    "HandlerTimeout",
    "IdempotencyError",
    "IdentityUnproven",
    "KeyInFlight",
    "KeyInvalid",
    "KeyMissing",
    "KeyReused",
    "KeyWindowPassed",
    "OutcomeUnknown",
    "QuotaExceeded",
    "RecordUnreadable",
    "RequestInvalid",
    "RequestTooLarge",
    "StoreUnavailable",
    "TransactionMisused",
]


class IdempotencyError(CodedError):
    """A guarded call or request that does not run, or did not end as it should.

    Attributes:
        response: On the client, the answer that said so; its type is the HTTP library's.
        info: On the client, the `CallInfo` of the call.
        retry_after: Seconds after which trying again makes sense, where that is known.
    """

    code = "idempotency.error"
    response: Any
    info: Any
    retry_after: int | None

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        code: str | None = None,
        retry_after: int | None = None,
        response: Any = None,
        info: Any = None,
    ) -> None:
        super().__init__(message, hint, code=code)
        self.retry_after = retry_after
        self.response = response
        self.info = info


class KeyMissing(IdempotencyError):
    """The route requires a key, and the request has none."""

    code = "idempotency.key_missing"


class KeyInvalid(IdempotencyError):
    """The key is malformed, or not wanted on this route."""

    code = "idempotency.key_invalid"


class RequestInvalid(IdempotencyError):
    """The body has no canonical form, came too slowly, or `Idempotency-First-Sent` is no date."""

    code = "idempotency.request_invalid"


class RequestTooLarge(IdempotencyError):
    """The body is over the rule's limit."""

    code = "idempotency.request_too_large"


class IdentityUnproven(IdempotencyError):
    """Nobody proved who asks, or who asks may not see the record."""

    code = "idempotency.identity_unproven"


class KeyReused(IdempotencyError):
    """The key was used for another request."""

    code = "idempotency.key_reused"


class KeyInFlight(IdempotencyError):
    """A request with this key is running."""

    code = "idempotency.in_flight"


class KeyWindowPassed(IdempotencyError):
    """The call was first sent longer ago than its outcome is kept."""

    code = "idempotency.key_window_passed"


class QuotaExceeded(IdempotencyError):
    """The principal has too much under way or stored."""

    code = "idempotency.quota_exceeded"


class OutcomeUnknown(IdempotencyError, errors.OutcomeUnknown):
    """An earlier attempt may have taken effect; nobody can prove whether."""

    code = "idempotency.outcome_unknown"


class AlreadyExecuted(IdempotencyError):
    """It was executed, and its answer is not kept."""

    code = "idempotency.executed"


class HandlerTimeout(IdempotencyError):
    """The handler ran longer than the rule allows."""

    code = "idempotency.handler_timeout"


class RecordUnreadable(IdempotencyError):
    """The record is damaged, or written by a newer Holdfast."""

    code = "idempotency.record_unreadable"


class StoreUnavailable(IdempotencyError):
    """The ledger cannot be reached just now; the handler did not run."""

    code = "idempotency.store_unavailable"


class TransactionMisused(IdempotencyError):
    """In mode `transaction`, the handler ended the transaction itself."""

    code = "idempotency.transaction_misused"


class CallChanged(IdempotencyError):
    """A journaled call was made again with another request."""

    code = "idempotency.call_changed"
