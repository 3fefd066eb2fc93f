"""The documents of the contract: their fields, in the order in which they are written.

A field without a default must be present; where its type allows None it is written as null. A field with a
default may be absent, and is left out on output while it has that default; fields marked `Written` are the
exception. What a type cannot say, annotations say: `Count` and `Percent` bound integers, `MayBeEmpty` lets a text
be empty, `Labels` gives the labels a field exists in, `Open` marks an object that carries keys nobody knows.

Objects without a public shape are plain dicts, carried as they came. Whoever gets a document must not change
what is in them.

Invariants:
    - Making a document checks nothing; `wire.decode` and `wire.validate` do.
    - Equal documents encode to equal bytes, as far as their open objects have equal orders.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

import msgspec

from holdfast.lifecycle.enums import (
    CAPABILITIES,
    AdapterRole,
    FailureClass,
    FrameClass,
    IntegrationMode,
    LifecycleEventKind,
    ManifestPlacementClass,
    NegotiationOutcome,
    PlacementClass,
    PlacementOutcome,
    ReceiptStatus,
    RequirementLevel,
    RetryClass,
    SupportState,
)
from holdfast.lifecycle.labels import V01, V02, V03

__all__ = [
    "COUNT_MAX",
    "METADATA_BYTES_MAX",
    "PAYLOADS_MAX",
    "PAYLOAD_REFS_MAX",
    "AcceptablePlacement",
    "AdapterManifest",
    "CallbackRequest",
    "CallbackResponse",
    "CapabilityRequirement",
    "Chosen",
    "Continuation",
    "Count",
    "DispatchEnvelope",
    "Document",
    "EventClaim",
    "Failed",
    "FrameContext",
    "KnownDegradation",
    "Labels",
    "LifecycleReceipt",
    "MayBeEmpty",
    "NegotiatedPlan",
    "Open",
    "OpenObject",
    "PayloadEnvelope",
    "PayloadReceipt",
    "PayloadRef",
    "PayloadTooLarge",
    "Percent",
    "PlacementClaim",
    "PlacementDecision",
    "PlacementRejection",
    "PressureObservation",
    "ReceiptClaims",
    "ReceiptContext",
    "ReceiptKey",
    "Renewal",
    "Reset",
    "RoutingPlan",
    "Skipped",
    "Unsupported",
    "Variants",
    "Words",
    "Written",
    "degradation",
    "warning",
]

COUNT_MAX: Final = 2**63 - 1
"""The largest counter or size: what both databases can store."""

PAYLOAD_REFS_MAX: Final = 1000
"""How many payloads a request may refer to."""

PAYLOADS_MAX: Final = 64
"""How many payloads one dispatch may carry in one direction."""

METADATA_BYTES_MAX: Final = 64 * 1024
"""The largest `metadata` of a document, as compact JSON."""


class Labels(msgspec.Struct, frozen=True):
    """The labels in which a field exists."""

    names: tuple[str, ...]


class Variants(msgspec.Struct, frozen=True):
    """A word of a closed set, and the labels in which it is one."""

    word: str
    names: tuple[str, ...]


class Open(msgspec.Struct, frozen=True):
    """An object that carries unknown keys; `known` has the fields that are checked where they are."""

    known: type[msgspec.Struct] | None = None
    bytes_max: int | None = None


class Words(msgspec.Struct, frozen=True):
    """The closed set of a text, where it is too long to be a type."""

    words: tuple[str, ...]


class MayBeEmpty(msgspec.Struct, frozen=True):
    """A text of which the empty one is a value."""


OpenObject: TypeAlias = dict[str, Any]
"""A JSON object whose keys are not ours to know."""
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
"""A counter, a size, or seconds of the epoch."""
Percent: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=100)]
"""Whole percent."""
Metadata: TypeAlias = Annotated[OpenObject, Open(bytes_max=METADATA_BYTES_MAX)]


def _none() -> None:
    return None


def Written() -> Any:
    """Declare an optional field that is written even when it is None."""
    return msgspec.field(default_factory=_none)


class _Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all documents have in common."""


