"""Say what became of an event for a client: the status, and the receipt that holds it. Pure.

The status of a receipt is read off this table, from the top:

    outcome             client        a placement failed    status      failure class
    unsupported         any           any                   failed      the plan's, else capability_unsupported
    requires_operator   any           any                   failed      operator_required
    degraded            failed        any                   failed      the client's, else internal_error
    degraded            other         any                   degraded    none
    satisfied           any           yes                   failed      the first failed placement's
    satisfied           failed        no                    failed      the client's, else internal_error
    satisfied           other         no                    the client's

No answer counts as `observed`. The retry class of a failure is the client's where its class is, else the class's
default. What the table hides is in the annotations.

Invariants:
    - Equal arguments give equal receipts; ids, clock and sequence are arguments.
    - What became of a payload is what was negotiated, whatever payloads the client returned.
    - A receipt holds no part of a body: sizes and digests only.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.lifecycle.documents import (
    CallbackResponse,
    Chosen,
    Failed,
    LifecycleReceipt,
    NegotiatedPlan,
    PayloadReceipt,
    PlacementDecision,
    ReceiptContext,
    Skipped,
)
from holdfast.lifecycle.enums import FailureClass, PlacementClass, PlacementOutcome, ReceiptStatus, RetryClass
from holdfast.lifecycle.errors import ReceiptEmittedNotEmittable
from holdfast.lifecycle.failures import default_retry
from holdfast.lifecycle.rules import NOTIFICATION

__all__ = ["DerivedStatus", "derive_status", "failed", "misplaced", "said", "synthesize"]

# --- status -------------------------------------------------------------------------------------------


class DerivedStatus(msgspec.Struct, frozen=True):
    """How an event ended for a client, in the words of a receipt."""

    status: ReceiptStatus
    failure_class: FailureClass | None = None
    retry_class: RetryClass | None = None


def derive_status(negotiated: NegotiatedPlan, response: CallbackResponse | None) -> DerivedStatus:
    """Read the status of a receipt off the table above.

    Args:
        negotiated: What was settled before the client was called.
        response: What the client answered; None if it was not called, or nobody is bound.
    """
    if negotiated.outcome == "unsupported":
        return failed(negotiated.failure_class or "capability_unsupported")
    if negotiated.outcome == "requires_operator":
        return failed("operator_required")
    if negotiated.outcome == "satisfied" and (failure := misplaced(negotiated)) is not None:
        return failed(failure)
    if response is not None and response.status == "failed":
        return failed(response.failure_class or "internal_error", response.retry_class)
    return DerivedStatus("degraded" if negotiated.outcome == "degraded" else said(response))


def failed(failure: FailureClass, retry: RetryClass | None = None) -> DerivedStatus:
    """Return the status of a failure; its retry class is the default of its class unless one was chosen."""
    return DerivedStatus("failed", failure, retry or default_retry(failure))


def misplaced(negotiated: NegotiatedPlan) -> FailureClass | None:
    """Return the class of the first placement that failed; None if none did."""
    decisions = negotiated.placement_decisions
    return next((decision.failure_class for decision in decisions if isinstance(decision, Failed)), None)


def said(response: CallbackResponse | None) -> ReceiptStatus:
    """Return the client's own status; no answer counts as `observed`."""
    return "observed" if response is None else response.status


# --- receipt ------------------------------------------------------------------------------------------


def synthesize(
    negotiated: NegotiatedPlan,
    response: CallbackResponse | None,
    context: ReceiptContext,
    *,
    sequence: int | None,
) -> LifecycleReceipt:
    """Make the receipt of an event for a client.

    Args:
        negotiated: What was settled before the client was called.
        response: What the client answered; None if it was not called, or nobody is bound.
        context: Ids and clock of the receipt; the harness's ids are taken from here, not from the plan.
        sequence: The receipt's number in its run, if it has one.

    Raises:
        ReceiptEmittedNotEmittable: The event is the one that tells of receipts.
    """
    plan = negotiated.plan
    if plan.event == NOTIFICATION:
        raise ReceiptEmittedNotEmittable
    derived = derive_status(negotiated, response)
    return LifecycleReceipt(
        schema_version=plan.schema_version,
        receipt_id=context.receipt_id,
        idempotency_key=plan.idempotency_key,
        client_id=context.client_id,
        adapter_id=plan.adapter.adapter_id,
        invocation_id=plan.invocation_id,
        event=plan.event,
        event_id=plan.event_id,
        sequence=sequence,
        parent_receipt_id=context.parent_receipt_id,
        integration_mode=plan.integration_mode,
        status=derived.status,
        at_epoch_s=context.at_epoch_s,
        harness_session_id=context.harness_session_id,
        harness_run_id=context.harness_run_id,
        harness_task_id=context.harness_task_id,
        payload_receipts=tuple(_payload_receipt(decision) for decision in negotiated.placement_decisions),
        capability_degradations=negotiated.capability_degradations,
        failure_class=derived.failure_class,
        retry_class=derived.retry_class,
        warnings=negotiated.warnings + (() if response is None else response.warnings),
    )


def _payload_receipt(decision: PlacementDecision) -> PayloadReceipt:
    placement: PlacementClass = "receipt_only"
    if isinstance(decision, Chosen):
        placement = decision.chosen
    elif decision.rejected:
        placement = decision.rejected[0].placement
    return PayloadReceipt(
        payload_id=decision.payload_id,
        payload_kind=decision.payload_kind,
        placement=placement,
        status=_OUTCOMES[type(decision)],
        byte_size=decision.byte_size,
        content_digest=decision.content_digest,
    )


_OUTCOMES: Final[dict[type, PlacementOutcome]] = {
    Chosen: "delivered",
    Failed: "failed",
    Skipped: "skipped",
}
