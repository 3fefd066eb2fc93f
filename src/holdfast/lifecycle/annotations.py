"""Note what a receipt cannot say: what was called, what came back, and what its status hides. Pure.

Annotations are stored beside the receipt and hashed with it; they never enter it. What follows from the event is
noted here; what is known later is added by whoever knows it.

Invariants:
    - An annotation holds no part of a body, of metadata or of a directive's reason: sizes, digests and names only.
    - A refined status stands there only where it differs from the receipt's.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from blake3 import blake3

from holdfast.lifecycle.chain import canonical
from holdfast.lifecycle.documents import (
    CallbackResponse,
    Chosen,
    Failed,
    FrameContext,
    NegotiatedPlan,
    OpenObject,
    PayloadEnvelope,
    PlacementDecision,
    PlacementRejection,
    ReceiptContext,
    Skipped,
)
from holdfast.lifecycle.enums import (
    FailureClass,
    NegotiationOutcome,
    PlacementClass,
    ReceiptStatus,
    RetryClass,
)
from holdfast.lifecycle.failures import default_retry
from holdfast.lifecycle.negotiation import DEFAULT_POLICY, PayloadPolicy, body_bytes, fit
from holdfast.lifecycle.receipts import DerivedStatus, derive_status, failed, misplaced, said

__all__ = [
    "Annotations",
    "ClientPayloadNote",
    "DirectiveNote",
    "PayloadNote",
    "Refined",
    "RequestNote",
    "ResponseNote",
    "annotate",
    "decode_annotations",
    "encode_annotations",
]


class _Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of the annotations; what says nothing is left out."""


class Refined(_Note, frozen=True, kw_only=True):
    """What the status would be if the table hid nothing."""

    status: ReceiptStatus
    failure_class: FailureClass | None = None
    retry_class: RetryClass | None = None


class PayloadNote(_Note, frozen=True, kw_only=True):
    """What was settled about a payload, and whether it reached the client.

    Attributes:
        payload_id: The payload.
        decision: What was settled.
        delivered: `no` if the client never got it, `unknown` if the client failed, else `yes`.
        rejected: The places that did not take it.
    """

    payload_id: str
    decision: Literal["chosen", "failed", "skipped"]
    delivered: Literal["no", "unknown", "yes"]
    rejected: tuple[PlacementRejection, ...] = ()


class ClientPayloadNote(_Note, frozen=True, kw_only=True):
    """A payload that the client returned, and whether the harness's reply has room for it.

    Attributes:
        payload_id: The payload.
        byte_size: The size of its body; without one, the size that it declares.
        blake3: The digest of its body, in hexadecimal digits; None without one.
        placement: Where it goes; None: nowhere.
        why: Why it goes nowhere.
    """

    payload_id: str
    byte_size: int
    blake3: str | None = None
    placement: PlacementClass | None = None
    why: str | None = None


class DirectiveNote(_Note, frozen=True, kw_only=True):
    """What the client asked of the harness.

    Attributes:
        action: What it asked for.
        dropped: Why that could not be done; None: it could, or nobody tried.
    """

    action: str
    dropped: str | None = None


class RequestNote(_Note, frozen=True, kw_only=True):
    """What the request said that its receipt does not repeat."""

    sequence: int | None = None
    adapter_version: str
    frame_context: FrameContext | None = None
    capability_snapshot_ref: str | None = None
    metadata_blake3: str | None = None


class ResponseNote(_Note, frozen=True, kw_only=True):
    """What the response said that its receipt does not repeat.

    Attributes:
        receipt_refs: Receipts of the client's own.
        metadata_blake3: The digest of its metadata, in hexadecimal digits.
        retry_overridden: Whether its retry class is another than the default of its failure class.
    """

    receipt_refs: tuple[str, ...] = ()
    metadata_blake3: str | None = None
    retry_overridden: bool = False


class Annotations(_Note, frozen=True, kw_only=True):
    """What the ledger knows of an event beyond its receipt.

    `annotate` fills in what follows from its arguments; `msgspec.structs.replace` adds what is known later.

    Attributes:
        outcome: How the negotiation ended.
        dispatched: Whether the client was called.
        client_status: The client's own status.
        attempts: How often the client was called.
        outcome_unknown: Whether nobody knows how the call ended; set by recovery.
        refined: What the receipt's status hides, where it hides something.
        payloads: What became of each payload, in the order of the decisions.
        client_payloads: What the client returned.
        directive: What the client asked of the harness.
        request: More of the request.
        response: More of the response.
        drift: The harness's ids in which the receipt's context differs from the request.
        delivery: The id of the hook's delivery that this came from.
    """

    outcome: NegotiationOutcome
    dispatched: bool
    client_status: ReceiptStatus | None = None
    attempts: int = 0
    outcome_unknown: bool = False
    refined: Refined | None = None
    payloads: tuple[PayloadNote, ...] = ()
    client_payloads: tuple[ClientPayloadNote, ...] = ()
    directive: DirectiveNote | None = None
    request: RequestNote | None = None
    response: ResponseNote | None = None
    drift: tuple[str, ...] = ()
    delivery: str | None = None


