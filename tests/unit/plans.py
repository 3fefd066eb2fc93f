"""Requests, payloads, plans and answers of the lifecycle as unit tests make them: whole but for what is tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from holdfast.lifecycle.documents import (
    AcceptablePlacement,
    AdapterManifest,
    CallbackRequest,
    CallbackResponse,
    Chosen,
    Failed,
    FrameContext,
    NegotiatedPlan,
    PayloadEnvelope,
    PlacementClaim,
    ReceiptContext,
    RoutingPlan,
    Skipped,
)
from holdfast.lifecycle.enums import FailureClass, NegotiationOutcome, PlacementClass, RequirementLevel
from holdfast.lifecycle.machine import Registry, route

NOW = 1_778_100_000
V02, V03 = "lifeloop.v0.2", "lifeloop.v0.3"
FRAME = FrameContext(frame_id="frm-1", frame_class="top_level")


def request(**changes: Any) -> CallbackRequest:
    whole = CallbackRequest(
        schema_version=V03,
        event="session.started",
        event_id="evt-1",
        adapter_id="claude",
        adapter_version="0.2.0",
        integration_mode="native_hook",
        invocation_id="inv-1",
        harness_session_id="ses-1",
        harness_run_id="run-1",
        idempotency_key="idem-1",
    )
    return replace(whole, **changes)


def payload(*wanted: tuple[PlacementClass, RequirementLevel], **changes: Any) -> PayloadEnvelope:
    """A payload of five bytes that wants to go to these places."""
    whole = PayloadEnvelope(
        schema_version=V03,
        payload_id="pay-1",
        client_id="ccd",
        payload_kind="instruction_frame",
        format="client-defined",
        content_encoding="utf8",
        body="hello",
        byte_size=5,
        acceptable_placements=tuple(AcceptablePlacement(placement=place, requirement=need) for place, need in wanted),
    )
    return replace(whole, **changes)


def manifest(**placement: PlacementClaim) -> AdapterManifest:
    """A manifest that offers these places and no others."""
    claude = Registry.builtin().require("claude", "0.2.0")
    return replace(claude, placement=dict(placement)) if placement else claude


def plan(adapter: AdapterManifest | None = None, **changes: Any) -> RoutingPlan:
    routed = route(request(**changes), Registry.builtin())
    return routed if adapter is None else replace(routed, adapter=adapter)


def chosen(payload_id: str = "pay-1") -> Chosen:
    return Chosen(
        payload_id=payload_id,
        payload_kind="instruction_frame",
        byte_size=5,
        content_digest="sha256:abc",
        chosen="pre_prompt_frame",
        first_preference=True,
    )


def failed(failure: FailureClass = "payload_too_large", payload_id: str = "pay-1") -> Failed:
    return Failed(payload_id=payload_id, payload_kind="audit_record", byte_size=6, failure_class=failure)


def skipped(payload_id: str = "pay-1") -> Skipped:
    return Skipped(payload_id=payload_id, payload_kind="audit_record", byte_size=7)


def negotiated(
    outcome: NegotiationOutcome = "satisfied",
    *,
    decisions: Sequence[Chosen | Failed | Skipped] = (),
    failure: FailureClass | None = None,
    of: RoutingPlan | None = None,
    **changes: Any,
) -> NegotiatedPlan:
    whole = NegotiatedPlan(
        plan=of if of is not None else plan(),
        outcome=outcome,
        placement_decisions=tuple(decisions),
        failure_class=failure,
    )
    return replace(whole, **changes)


def response(status: str = "delivered", **changes: Any) -> CallbackResponse:
    whole = CallbackResponse(schema_version=V03, status="delivered")
    return replace(whole, status=status, **changes)


def context(**changes: Any) -> ReceiptContext:
    whole = ReceiptContext(
        client_id="ccd",
        receipt_id="rcp-1",
        at_epoch_s=NOW,
        harness_session_id="ses-1",
        harness_run_id="run-1",
    )
    return replace(whole, **changes)