class _Closed(_Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A document in which an unknown field is an error."""


# --- requests, responses, payloads --------------------------------------------------------------------


class FrameContext(_Document, frozen=True, kw_only=True):
    """The frame an event is about."""

    frame_id: str
    frame_class: FrameClass
    parent_frame_id: str | None = None


class PayloadRef(_Document, frozen=True, kw_only=True):
    """A payload that a request mentions without carrying it."""

    payload_id: str
    payload_kind: str
    content_digest: str | None = None
    byte_size: Count | None = None


class CallbackRequest(_Document, frozen=True, kw_only=True):
    """One moment of a harness, as a client is told of it."""

    schema_version: str
    event: LifecycleEventKind
    event_id: str
    adapter_id: str
    adapter_version: str
    integration_mode: IntegrationMode
    invocation_id: str
    harness_session_id: str | None = None
    harness_run_id: str | None = None
    harness_task_id: str | None = None
    frame_context: FrameContext | None = None
    capability_snapshot_ref: str | None = None
    payload_refs: Annotated[tuple[PayloadRef, ...], msgspec.Meta(max_length=PAYLOAD_REFS_MAX)] = ()
    sequence: Count | None = None
    idempotency_key: str | None = None
    metadata: Metadata = {}


class AcceptablePlacement(_Document, frozen=True, kw_only=True):
    """A place a client would have its payload in, and how much it needs that."""

    placement: PlacementClass
    requirement: RequirementLevel


class PayloadEnvelope(_Document, frozen=True, kw_only=True):
    """A client's opaque body, or a reference to it, with where it may go."""

    schema_version: str
    payload_id: str
    client_id: str
    payload_kind: str
    format: str
    content_encoding: str
    body: Annotated[str, MayBeEmpty()] | None = None
    body_ref: str | None = None
    byte_size: Count
    content_digest: str | None = None
    acceptable_placements: tuple[AcceptablePlacement, ...]
    idempotency_key: str | None = None
    expires_at_epoch_s: Count | None = None
    redaction: Annotated[Any, Labels((V01, V02))] = None
    metadata: Metadata = {}


class CallbackResponse(_Document, frozen=True, kw_only=True):
    """What a client answered."""

    schema_version: str
    status: ReceiptStatus
    client_payloads: Annotated[tuple[PayloadEnvelope, ...], msgspec.Meta(max_length=PAYLOADS_MAX)] = ()
    receipt_refs: tuple[str, ...] = ()
    warnings: tuple[OpenObject, ...] = ()
    failure_class: FailureClass | None = None
    retry_class: RetryClass | None = None
    metadata: Metadata = {}


class DispatchEnvelope(_Document, frozen=True, kw_only=True):
    """A request with its payloads: what a client's program reads."""

    schema_version: str
    request: CallbackRequest
    payloads: Annotated[tuple[PayloadEnvelope, ...], msgspec.Meta(max_length=PAYLOADS_MAX)] = ()


# --- receipts -----------------------------------------------------------------------------------------


class PayloadReceipt(_Closed, frozen=True, kw_only=True):
    """What became of one payload."""

    payload_id: str
    payload_kind: str
    placement: PlacementClass
    status: Annotated[PlacementOutcome, Variants("skipped", (V03,))]
    byte_size: Count
    content_digest: str | None = None


class LifecycleReceipt(_Closed, frozen=True, kw_only=True):
    """The immutable record of one event for one client."""

    schema_version: str
    receipt_id: str
    idempotency_key: str | None
    client_id: str
    adapter_id: str
    invocation_id: str
    event: LifecycleEventKind
    event_id: str
    sequence: Count | None
    parent_receipt_id: str | None
    integration_mode: IntegrationMode
    status: ReceiptStatus
    at_epoch_s: Count
    harness_session_id: str | None = None
    harness_run_id: str | None = None
    harness_task_id: str | None = None
    payload_receipts: tuple[PayloadReceipt, ...] = ()
    telemetry_summary: OpenObject = {}
    capability_degradations: tuple[OpenObject, ...] = ()
    failure_class: FailureClass | None = Written()
    retry_class: RetryClass | None = Written()
    warnings: tuple[OpenObject, ...] = ()


class ReceiptContext(_Document, frozen=True, kw_only=True):
    """What a receipt has from whoever emits it, instead of from the event."""

    client_id: str
    receipt_id: str
    at_epoch_s: Count
    parent_receipt_id: str | None = None
    harness_session_id: str | None = None
    harness_run_id: str | None = None
    harness_task_id: str | None = None


class ReceiptKey(msgspec.Struct, frozen=True):
    """What makes two receipts the same one; the same key under another client or adapter is another."""

    client_id: str
    adapter_id: str
    idempotency_key: str


def warning(code: str, message: str, *, capability: str | None = None) -> OpenObject:
    """Make a warning of ours."""
    return {"code": code, "message": message} | ({} if capability is None else {"capability": capability})


def degradation(
    capability: str,
    previous: SupportState,
    current: SupportState,
    *,
    evidence: str | None = None,
    retry_class: RetryClass | None = None,
) -> OpenObject:
    """Make the record of a capability that is weaker than was wanted."""
    found: OpenObject = {"capability": capability, "previous_support": previous, "current_support": current}
    if evidence is not None:
        found["evidence"] = evidence
    if retry_class is not None:
        found["retry_class"] = retry_class
    return found


# --- manifests ----------------------------------------------------------------------------------------


class EventClaim(_Closed, frozen=True, kw_only=True):
    """How well a harness tells of one event, and in which integration modes."""

    support: SupportState
    modes: tuple[IntegrationMode, ...] = ()


class PlacementClaim(_Closed, frozen=True, kw_only=True):
    """How well a harness can put a payload in one place; without `max_bytes` there is no limit."""

    support: SupportState
    max_bytes: Count | None = None


class ReceiptClaims(_Closed, frozen=True, kw_only=True):
    """Who makes and keeps receipts of a harness."""

    native: bool
    lifeloop_synthesized: bool
    receipt_ledger: SupportState


class Reset(_Closed, frozen=True, kw_only=True):
    """How a harness starts its context over."""

    native: SupportState
    wrapper_mediated: SupportState
    manual: SupportState


class Continuation(_Closed, frozen=True, kw_only=True):
    """How a harness goes on after a reset."""

    observation: SupportState
    payload_delivery: SupportState


class Renewal(_Closed, frozen=True, kw_only=True):
    """What was found out about renewing a harness's context."""

    reset: Reset
    continuation: Continuation
    profiles: tuple[str, ...] = ()
    evidence: str | None = None


class KnownDegradation(_Closed, frozen=True, kw_only=True):
    """A capability that is known to be weaker than claimed."""

    capability: str
    previous_support: SupportState
    current_support: SupportState
    evidence: str | None = None


class SupportClaim(_Document, frozen=True, kw_only=True):
    """The known keys of a claim whose full shape is not public."""

    support: SupportState
    evidence: str | None = None


class IdentityClaim(_Document, frozen=True, kw_only=True):
    """The known keys of what a harness says of its ids."""

    harness_session_id: SupportState
    harness_run_id: SupportState
    harness_task_id: SupportState


class TelemetrySource(_Document, frozen=True, kw_only=True):
    """The known keys of a source of telemetry."""

    source: str
    support: SupportState
    evidence: str | None = None


class AdapterManifest(_Closed, frozen=True, kw_only=True):
    """What a harness can do, as far as it is known."""

    contract_version: str
    adapter_id: str
    adapter_version: str
    display_name: str
    role: AdapterRole
    integration_modes: tuple[IntegrationMode, ...]
    lifecycle_events: dict[LifecycleEventKind, EventClaim]
    placement: dict[ManifestPlacementClass, PlacementClaim]
    context_pressure: Annotated[OpenObject, Open(SupportClaim)]
    receipts: ReceiptClaims
    session_identity: Annotated[OpenObject, Open(IdentityClaim)] = {}
    session_rename: Annotated[OpenObject, Open(SupportClaim)] = {}
    renewal: Annotated[Renewal | None, Labels((V02, V03))] = None
    approval_surface: Annotated[OpenObject, Open(SupportClaim)] = {}
    failure_modes: tuple[str, ...] = ()
    telemetry_sources: tuple[Annotated[OpenObject, Open(TelemetrySource)], ...] = ()
    known_degradations: Annotated[tuple[KnownDegradation, ...], Labels((V01, V02))] = ()


# --- telemetry and negotiation ------------------------------------------------------------------------


class PressureObservation(_Document, frozen=True, kw_only=True):
    """How full a harness's context was at one moment."""

    adapter_id: str
    observed_at_epoch_s: Count
    context_used_pct: Percent
    model_name: str | None = None
    used_tokens: Count | None = None
    context_window_tokens: Count | None = None
    compaction_signaled: bool | None = None


class CapabilityRequirement(_Document, frozen=True, kw_only=True):
    """What a client needs of a harness."""

    capability: Annotated[str, Words(CAPABILITIES)]
    level: RequirementLevel
    desired: SupportState


class RoutingPlan(_Document, frozen=True, kw_only=True):
    """A request that found its adapter; nothing is negotiated yet."""

    schema_version: str
    event: LifecycleEventKind
    event_id: str
    invocation_id: str
    adapter: AdapterManifest
    integration_mode: IntegrationMode
    harness_session_id: str | None = None
    harness_run_id: str | None = None
    harness_task_id: str | None = None
    frame_context: FrameContext | None = None
    payload_refs: tuple[PayloadRef, ...] = ()
    capability_snapshot_ref: str | None = None
    sequence: Count | None = None
    idempotency_key: str | None = None
    metadata: Metadata = {}


class Unsupported(_Document, frozen=True, kw_only=True, tag_field="why", tag="unsupported"):
    """The harness offers no such place."""

    placement: PlacementClass
    manifest_support: SupportState


class PayloadTooLarge(_Document, frozen=True, kw_only=True, tag_field="why", tag="payload_too_large"):
    """The place takes less than the payload has."""

    placement: PlacementClass
    byte_size: Count
    max_bytes: Count


PlacementRejection: TypeAlias = Unsupported | PayloadTooLarge
"""Why a payload is not in a place its client would have it in."""


class Chosen(_Document, frozen=True, kw_only=True, tag_field="decision", tag="chosen"):
    """The payload has a place."""

    payload_id: str
    payload_kind: str
    byte_size: Count
    content_digest: str | None = None
    rejected: tuple[PlacementRejection, ...] = ()
    chosen: PlacementClass
    first_preference: bool


class Failed(_Document, frozen=True, kw_only=True, tag_field="decision", tag="failed"):
    """The payload has no place, and the dispatch fails for it."""

    payload_id: str
    payload_kind: str
    byte_size: Count
    content_digest: str | None = None
    rejected: tuple[PlacementRejection, ...] = ()
    failure_class: FailureClass


class Skipped(_Document, frozen=True, kw_only=True, tag_field="decision", tag="skipped"):
    """The payload has no place, and needs none."""

    payload_id: str
    payload_kind: str
    byte_size: Count
    content_digest: str | None = None
    rejected: tuple[PlacementRejection, ...] = ()


PlacementDecision: TypeAlias = Chosen | Failed | Skipped
"""Where a payload goes, or that it goes nowhere."""


class NegotiatedPlan(_Document, frozen=True, kw_only=True):
    """A plan, and whether the adapter can do what it asks."""

    plan: RoutingPlan
    outcome: NegotiationOutcome
    capability_degradations: tuple[OpenObject, ...] = ()
    placement_decisions: tuple[PlacementDecision, ...] = ()
    warnings: tuple[OpenObject, ...] = ()
    failure_class: FailureClass | None = None

    @property
    def blocks_dispatch(self) -> bool:
        """Whether no client may be called."""
        return self.outcome in ("unsupported", "requires_operator")


Document: TypeAlias = (
    CallbackRequest
    | CallbackResponse
    | DispatchEnvelope
    | PayloadEnvelope
    | PayloadRef
    | FrameContext
    | LifecycleReceipt
    | PayloadReceipt
    | AdapterManifest
    | CapabilityRequirement
    | ReceiptContext
    | PressureObservation
    | RoutingPlan
    | NegotiatedPlan
    | Chosen
    | Failed
    | Skipped
)
"""Anything that `wire.encode` writes and `wire.decode` reads."""
