"""Give every failure its class, and every class what a retry has to wait for. Pure.

This module hides which error means what to a harness. The table of errors is read from the top: the first row
whose type an error has names its class. Its last row holds for every error: a fault of our own.

Invariants:
    - `failure_of` answers for every exception, by its type alone: equal errors give equal answers in every process.
    - A retry class that nobody chose is the default of its failure class.
"""

from __future__ import annotations

from typing import Final

from holdfast.core.errors import Busy, Conflict, Unavailable
from holdfast.lifecycle.enums import FailureClass, NegotiationOutcome, RetryClass
from holdfast.lifecycle.errors import (
    AdapterIdNotFound,
    AdapterVersionMismatch,
    HookProtocol,
    NonZeroExit,
    ReceiptConflict,
    ReceiptError,
    RouteError,
    SubprocessError,
    SubprocessReadResponse,
    SubprocessSerializeRequest,
    SubprocessSpawn,
    SubprocessTimeout,
    SubprocessWriteRequest,
    TelemetryUnavailable,
    TransportIo,
    TransportTimeout,
    ValidationError,
)

__all__ = ["default_retry", "failure_of", "project"]

_RETRIES: Final[dict[FailureClass, RetryClass]] = {
    "adapter_unavailable": "retry_after_reconfigure",
    "capability_unsupported": "do_not_retry",
    "capability_degraded": "retry_after_reread",
    "placement_unavailable": "retry_after_reconfigure",
    "payload_too_large": "do_not_retry",
    "payload_rejected": "do_not_retry",
    "identity_unavailable": "retry_after_reconfigure",
    "transport_error": "safe_retry",
    "timeout": "safe_retry",
    "operator_required": "retry_after_operator",
    "state_conflict": "retry_after_reread",
    "invalid_request": "do_not_retry",
    "internal_error": "retry_after_reread",
}

_CLASSES: Final[tuple[tuple[type[BaseException], FailureClass], ...]] = (
    (TransportIo, "transport_error"),
    (TransportTimeout, "timeout"),
    (AdapterIdNotFound, "adapter_unavailable"),
    (AdapterVersionMismatch, "adapter_unavailable"),
    (RouteError, "invalid_request"),
    (ValidationError, "invalid_request"),
    (SubprocessSpawn, "transport_error"),
    (SubprocessWriteRequest, "transport_error"),
    (SubprocessReadResponse, "transport_error"),
    (NonZeroExit, "transport_error"),
    (SubprocessTimeout, "timeout"),
    (SubprocessSerializeRequest, "internal_error"),
    (SubprocessError, "invalid_request"),
    (ReceiptConflict, "state_conflict"),
    (ReceiptError, "invalid_request"),
    (TelemetryUnavailable, "capability_degraded"),
    (HookProtocol, "invalid_request"),
    (Busy, "state_conflict"),
    (Unavailable, "state_conflict"),
    (Conflict, "state_conflict"),
    (BaseException, "internal_error"),
)


def default_retry(failure: FailureClass) -> RetryClass:
    """Return what has to happen before a failure of this class is worth another try.

    Example:
        >>> default_retry("operator_required")
        'retry_after_operator'
    """
    return _RETRIES[failure]


def failure_of(error: BaseException) -> tuple[FailureClass, RetryClass]:
    """Return the class of an error, whatever it is, and the default retry of that class.

    Example:
        >>> failure_of(ZeroDivisionError())
        ('internal_error', 'retry_after_reread')
    """
    # By the type, never by what an error says of itself: an attribute may raise.
    failure = next(failure for kind, failure in _CLASSES if issubclass(type(error), kind))
    return failure, default_retry(failure)


def project(outcome: NegotiationOutcome, failure: FailureClass | None) -> tuple[FailureClass, RetryClass] | None:
    """Return the failure that a negotiation's outcome stands for; None where it stands for none.

    Args:
        outcome: How the negotiation ended.
        failure: The plan's own class; of an outcome that needs an operator it does not count.
    """
    if outcome in ("satisfied", "degraded"):
        return None
    found: FailureClass = "operator_required" if outcome == "requires_operator" else failure or "capability_unsupported"
    return found, default_retry(found)
