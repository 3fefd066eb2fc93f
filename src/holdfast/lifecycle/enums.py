"""The closed sets of words that documents are made of.

Every set is a `Literal` of its wire strings, so that a value is its own spelling and a `match` over it can be
complete; the tuple beside it lists the same words in the specification's order, which is an order of rank where
its comment says so.

Invariants:
    - A word never changes its spelling, and a set grows only with a new label.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

__all__ = [
    "ADAPTER_ROLES",
    "CAPABILITIES",
    "EVENTS",
    "FAILURE_CLASSES",
    "FRAME_CLASSES",
    "INTEGRATION_MODES",
    "MANIFEST_PLACEMENT_CLASSES",
    "NEGOTIATION_OUTCOMES",
    "PLACEMENT_CLASSES",
    "PLACEMENT_OUTCOMES",
    "RECEIPT_STATUSES",
    "REQUIREMENT_LEVELS",
    "RETRY_CLASSES",
    "SUPPORT_STATES",
    "AdapterRole",
    "Ambiguous",
    "Conformance",
    "FailureClass",
    "FrameClass",
    "IntegrationMode",
    "LifecycleEventKind",
    "ManifestPlacementClass",
    "NegotiationOutcome",
    "PlacementClass",
    "PlacementOutcome",
    "ReceiptStatus",
    "ReplayMode",
    "RequirementLevel",
    "RetryClass",
    "SupportState",
]

LifecycleEventKind: TypeAlias = Literal[
    "session.starting",
    "session.started",
    "frame.opening",
    "frame.opened",
    "context.pressure_observed",
    "context.compacted",
    "frame.ending",
    "frame.ended",
    "session.ending",
    "session.ended",
    "supervisor.tick",
    "capability.degraded",
    "receipt.emitted",
    "receipt.gap_detected",
]
"""The moments of a harness that have a name."""

IntegrationMode: TypeAlias = Literal[
    "manual_skill", "launcher_wrapper", "native_hook", "reference_adapter", "telemetry_only"
]
"""How events reach us from a harness."""

SupportState: TypeAlias = Literal["native", "synthesized", "partial", "manual", "unavailable"]
"""How well a harness supports something."""

RequirementLevel: TypeAlias = Literal["required", "preferred", "optional"]
"""How much a client needs something."""

ReceiptStatus: TypeAlias = Literal["observed", "delivered", "skipped", "degraded", "failed"]
"""What became of an event for one client."""

NegotiationOutcome: TypeAlias = Literal["unsupported", "requires_operator", "degraded", "satisfied"]
"""Whether a harness can do what a client needs."""

PlacementOutcome: TypeAlias = Literal["delivered", "failed", "skipped"]
"""What became of one payload; `skipped` exists from lifeloop.v0.3 on."""

PlacementClass: TypeAlias = Literal["developer_equivalent_frame", "pre_prompt_frame", "receipt_only"]
"""Where a client wants a payload."""

ManifestPlacementClass: TypeAlias = Literal[
    "pre_session", "pre_frame_leading", "pre_frame_trailing", "tool_result", "manual_operator"
]
"""Where a harness can put a payload."""

FailureClass: TypeAlias = Literal[
    "adapter_unavailable",
    "capability_unsupported",
    "capability_degraded",
    "placement_unavailable",
    "payload_too_large",
    "payload_rejected",
    "identity_unavailable",
    "transport_error",
    "timeout",
    "operator_required",
    "state_conflict",
    "invalid_request",
    "internal_error",
]
"""Why something failed, in the words of a receipt."""

RetryClass: TypeAlias = Literal[
    "safe_retry", "retry_after_reread", "retry_after_reconfigure", "retry_after_operator", "do_not_retry"
]
"""What has to happen before trying again makes sense."""

FrameClass: TypeAlias = Literal["top_level", "subcall"]
"""Whether a frame is a turn, or nested in one."""

AdapterRole: TypeAlias = Literal["primary_worker", "worker", "supervisor", "observer"]
"""What a harness does among others."""

Conformance: TypeAlias = Literal["v1_conformance", "pre_conformance"]
"""Whether an adapter has been shown to do what its manifest claims."""

ReplayMode: TypeAlias = Literal["strict", "semantic"]
"""Which fields must agree for an offered receipt to be the stored one."""

Ambiguous: TypeAlias = Literal["close", "rerun"]
"""What becomes of a client's call whose outcome nobody knows."""

EVENTS: Final[tuple[LifecycleEventKind, ...]] = get_args(LifecycleEventKind)
"""All events, in the order in which a session meets them."""
INTEGRATION_MODES: Final[tuple[IntegrationMode, ...]] = get_args(IntegrationMode)
"""All integration modes."""
SUPPORT_STATES: Final[tuple[SupportState, ...]] = get_args(SupportState)
"""All support states, strongest first."""
REQUIREMENT_LEVELS: Final[tuple[RequirementLevel, ...]] = get_args(RequirementLevel)
"""All requirement levels, strongest first."""
RECEIPT_STATUSES: Final[tuple[ReceiptStatus, ...]] = get_args(ReceiptStatus)
"""All statuses of a receipt."""
NEGOTIATION_OUTCOMES: Final[tuple[NegotiationOutcome, ...]] = get_args(NegotiationOutcome)
"""All outcomes of a negotiation, worst first."""
PLACEMENT_OUTCOMES: Final[tuple[PlacementOutcome, ...]] = get_args(PlacementOutcome)
"""All outcomes of a placement."""
PLACEMENT_CLASSES: Final[tuple[PlacementClass, ...]] = get_args(PlacementClass)
"""All places a client may ask for."""
MANIFEST_PLACEMENT_CLASSES: Final[tuple[ManifestPlacementClass, ...]] = get_args(ManifestPlacementClass)
"""All places a harness may offer."""
FAILURE_CLASSES: Final[tuple[FailureClass, ...]] = get_args(FailureClass)
"""All classes of failure."""
RETRY_CLASSES: Final[tuple[RetryClass, ...]] = get_args(RetryClass)
"""All classes of retry."""
FRAME_CLASSES: Final[tuple[FrameClass, ...]] = get_args(FrameClass)
"""All classes of frames."""
ADAPTER_ROLES: Final[tuple[AdapterRole, ...]] = get_args(AdapterRole)
"""All roles of an adapter."""

CAPABILITIES: Final[tuple[str, ...]] = (
    *(f"lifecycle_event:{event}" for event in EVENTS),
    "context_pressure",
    "receipts.native",
    "receipts.lifeloop_synthesized",
    "receipts.ledger",
    "identity.harness_session_id",
    "identity.harness_run_id",
    "identity.harness_task_id",
    "session_rename",
    "renewal.reset.native",
    "renewal.reset.wrapper_mediated",
    "renewal.reset.manual",
    "renewal.continuation.observation",
    "renewal.continuation.payload_delivery",
    "approval_surface",
)
"""The names under which a client can require something of a harness."""
