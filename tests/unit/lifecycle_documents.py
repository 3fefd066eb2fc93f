"""Documents of the lifecycle contract as tests make them: plain JSON objects, and strategies for Structs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from holdfast.lifecycle import documents, enums
from holdfast.lifecycle.labels import LABELS

ABSENT = object()
"""The value of a change that takes a field away."""


def changed(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a copy of an object with other fields."""
    return {name: value for name, value in {**document, **changes}.items() if value is not ABSENT}


def request(**changes: Any) -> dict[str, Any]:
    return changed(
        {
            "schema_version": "lifeloop.v0.2",
            "event": "session.started",
            "event_id": "evt-1",
            "adapter_id": "codex",
            "adapter_version": "0.1.0",
            "integration_mode": "native_hook",
            "invocation_id": "inv-1",
        },
        **changes,
    )


def payload(**changes: Any) -> dict[str, Any]:
    return changed(
        {
            "schema_version": "lifeloop.v0.2",
            "payload_id": "pay-1",
            "client_id": "ccd",
            "payload_kind": "instruction_frame",
            "format": "client-defined",
            "content_encoding": "utf8",
            "body": "hello",
            "byte_size": 5,
            "acceptable_placements": [{"placement": "pre_prompt_frame", "requirement": "required"}],
        },
        **changes,
    )


def response(**changes: Any) -> dict[str, Any]:
    return changed({"schema_version": "lifeloop.v0.2", "status": "delivered"}, **changes)


def envelope(**changes: Any) -> dict[str, Any]:
    return changed({"schema_version": "lifeloop.v0.2", "request": request(), "payloads": [payload()]}, **changes)


def receipt(**changes: Any) -> dict[str, Any]:
    return changed(
        {
            "schema_version": "lifeloop.v0.2",
            "receipt_id": "rcp-1",
            "idempotency_key": None,
            "client_id": "ccd",
            "adapter_id": "codex",
            "invocation_id": "inv-1",
            "event": "session.started",
            "event_id": "evt-1",
            "sequence": None,
            "parent_receipt_id": None,
            "integration_mode": "native_hook",
            "status": "delivered",
            "at_epoch_s": 1778100000,
        },
        **changes,
    )


def payload_receipt(**changes: Any) -> dict[str, Any]:
    return changed(
        {
            "payload_id": "pay-1",
            "payload_kind": "instruction_frame",
            "placement": "pre_prompt_frame",
            "status": "delivered",
            "byte_size": 5,
        },
        **changes,
    )


def manifest(**changes: Any) -> dict[str, Any]:
    return changed(
        {
            "contract_version": "lifeloop.v0.2",
            "adapter_id": "codex",
            "adapter_version": "0.1.0",
            "display_name": "Codex",
            "role": "primary_worker",
            "integration_modes": ["native_hook", "manual_skill"],
            "lifecycle_events": {
                "session.started": {"support": "native", "modes": ["native_hook"]},
                "session.ended": {"support": "unavailable"},
            },
            "placement": {"pre_session": {"support": "native", "max_bytes": 10000}},
            "context_pressure": {"support": "partial", "evidence": "a test", "since": "1.2"},
            "receipts": {"native": False, "lifeloop_synthesized": True, "receipt_ledger": "native"},
        },
        **changes,
    )


FULL_MANIFEST = manifest(
    session_identity={
        "harness_session_id": "native",
        "harness_run_id": "synthesized",
        "harness_task_id": "unavailable",
        "harness_turn_id": "native",
    },
    session_rename={"support": "manual"},
    renewal={
        "reset": {"native": "unavailable", "wrapper_mediated": "partial", "manual": "manual"},
        "continuation": {"observation": "native", "payload_delivery": "synthesized"},
        "profiles": ["ccd-renewal"],
        "evidence": "a test",
    },
    approval_surface={"support": "unavailable", "why": None},
    failure_modes=["timeout"],
    telemetry_sources=[{"source": "rollout", "support": "native", "path": "~/.codex"}],
    known_degradations=[{"capability": "context_pressure", "previous_support": "native", "current_support": "partial"}],
)
"""A manifest with every field there is."""


