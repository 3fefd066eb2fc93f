"""The rules that tie the fields of a document together, in the order in which they are checked.

The shape of a document is not looked at here: these functions take documents whose fields each hold what they may.
A rule that routing checks too is a function of its own that returns what is wrong, or None.

Invariants:
    - The same document breaks the same rule on every run: the first one in the order of the contract.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from holdfast.lifecycle.documents import (
    AdapterManifest,
    CallbackRequest,
    CallbackResponse,
    CapabilityRequirement,
    DispatchEnvelope,
    FrameContext,
    LifecycleReceipt,
    PayloadEnvelope,
)
from holdfast.lifecycle.errors import (
    InvalidFrameContext,
    InvalidManifest,
    InvalidPayload,
    InvalidReceipt,
    InvalidRequest,
    InvalidResponse,
    quoted,
)

__all__ = ["NOTIFICATION", "check", "frame_problem", "payload_problem", "repeated"]

NOTIFICATION: Final = "receipt.emitted"
"""The event that tells of receipts: it has no key, no client and no receipt."""


def check(document: object) -> None:
    """Check a document's fields against each other.

    Raises:
        ValidationError: The first rule that is broken.
    """
    rule = _RULES.get(type(document))
    if rule is not None:
        rule(document)


def frame_problem(event: str, frame: FrameContext | None) -> str | None:
    """Say what is wrong with the frame of an event, if anything is."""
    if frame is None:
        return f"event `{event}` needs a `frame_context`" if event.startswith("frame.") else None
    if frame.frame_class == "subcall" and frame.parent_frame_id is None:
        return "a frame of class `subcall` needs a `parent_frame_id`"
    if frame.frame_class == "top_level" and frame.parent_frame_id is not None:
        return "a frame of class `top_level` has no `parent_frame_id`"
    return None


def payload_problem(payload: PayloadEnvelope) -> str | None:
    """Say which rule of its own a payload breaks, if any."""
    if (payload.body is None) == (payload.body_ref is None):
        return f"payload `{quoted(payload.payload_id)}` needs exactly one of `body` and `body_ref`"
    if not payload.acceptable_placements:
        return f"payload `{quoted(payload.payload_id)}` has no `acceptable_placements`"
    return None


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stood before, if one did."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_request(request: CallbackRequest) -> None:
    if problem := frame_problem(request.event, request.frame_context):
        raise InvalidFrameContext(problem)
    if request.event == NOTIFICATION and request.idempotency_key is not None:
        raise InvalidRequest(f"event `{NOTIFICATION}` carries no `idempotency_key`")
    if (name := repeated(ref.payload_id for ref in request.payload_refs)) is not None:
        raise InvalidRequest(f"`request.payload_refs` mentions payload `{quoted(name)}` twice")


def _check_response(response: CallbackResponse) -> None:
    if response.status == "failed" and response.failure_class is None:
        raise InvalidResponse("a response of status `failed` needs a `failure_class`")
    if response.status != "failed" and response.failure_class is not None:
        raise InvalidResponse(f"a response of status `{response.status}` has no `failure_class`")
    if response.retry_class is not None and response.failure_class is None:
        raise InvalidResponse("a response without a `failure_class` has no `retry_class`")
    for index, payload in enumerate(response.client_payloads):
        if problem := payload_problem(payload):
            raise InvalidResponse(f"response.client_payloads[{index}]: {problem}")


def _check_payload(payload: PayloadEnvelope) -> None:
    if problem := payload_problem(payload):
        raise InvalidPayload(problem)


def _check_envelope(envelope: DispatchEnvelope) -> None:
    _check_request(envelope.request)
    for payload in envelope.payloads:
        _check_payload(payload)
    if (name := repeated(payload.payload_id for payload in envelope.payloads)) is not None:
        raise InvalidPayload(f"`envelope.payloads` has payload `{quoted(name)}` twice")


def _check_receipt(receipt: LifecycleReceipt) -> None:
    if receipt.event == NOTIFICATION:
        raise InvalidReceipt(f"{NOTIFICATION} is a notification event and must not itself produce a receipt")
    if receipt.status == "failed" and receipt.failure_class is None:
        raise InvalidReceipt("a receipt of status `failed` needs a `failure_class`")
    if receipt.status != "failed" and receipt.failure_class is not None:
        raise InvalidReceipt(f"a receipt of status `{receipt.status}` has no `failure_class`")
    if (receipt.failure_class is None) != (receipt.retry_class is None):
        raise InvalidReceipt("a receipt has a `retry_class` exactly when it has a `failure_class`")


def _check_manifest(manifest: AdapterManifest) -> None:
    modes = manifest.integration_modes
    if not modes:
        raise InvalidManifest("`manifest.integration_modes` is empty")
    if (mode := repeated(modes)) is not None:
        raise InvalidManifest(f"`manifest.integration_modes` has `{mode}` twice")
    for event, claim in manifest.lifecycle_events.items():
        if claim.modes and claim.support == "unavailable":
            raise InvalidManifest(f"event `{event}` is `unavailable` and has `modes`")
        for mode in claim.modes:
            if mode not in modes:
                raise InvalidManifest(f"event `{event}` has mode `{mode}`, which `manifest.integration_modes` lacks")


def _check_requirement(requirement: CapabilityRequirement) -> None:
    if requirement.desired == "unavailable":
        raise InvalidRequest("`requirement.desired` is `unavailable`, which nobody can require")


_RULES: dict[type, Callable[[Any], None]] = {
    CallbackRequest: _check_request,
    CallbackResponse: _check_response,
    PayloadEnvelope: _check_payload,
    DispatchEnvelope: _check_envelope,
    LifecycleReceipt: _check_receipt,
    AdapterManifest: _check_manifest,
    CapabilityRequirement: _check_requirement,
}
