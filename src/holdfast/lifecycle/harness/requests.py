"""Make requests of what a hook tells of. Pure.

Invariants:
    - All of a request and its receipt's context follows from the delivery, so telling it again gives the same.
    - The text of a prompt goes into a request only as far as that was configured.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.lifecycle.documents import METADATA_BYTES_MAX, CallbackRequest, CallbackResponse, ReceiptContext, warning
from holdfast.lifecycle.harness import EventDraft, HookEvent, degraded_ids, event_ids, receipt_id, run_id

__all__ = ["context_for", "degraded_request", "late_response", "request_for"]

PROMPT_BYTES_MAX: Final = METADATA_BYTES_MAX // 2
"""How much of a prompt fits into metadata beside the rest, as JSON."""


def request_for(
    event: HookEvent, draft: EventDraft, occurrence: int, *, label: str, version: str, prompt_chars: int | None = 0
) -> CallbackRequest:
    """Make the request about an event of a hook.

    Args:
        event: What the hook says.
        draft: The event.
        occurrence: How often the same was told before.
        label: Under which label.
        version: Of the adapter's manifest.
        prompt_chars: How much of a prompt's text goes with it; None: all of it, as far as metadata can hold it.
    """
    event_id, invocation_id, key = event_ids(event.material, occurrence, draft.event)
    metadata = draft.metadata
    if event.prompt is not None and prompt_chars != 0:
        metadata = {**metadata, "prompt": _head(event.prompt[:prompt_chars])}
    return CallbackRequest(
        schema_version=label,
        event=draft.event,
        event_id=event_id,
        adapter_id=event.harness,
        adapter_version=version,
        integration_mode="native_hook",
        invocation_id=invocation_id,
        harness_session_id=event.session_id,
        harness_run_id=run_id(event.harness, event.session_id),
        frame_context=draft.frame_context,
        idempotency_key=key,
        metadata=metadata,
    )


def _head(text: str) -> str:
    while len(msgspec.json.encode(text)) > PROMPT_BYTES_MAX:
        text = text[: len(text) // 2]
    return text


def degraded_request(event: HookEvent, capability: str, *, label: str, version: str) -> CallbackRequest:
    """Make the request about the first degradation of a capability in a session."""
    event_id, invocation_id, key = degraded_ids(event.harness, event.session_id, capability)
    run = run_id(event.harness, event.session_id)
    return CallbackRequest(
        schema_version=label,
        event="capability.degraded",
        event_id=event_id,
        adapter_id=event.harness,
        adapter_version=version,
        integration_mode="native_hook",
        invocation_id=invocation_id,
        harness_session_id=event.session_id,
        harness_run_id=run,
        idempotency_key=key,
        metadata={"lifeloop_run_id": run, "capability": capability},
    )


def context_for(request: CallbackRequest, client_id: str, received_at: int) -> ReceiptContext:
    """Return ids and clock of the receipt of a request for a client.

    Args:
        request: The request.
        client_id: The client.
        received_at: When the delivery came, microseconds.
    """
    return ReceiptContext(
        client_id=client_id,
        receipt_id=receipt_id(request.idempotency_key or "", client_id),
        at_epoch_s=received_at // 1_000_000,
        harness_session_id=request.harness_session_id,
        harness_run_id=request.harness_run_id,
    )


def late_response(label: str) -> CallbackResponse:
    """Return what stands for the answer of a client whose event was derived after its moment."""
    return CallbackResponse(
        schema_version=label,
        status="skipped",
        warnings=(warning("derived_late", "the event was derived after its moment, and the client was not called"),),
    )