def encode_annotations(annotations: Annotations) -> bytes:
    """Write annotations as they are stored and linked: compact JSON, in the order of their fields."""
    return msgspec.json.encode(annotations)


def decode_annotations(data: bytes) -> Annotations:
    """Read annotations that `encode_annotations` wrote; unknown keys are ignored.

    Raises:
        msgspec.MsgspecError: These are not such bytes.
    """
    return msgspec.json.decode(data, type=Annotations)


def annotate(
    negotiated: NegotiatedPlan,
    response: CallbackResponse | None,
    context: ReceiptContext,
    *,
    dispatched: bool,
    policy: PayloadPolicy = DEFAULT_POLICY,
) -> Annotations:
    """Note what the receipt of an event does not say.

    Args:
        negotiated: What was settled before the client was called.
        response: What the client answered, or the failure to get an answer; None if there is neither.
        context: Ids and clock of the receipt.
        dispatched: Whether the client was called.
        policy: How odd payloads of the client are taken.
    """
    plan = negotiated.plan
    ids = ("harness_session_id", "harness_run_id", "harness_task_id")
    returned = () if response is None else response.client_payloads
    return Annotations(
        outcome=negotiated.outcome,
        dispatched=dispatched,
        client_status=None if response is None else response.status,
        attempts=int(dispatched),
        refined=_refined(negotiated, response),
        payloads=tuple(
            _payload_note(decision, response, dispatched=dispatched) for decision in negotiated.placement_decisions
        ),
        client_payloads=tuple(_client_payload_note(negotiated, payload, context, policy) for payload in returned),
        directive=None if response is None else _directive_note(response),
        request=RequestNote(
            sequence=plan.sequence,
            adapter_version=plan.adapter.adapter_version,
            frame_context=plan.frame_context,
            capability_snapshot_ref=plan.capability_snapshot_ref,
            metadata_blake3=_metadata_digest(plan.metadata),
        ),
        response=None if response is None else _response_note(response),
        drift=tuple(name for name in ids if getattr(plan, name) != getattr(context, name)),
    )


def _refined(negotiated: NegotiatedPlan, response: CallbackResponse | None) -> Refined | None:
    wire = better = derive_status(negotiated, response)
    failure, status = misplaced(negotiated), said(response)
    if negotiated.outcome == "requires_operator" and negotiated.failure_class is not None:
        better = failed(negotiated.failure_class)
    elif negotiated.outcome == "degraded" and failure is not None:
        better = failed(failure)
    elif negotiated.outcome == "degraded" and status in ("skipped", "observed"):
        better = DerivedStatus(status)
    if better == wire:
        return None
    return Refined(status=better.status, failure_class=better.failure_class, retry_class=better.retry_class)


def _payload_note(decision: PlacementDecision, response: CallbackResponse | None, *, dispatched: bool) -> PayloadNote:
    delivered: Literal["no", "unknown", "yes"] = "no"
    if dispatched and isinstance(decision, Chosen):
        delivered = "unknown" if said(response) == "failed" else "yes"
    return PayloadNote(
        payload_id=decision.payload_id,
        decision=_DECISIONS[type(decision)],
        delivered=delivered,
        rejected=decision.rejected,
    )


_DECISIONS: Final[dict[type, Literal["chosen", "failed", "skipped"]]] = {
    Chosen: "chosen",
    Failed: "failed",
    Skipped: "skipped",
}


def _client_payload_note(
    negotiated: NegotiatedPlan, payload: PayloadEnvelope, context: ReceiptContext, policy: PayloadPolicy
) -> ClientPayloadNote:
    found = fit(payload, negotiated.plan.adapter, now_epoch_s=context.at_epoch_s, policy=policy)
    body = body_bytes(payload)
    return ClientPayloadNote(
        payload_id=payload.payload_id,
        byte_size=payload.byte_size if body is None else len(body),
        blake3=None if body is None else blake3(body).hexdigest(),
        placement=found.chosen if isinstance(found, Chosen) else None,
        why=found.failure_class if isinstance(found, Failed) else None,
    )


def _directive_note(response: CallbackResponse) -> DirectiveNote | None:
    directive = response.metadata.get("directive")
    if not isinstance(directive, dict):
        return None
    action = directive.get("action", "none")
    # A client's own word might be anything, a body included.
    return (
        DirectiveNote(action=action) if action in _ACTIONS else DirectiveNote(action="none", dropped="unknown_action")
    )


_ACTIONS: Final = ("none", "block", "continue", "halt")


def _response_note(response: CallbackResponse) -> ResponseNote:
    failure, retry = response.failure_class, response.retry_class
    return ResponseNote(
        receipt_refs=response.receipt_refs,
        metadata_blake3=_metadata_digest(response.metadata),
        retry_overridden=failure is not None and retry is not None and retry != default_retry(failure),
    )


def _metadata_digest(metadata: OpenObject) -> str | None:
    return blake3(canonical(metadata)).hexdigest() if metadata else None