# --- strategies ---------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
open_objects = st.dictionaries(st.text(max_size=8), json_values, max_size=3)

_names = st.text(min_size=1, max_size=12)
_counts = st.integers(0, documents.COUNT_MAX)
_some_objects = st.lists(open_objects, max_size=2).map(tuple)


def _word(words: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    return st.sampled_from(words)


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


_support = _word(enums.SUPPORT_STATES)
_support_claims = st.builds(
    lambda rest, support, evidence: {**rest, "support": support, **evidence},
    open_objects.map(lambda each: changed(each, evidence=ABSENT)),
    _support,
    st.just({}) | _names.map(lambda text: {"evidence": text}),
)
_ids = {
    "harness_session_id": _maybe(_names),
    "harness_run_id": _maybe(_names),
    "harness_task_id": _maybe(_names),
}
_frames = st.builds(
    documents.FrameContext, frame_id=_names, frame_class=st.just("top_level"), parent_frame_id=st.none()
) | st.builds(documents.FrameContext, frame_id=_names, frame_class=st.just("subcall"), parent_frame_id=_names)
_payload_refs = st.builds(
    documents.PayloadRef,
    payload_id=_names,
    payload_kind=_names,
    content_digest=_maybe(_names),
    byte_size=_maybe(_counts),
)


def _distinct(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=3, unique_by=lambda each: each.payload_id).map(tuple)


@st.composite
def requests(draw: Callable[..., Any], label: str | None = None) -> documents.CallbackRequest:
    event = draw(_word(enums.EVENTS))
    return documents.CallbackRequest(
        schema_version=label or draw(_word(LABELS)),
        event=event,
        event_id=draw(_names),
        adapter_id=draw(_names),
        adapter_version=draw(_names),
        integration_mode=draw(_word(enums.INTEGRATION_MODES)),
        invocation_id=draw(_names),
        frame_context=draw(_frames if event.startswith("frame.") else _maybe(_frames)),
        capability_snapshot_ref=draw(_maybe(_names)),
        payload_refs=draw(_distinct(_payload_refs)),
        sequence=draw(_maybe(_counts)),
        idempotency_key=None if event == "receipt.emitted" else draw(_maybe(_names)),
        metadata=draw(open_objects),
        **{name: draw(strategy) for name, strategy in _ids.items()},
    )


@st.composite
def payloads(draw: Callable[..., Any], label: str | None = None) -> documents.PayloadEnvelope:
    label = label or draw(_word(LABELS))
    body = draw(_maybe(st.text(max_size=12)))
    return documents.PayloadEnvelope(
        schema_version=label,
        payload_id=draw(_names),
        client_id=draw(_names),
        payload_kind=draw(_names),
        format=draw(_names),
        content_encoding=draw(_names),
        body=body,
        body_ref=draw(_names) if body is None else None,
        byte_size=draw(_counts),
        content_digest=draw(_maybe(_names)),
        acceptable_placements=draw(
            st.lists(
                st.builds(
                    documents.AcceptablePlacement,
                    placement=_word(enums.PLACEMENT_CLASSES),
                    requirement=_word(enums.REQUIREMENT_LEVELS),
                ),
                min_size=1,
                max_size=3,
            ).map(tuple)
        ),
        idempotency_key=draw(_maybe(_names)),
        expires_at_epoch_s=draw(_maybe(_counts)),
        redaction=None if label == "lifeloop.v0.3" else draw(json_values),
        metadata=draw(open_objects),
    )


@st.composite
def responses(draw: Callable[..., Any]) -> documents.CallbackResponse:
    label = draw(_word(LABELS))
    status = draw(_word(enums.RECEIPT_STATUSES))
    failed = status == "failed"
    return documents.CallbackResponse(
        schema_version=label,
        status=status,
        client_payloads=tuple(draw(st.lists(payloads(label), max_size=2))),
        receipt_refs=tuple(draw(st.lists(_names, max_size=2))),
        warnings=draw(_some_objects),
        failure_class=draw(_word(enums.FAILURE_CLASSES)) if failed else None,
        retry_class=draw(_maybe(_word(enums.RETRY_CLASSES))) if failed else None,
        metadata=draw(open_objects),
    )


@st.composite
def envelopes(draw: Callable[..., Any]) -> documents.DispatchEnvelope:
    label = draw(_word(LABELS))
    return documents.DispatchEnvelope(
        schema_version=label, request=draw(requests(label)), payloads=draw(_distinct(payloads(label)))
    )


@st.composite
def receipts(draw: Callable[..., Any]) -> documents.LifecycleReceipt:
    label = draw(_word(LABELS))
    outcomes = enums.PLACEMENT_OUTCOMES if label == "lifeloop.v0.3" else ("delivered", "failed")
    status = draw(_word(enums.RECEIPT_STATUSES))
    failed = status == "failed"
    return documents.LifecycleReceipt(
        schema_version=label,
        receipt_id=draw(_names),
        idempotency_key=draw(_maybe(_names)),
        client_id=draw(_names),
        adapter_id=draw(_names),
        invocation_id=draw(_names),
        event=draw(_word(tuple(event for event in enums.EVENTS if event != "receipt.emitted"))),
        event_id=draw(_names),
        sequence=draw(_maybe(_counts)),
        parent_receipt_id=draw(_maybe(_names)),
        integration_mode=draw(_word(enums.INTEGRATION_MODES)),
        status=status,
        at_epoch_s=draw(_counts),
        payload_receipts=draw(
            st.lists(
                st.builds(
                    documents.PayloadReceipt,
                    payload_id=_names,
                    payload_kind=_names,
                    placement=_word(enums.PLACEMENT_CLASSES),
                    status=_word(outcomes),
                    byte_size=_counts,
                    content_digest=_maybe(_names),
                ),
                max_size=2,
            ).map(tuple)
        ),
        telemetry_summary=draw(open_objects),
        capability_degradations=draw(_some_objects),
        failure_class=draw(_word(enums.FAILURE_CLASSES)) if failed else None,
        retry_class=draw(_word(enums.RETRY_CLASSES)) if failed else None,
        warnings=draw(_some_objects),
        **{name: draw(strategy) for name, strategy in _ids.items()},
    )


@st.composite
def manifests(draw: Callable[..., Any]) -> documents.AdapterManifest:
    label = draw(_word(LABELS))
    modes = tuple(draw(st.lists(_word(enums.INTEGRATION_MODES), min_size=1, unique=True)))
    some_modes = st.lists(_word(modes), max_size=2).map(tuple)
    claims = st.builds(documents.EventClaim, support=_word(enums.SUPPORT_STATES[:-1]), modes=some_modes) | st.builds(
        documents.EventClaim, support=st.just("unavailable")
    )
    renewals = st.builds(
        documents.Renewal,
        reset=st.builds(documents.Reset, native=_support, wrapper_mediated=_support, manual=_support),
        continuation=st.builds(documents.Continuation, observation=_support, payload_delivery=_support),
        profiles=st.lists(_names, max_size=2).map(tuple),
        evidence=_maybe(_names),
    )
    degradations = st.builds(
        documents.KnownDegradation,
        capability=_names,
        previous_support=_support,
        current_support=_support,
        evidence=_maybe(_names),
    )
    sources = st.builds(lambda claim, source: {**claim, "source": source}, _support_claims, _names)
    identity = st.fixed_dictionaries(dict.fromkeys(_ids, _support))
    return documents.AdapterManifest(
        contract_version=label,
        adapter_id=draw(_names),
        adapter_version=draw(_names),
        display_name=draw(_names),
        role=draw(_word(enums.ADAPTER_ROLES)),
        integration_modes=modes,
        lifecycle_events=draw(st.dictionaries(_word(enums.EVENTS), claims, max_size=3)),
        placement=draw(
            st.dictionaries(
                _word(enums.MANIFEST_PLACEMENT_CLASSES),
                st.builds(documents.PlacementClaim, support=_support, max_bytes=_maybe(_counts)),
                max_size=2,
            )
        ),
        context_pressure=draw(_support_claims),
        receipts=draw(
            st.builds(
                documents.ReceiptClaims,
                native=st.booleans(),
                lifeloop_synthesized=st.booleans(),
                receipt_ledger=_support,
            )
        ),
        session_identity=draw(st.just({}) | identity),
        session_rename=draw(st.just({}) | _support_claims),
        renewal=None if label == "lifeloop.v0.1" else draw(_maybe(renewals)),
        approval_surface=draw(st.just({}) | _support_claims),
        failure_modes=tuple(draw(st.lists(_names, max_size=2))),
        telemetry_sources=tuple(draw(st.lists(sources, max_size=2))),
        known_degradations=() if label == "lifeloop.v0.3" else tuple(draw(st.lists(degradations, max_size=2))),
    )


observations = st.builds(
    documents.PressureObservation,
    adapter_id=_names,
    observed_at_epoch_s=_counts,
    context_used_pct=st.integers(0, 100),
    model_name=_maybe(_names),
    used_tokens=_maybe(_counts),
    context_window_tokens=_maybe(_counts),
    compaction_signaled=_maybe(st.booleans()),
)
requirements = st.builds(
    documents.CapabilityRequirement,
    capability=_word(enums.CAPABILITIES),
    level=_word(enums.REQUIREMENT_LEVELS),
    desired=_word(enums.SUPPORT_STATES[:-1]),
)
contexts = st.builds(
    documents.ReceiptContext,
    client_id=_names,
    receipt_id=_names,
    at_epoch_s=_counts,
    parent_receipt_id=_maybe(_names),
    **_ids,
)
_rejections = st.builds(
    documents.Unsupported, placement=_word(enums.PLACEMENT_CLASSES), manifest_support=_support
) | st.builds(documents.PayloadTooLarge, placement=_word(enums.PLACEMENT_CLASSES), byte_size=_counts, max_bytes=_counts)
_decided = {
    "payload_id": _names,
    "payload_kind": _names,
    "byte_size": _counts,
    "content_digest": _maybe(_names),
    "rejected": st.lists(_rejections, max_size=2).map(tuple),
}
decisions = (
    st.builds(documents.Chosen, chosen=_word(enums.PLACEMENT_CLASSES), first_preference=st.booleans(), **_decided)
    | st.builds(documents.Failed, failure_class=_word(enums.FAILURE_CLASSES), **_decided)
    | st.builds(documents.Skipped, **_decided)
)


@st.composite
def plans(draw: Callable[..., Any]) -> documents.NegotiatedPlan:
    asked = draw(requests())
    return documents.NegotiatedPlan(
        plan=documents.RoutingPlan(
            schema_version=asked.schema_version,
            event=asked.event,
            event_id=asked.event_id,
            invocation_id=asked.invocation_id,
            adapter=draw(manifests()),
            integration_mode=asked.integration_mode,
            harness_session_id=asked.harness_session_id,
            frame_context=asked.frame_context,
            payload_refs=asked.payload_refs,
            sequence=asked.sequence,
            metadata=asked.metadata,
        ),
        outcome=draw(_word(enums.NEGOTIATION_OUTCOMES)),
        capability_degradations=draw(_some_objects),
        placement_decisions=tuple(draw(st.lists(decisions, max_size=2))),
        warnings=draw(_some_objects),
        failure_class=draw(_maybe(_word(enums.FAILURE_CLASSES))),
    )


anything = (
    requests()
    | payloads()
    | responses()
    | envelopes()
    | receipts()
    | manifests()
    | observations
    | requirements
    | contexts
    | decisions
    | plans()
)
"""Any valid document."""
