"""The rules between the fields of a lifecycle document: which is checked when, and what is said."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.lifecycle_documents import (
    ABSENT,
    changed,
    envelope,
    manifest,
    payload,
    receipt,
    request,
    response,
)

from holdfast.lifecycle import enums, errors, rules
from holdfast.lifecycle.documents import (
    AdapterManifest,
    CallbackRequest,
    CallbackResponse,
    DispatchEnvelope,
    FrameContext,
    LifecycleReceipt,
    PayloadEnvelope,
)
from holdfast.lifecycle.wire import decode_value

FRAME_EVENTS = [event for event in enums.EVENTS if event.startswith("frame.")]
TOP = {"frame_id": "f", "frame_class": "top_level"}
SUB = {"frame_id": "f", "frame_class": "subcall", "parent_frame_id": "p"}


def refused(value: dict[str, Any], kind: type[Any], error: type[errors.ValidationError]) -> str:
    with pytest.raises(error) as found:
        decode_value(value, kind)
    assert type(found.value) is error
    return str(found.value)


# -- requests


@pytest.mark.parametrize("event", FRAME_EVENTS)
def test_a_frame_event_needs_a_whole_frame(event: str) -> None:
    """LA-5."""
    for frame in (ABSENT, None):
        text = refused(request(event=event, frame_context=frame), CallbackRequest, errors.InvalidFrameContext)
        assert text == f"event `{event}` needs a `frame_context`"
    half = request(event=event, frame_context={"frame_id": "f"})
    assert "`request.frame_context.frame_class`" in refused(half, CallbackRequest, errors.InvalidFrameContext)
    for frame in (TOP, SUB):
        assert decode_value(request(event=event, frame_context=frame), CallbackRequest).frame_context


@pytest.mark.parametrize("event", [event for event in enums.EVENTS if event not in FRAME_EVENTS])
def test_another_event_may_have_a_frame_but_not_half_of_one(event: str) -> None:
    """LA-5."""
    assert decode_value(request(event=event), CallbackRequest).frame_context is None
    assert decode_value(request(event=event, frame_context=TOP), CallbackRequest).frame_context
    refused(request(event=event, frame_context={"frame_id": "f"}), CallbackRequest, errors.InvalidFrameContext)
    refused(request(event=event, frame_context={}), CallbackRequest, errors.InvalidFrameContext)


def test_a_subcall_has_a_parent_and_a_turn_has_none() -> None:
    orphan = request(frame_context=changed(SUB, parent_frame_id=ABSENT))
    assert "needs a `parent_frame_id`" in refused(orphan, CallbackRequest, errors.InvalidFrameContext)
    child = request(frame_context={**TOP, "parent_frame_id": "p"})
    assert "has no `parent_frame_id`" in refused(child, CallbackRequest, errors.InvalidFrameContext)
    assert rules.frame_problem("frame.ended", FrameContext(frame_id="f", frame_class="top_level")) is None


def test_a_notification_has_no_key() -> None:
    assert decode_value(request(event=rules.NOTIFICATION), CallbackRequest)
    text = refused(request(event=rules.NOTIFICATION, idempotency_key="k"), CallbackRequest, errors.InvalidRequest)
    assert text == "event `receipt.emitted` carries no `idempotency_key`"


def test_references_are_distinct() -> None:
    refs = [{"payload_id": name, "payload_kind": "k"} for name in ("a", "b", "a", "b")]
    text = refused(request(payload_refs=refs), CallbackRequest, errors.InvalidRequest)
    assert text == "`request.payload_refs` mentions payload `a` twice"
    assert decode_value(request(payload_refs=refs[:2]), CallbackRequest)


# -- responses


def test_a_response_has_a_failure_exactly_when_it_failed() -> None:
    text = refused(response(status="failed"), CallbackResponse, errors.InvalidResponse)
    assert text == "a response of status `failed` needs a `failure_class`"
    for status in ("observed", "delivered", "skipped", "degraded"):
        value = response(status=status, failure_class="timeout")
        assert f"`{status}` has no `failure_class`" in refused(value, CallbackResponse, errors.InvalidResponse)
    failed = decode_value(response(status="failed", failure_class="timeout"), CallbackResponse)
    assert failed.retry_class is None


def test_a_retry_needs_a_failure() -> None:
    text = refused(response(retry_class="safe_retry"), CallbackResponse, errors.InvalidResponse)
    assert "no `retry_class`" in text
    assert decode_value(
        response(status="failed", failure_class="timeout", retry_class="do_not_retry"), CallbackResponse
    )


def test_the_payloads_of_a_response_are_checked_too() -> None:
    good = decode_value(response(client_payloads=[payload(), payload()]), CallbackResponse)
    assert len(good.client_payloads) == 2
    text = refused(
        response(client_payloads=[payload(), payload(body_ref="r")]), CallbackResponse, errors.InvalidResponse
    )
    assert text.startswith("response.client_payloads[1]: payload `pay-1` needs exactly one")
    refused(response(client_payloads=[payload(byte_size=-1)]), CallbackResponse, errors.InvalidResponse)


# -- payloads and envelopes


def test_a_payload_has_one_body_or_one_reference() -> None:
    for value in (payload(body=ABSENT), payload(body_ref="r")):
        assert "exactly one of" in refused(value, PayloadEnvelope, errors.InvalidPayload)
    assert decode_value(payload(body=ABSENT, body_ref="r"), PayloadEnvelope).body_ref == "r"


def test_a_payload_may_go_somewhere() -> None:
    text = refused(payload(acceptable_placements=[]), PayloadEnvelope, errors.InvalidPayload)
    assert text == "payload `pay-1` has no `acceptable_placements`"


def test_an_envelope_carries_valid_documents() -> None:
    assert decode_value(envelope(), DispatchEnvelope).payloads[0].payload_id == "pay-1"
    refused(envelope(request=request(event="frame.ended")), DispatchEnvelope, errors.InvalidFrameContext)
    refused(envelope(payloads=[payload(body_ref="r")]), DispatchEnvelope, errors.InvalidPayload)
    text = refused(envelope(payloads=[payload(), payload()]), DispatchEnvelope, errors.InvalidPayload)
    assert text == "`envelope.payloads` has payload `pay-1` twice"


def test_references_and_payloads_need_not_match() -> None:
    refs = [{"payload_id": "elsewhere", "payload_kind": "k"}]
    assert decode_value(envelope(request=request(payload_refs=refs)), DispatchEnvelope)


# -- receipts


def test_a_notification_has_no_receipt() -> None:
    """LA-6."""
    text = refused(receipt(event=rules.NOTIFICATION), LifecycleReceipt, errors.InvalidReceipt)
    assert text == "receipt.emitted is a notification event and must not itself produce a receipt"


def test_a_receipt_has_a_failure_exactly_when_it_failed() -> None:
    assert "needs a `failure_class`" in refused(receipt(status="failed"), LifecycleReceipt, errors.InvalidReceipt)
    wrong = receipt(status="degraded", failure_class="timeout", retry_class="safe_retry")
    assert "`degraded` has no `failure_class`" in refused(wrong, LifecycleReceipt, errors.InvalidReceipt)


def test_a_receipt_has_a_retry_exactly_with_a_failure() -> None:
    for value in (receipt(status="failed", failure_class="timeout"), receipt(retry_class="safe_retry")):
        assert "exactly when" in refused(value, LifecycleReceipt, errors.InvalidReceipt)
    failed = receipt(status="failed", failure_class="timeout", retry_class="safe_retry")
    assert decode_value(failed, LifecycleReceipt).retry_class == "safe_retry"


# -- manifests


def test_a_manifest_has_distinct_modes() -> None:
    text = refused(manifest(integration_modes=[]), AdapterManifest, errors.InvalidManifest)
    assert text == "`manifest.integration_modes` is empty"
    twice = manifest(integration_modes=["native_hook", "native_hook"])
    assert "has `native_hook` twice" in refused(twice, AdapterManifest, errors.InvalidManifest)


def test_an_event_comes_in_modes_of_its_manifest() -> None:
    foreign = manifest(lifecycle_events={"frame.ended": {"support": "native", "modes": ["telemetry_only"]}})
    text = refused(foreign, AdapterManifest, errors.InvalidManifest)
    assert text == "event `frame.ended` has mode `telemetry_only`, which `manifest.integration_modes` lacks"
    absent = manifest(lifecycle_events={"frame.ended": {"support": "unavailable", "modes": ["native_hook"]}})
    assert "is `unavailable` and has `modes`" in refused(absent, AdapterManifest, errors.InvalidManifest)
    empty = manifest(lifecycle_events={"frame.ended": {"support": "unavailable", "modes": []}})
    assert decode_value(empty, AdapterManifest)


def test_what_has_no_rules_is_not_checked() -> None:
    rules.check(object())
    assert rules.repeated(()) is None
