"""Find a request its adapter, and settle what that adapter can do of it. Pure.

`route` checks a request by the numbers below and stops at the first thing that is wrong. `negotiate` never stops:
what cannot be done stands in the plan it returns, with the outcome that the worst of it makes.

    1 label   2 identifiers   3 no key on receipt.emitted   4 frame   5 payload references   6 adapter   7 plan

A payload is tried in the places its client would have it in, in the client's order, and is

    refused     if it is not what it says of itself, under `strict` integrity: no place is tried
    expired     no place is tried either
    chosen      for the first place that the adapter offers and that takes its size
    failed      if there is none, or it is refused; from lifeloop.v0.3 on what was not `required` anywhere
    skipped     is skipped instead, which changes no outcome

Invariants:
    - Equal arguments give equal answers; time is an argument.
    - Nothing is granted that the manifest does not offer: a chosen place is supported, and takes the payload's size.
    - The worst outcome wins, and a failed placement makes a plan unsupported.
    - The size that is tested against a limit is the larger of what was declared and what there is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec
from blake3 import blake3

from holdfast.lifecycle import labels
from holdfast.lifecycle.documents import (
    AdapterManifest,
    CallbackRequest,
    CapabilityRequirement,
    Chosen,
    Failed,
    NegotiatedPlan,
    OpenObject,
    PayloadEnvelope,
    PayloadRef,
    PayloadTooLarge,
    PlacementDecision,
    PlacementRejection,
    RoutingPlan,
    Skipped,
    Unsupported,
    degradation,
    warning,
)
from holdfast.lifecycle.enums import (
    EVENTS,
    FRAME_CLASSES,
    INTEGRATION_MODES,
    NEGOTIATION_OUTCOMES,
    SUPPORT_STATES,
    FailureClass,
    ManifestPlacementClass,
    NegotiationOutcome,
    PlacementClass,
)
from holdfast.lifecycle.errors import (
    EmptySentinel,
    InvalidEventEnvelope,
    InvalidFrameContext,
    InvalidPayloadRef,
    UnknownEnumName,
    UnknownEventName,
    quoted,
)
from holdfast.lifecycle.manifest import Registry, support_of
from holdfast.lifecycle.rules import NOTIFICATION, frame_problem

__all__ = ["DEFAULT_POLICY", "PayloadPolicy", "body_bytes", "fit", "negotiate", "place", "request_of", "route"]


class PayloadPolicy(msgspec.Struct, frozen=True):
    """How payloads are taken that are not what they say, or that came too late.

    Attributes:
        integrity: Whether a wrong size or digest is warned of, refused, or not looked for.
        expiry: Whether a payload past its time is still placed.
    """

    integrity: Literal["warn", "strict", "off"] = "warn"
    expiry: Literal["enforce", "ignore"] = "enforce"


DEFAULT_POLICY: Final = PayloadPolicy()
"""What applies where nothing is configured."""

# --- route --------------------------------------------------------------------------------------------

_IDENTIFIERS: Final = (
    "event_id",
    "adapter_id",
    "adapter_version",
    "invocation_id",
    "harness_session_id",
    "harness_run_id",
    "harness_task_id",
    "capability_snapshot_ref",
    "idempotency_key",
)


def route(request: CallbackRequest, registry: Registry) -> RoutingPlan:
    """Find a request its adapter. Nothing is negotiated.

    Args:
        request: The request; one made by hand is checked here, in the order of the numbers above.
        registry: The adapters there are.

    Returns:
        The plan, with a copy of the manifest that is its own.

    Raises:
        RouteError: The first thing that is wrong.
    """
    labels.require(request.schema_version)
    _check_words(request)
    for name in _IDENTIFIERS:
        if getattr(request, name) == "":
            raise EmptySentinel(f"request.{name}")
    if request.event == NOTIFICATION and request.idempotency_key is not None:
        raise InvalidEventEnvelope(f"event `{NOTIFICATION}` carries no `idempotency_key`")
    _check_frame(request)
    _check_refs(request.payload_refs)
    adapter = registry.require(request.adapter_id, request.adapter_version)
    return RoutingPlan(
        schema_version=request.schema_version,
        event=request.event,
        event_id=request.event_id,
        invocation_id=request.invocation_id,
        adapter=adapter,
        integration_mode=request.integration_mode,
        harness_session_id=request.harness_session_id,
        harness_run_id=request.harness_run_id,
        harness_task_id=request.harness_task_id,
        frame_context=request.frame_context,
        payload_refs=request.payload_refs,
        capability_snapshot_ref=request.capability_snapshot_ref,
        sequence=request.sequence,
        idempotency_key=request.idempotency_key,
        metadata=request.metadata,
    )


def request_of(plan: RoutingPlan) -> CallbackRequest:
    """Return the request that a client is shown: the plan's, under the adapter's canonical id."""
    return CallbackRequest(
        schema_version=plan.schema_version,
        event=plan.event,
        event_id=plan.event_id,
        adapter_id=plan.adapter.adapter_id,
        adapter_version=plan.adapter.adapter_version,
        integration_mode=plan.integration_mode,
        invocation_id=plan.invocation_id,
        harness_session_id=plan.harness_session_id,
        harness_run_id=plan.harness_run_id,
        harness_task_id=plan.harness_task_id,
        frame_context=plan.frame_context,
        capability_snapshot_ref=plan.capability_snapshot_ref,
        payload_refs=plan.payload_refs,
        sequence=plan.sequence,
        idempotency_key=plan.idempotency_key,
        metadata=plan.metadata,
    )


def _check_words(request: CallbackRequest) -> None:
    """Check what a decoded request cannot get wrong, and one made by hand can."""
    if request.event not in EVENTS:
        raise UnknownEventName(request.event)
    if request.integration_mode not in INTEGRATION_MODES:
        raise UnknownEnumName("request.integration_mode", request.integration_mode)
    frame = request.frame_context
    if frame is not None and frame.frame_class not in FRAME_CLASSES:
        raise UnknownEnumName("request.frame_context.frame_class", frame.frame_class)


def _check_frame(request: CallbackRequest) -> None:
    frame = request.frame_context
    problem = frame_problem(request.event, frame)
    if problem is None and frame is not None and "" in (frame.frame_id, frame.parent_frame_id):
        problem = "a frame has an empty id"
    if problem is not None:
        raise InvalidFrameContext(problem)


def _check_refs(refs: Sequence[PayloadRef]) -> None:
    seen: set[str] = set()
    for index, ref in enumerate(refs):
        for name in ("payload_id", "payload_kind", "content_digest"):
            if getattr(ref, name) == "":
                raise InvalidPayloadRef(index, f"empty sentinel string in field `{name}`")
        if ref.payload_id in seen:
            raise InvalidPayloadRef(index, f"payload `{quoted(ref.payload_id)}` is mentioned before")
        seen.add(ref.payload_id)


# --- negotiate ----------------------------------------------------------------------------------------


def negotiate(
    plan: RoutingPlan,
    requirements: Sequence[CapabilityRequirement] = (),
    payloads: Sequence[PayloadEnvelope] = (),
    *,
    now_epoch_s: int,
    policy: PayloadPolicy = DEFAULT_POLICY,
) -> NegotiatedPlan:
    """Settle what the adapter of a plan can do of what a client wants.

    Args:
        plan: The plan.
        requirements: What the client needs of the harness.
        payloads: What is to be placed.
        now_epoch_s: The time, by which payloads are expired.
        policy: How odd payloads are taken.

    Returns:
        The plan with its outcome; warnings are in the order plan, requirements, payloads.
    """
    outcomes: list[NegotiationOutcome] = ["satisfied"]
    degradations: list[OpenObject] = []
    warnings = list(_plan_warnings(plan))
    for requirement in requirements:
        capability, desired = requirement.capability, requirement.desired
        claim = support_of(plan.adapter, capability)
        if claim != "unavailable" and SUPPORT_STATES.index(claim) <= SUPPORT_STATES.index(desired):
            continue
        unmet = f"capability `{capability}` is {claim}, not {desired}"
        if requirement.level == "required":
            outcomes.append("requires_operator" if claim == "manual" else "unsupported")
        elif requirement.level == "preferred":
            outcomes.append("degraded")
            degradations.append(degradation(capability, desired, claim))
            warnings.append(warning("capability_degraded", unmet, capability=capability))
        else:
            warnings.append(warning("capability_optional_unmet", unmet, capability=capability))
    lacking = "unsupported" in outcomes
    decisions = tuple(
        place(payload, plan.adapter, label=plan.schema_version, now_epoch_s=now_epoch_s, policy=policy)
        for payload in payloads
    )
    failures = [decision.failure_class for decision in decisions if isinstance(decision, Failed)]
    if failures:
        outcomes.append("unsupported")
    if policy.integrity != "off":
        warnings.extend(_mismatch_warning(payload, code) for payload in payloads for code in _mismatches(payload))
    outcome = min(outcomes, key=NEGOTIATION_OUTCOMES.index)
    failure: FailureClass | None = None
    if outcome == "unsupported":
        failure = "capability_unsupported" if lacking else failures[0]
    elif outcome == "requires_operator":
        failure = "operator_required"
    return NegotiatedPlan(
        plan=plan,
        outcome=outcome,
        capability_degradations=tuple(degradations),
        placement_decisions=decisions,
        warnings=tuple(warnings),
        failure_class=failure,
    )


def _plan_warnings(plan: RoutingPlan) -> Iterator[OpenObject]:
    adapter = plan.adapter
    if plan.integration_mode not in adapter.integration_modes:
        text = f"adapter `{adapter.adapter_id}` does not declare mode `{plan.integration_mode}`"
        yield warning("mode_undeclared", text)
    capability = f"lifecycle_event:{plan.event}"
    if support_of(adapter, capability) == "unavailable":
        text = f"adapter `{adapter.adapter_id}` does not claim event `{plan.event}`"
        yield warning("event_unavailable", text, capability=capability)


# --- place --------------------------------------------------------------------------------------------

_PLACES: Final[Mapping[PlacementClass, tuple[ManifestPlacementClass, ...]]] = {
    "developer_equivalent_frame": ("pre_session", "pre_frame_leading"),
    "pre_prompt_frame": ("pre_frame_leading", "pre_frame_trailing"),
}
"""Where a harness may put what a client wants in a place. `receipt_only` needs none: it is never put anywhere."""


def place(
    payload: PayloadEnvelope,
    manifest: AdapterManifest,
    *,
    label: str,
    now_epoch_s: int,
    policy: PayloadPolicy = DEFAULT_POLICY,
) -> PlacementDecision:
    """Find a payload its place, or say what becomes of it without one.

    Args:
        payload: The payload.
        manifest: What the adapter offers.
        label: The label of the dispatch, which says what becomes of a payload that fits nowhere and need not.
        now_epoch_s: The time.
        policy: How odd payloads are taken.
    """
    found = fit(payload, manifest, now_epoch_s=now_epoch_s, policy=policy)
    if isinstance(found, Chosen) or not labels.skips_what_does_not_fit(label):
        return found
    if any(entry.requirement == "required" for entry in payload.acceptable_placements) or _refused(payload, policy):
        return found
    return Skipped(
        payload_id=payload.payload_id,
        payload_kind=payload.payload_kind,
        byte_size=payload.byte_size,
        content_digest=payload.content_digest,
        rejected=found.rejected,
    )


def fit(
    payload: PayloadEnvelope,
    manifest: AdapterManifest,
    *,
    now_epoch_s: int,
    policy: PayloadPolicy = DEFAULT_POLICY,
) -> Chosen | Failed:
    """Find a payload the first of its places that the adapter offers and that takes its size.

    Args:
        payload: The payload.
        manifest: What the adapter offers.
        now_epoch_s: The time.
        policy: How odd payloads are taken.
    """
    if _refused(payload, policy) or _expired(payload, now_epoch_s, policy):
        return _failed(payload, (), "payload_rejected")
    size = max(payload.byte_size, len(body_bytes(payload) or b""))
    rejected: list[PlacementRejection] = []
    for entry in payload.acceptable_placements:
        rejection = _rejection(entry.placement, size, manifest)
        if rejection is None:
            return Chosen(
                payload_id=payload.payload_id,
                payload_kind=payload.payload_kind,
                byte_size=payload.byte_size,
                content_digest=payload.content_digest,
                rejected=tuple(rejected),
                chosen=entry.placement,
                first_preference=not rejected,
            )
        rejected.append(rejection)
    too_large = any(isinstance(each, PayloadTooLarge) for each in rejected)
    return _failed(payload, tuple(rejected), "payload_too_large" if too_large else "placement_unavailable")


def _refused(payload: PayloadEnvelope, policy: PayloadPolicy) -> bool:
    return policy.integrity == "strict" and any(_mismatches(payload))


def _expired(payload: PayloadEnvelope, now_epoch_s: int, policy: PayloadPolicy) -> bool:
    until = payload.expires_at_epoch_s
    return policy.expiry == "enforce" and until is not None and until <= now_epoch_s


def _rejection(placement: PlacementClass, size: int, manifest: AdapterManifest) -> PlacementRejection | None:
    """Say why a place does not take a payload of this size; None: it does."""
    if placement == "receipt_only":
        return None
    claims = [manifest.placement[each] for each in _PLACES.get(placement, ()) if each in manifest.placement]
    offers = [claim.max_bytes for claim in claims if claim.support != "unavailable"]
    if not offers:
        return Unsupported(placement=placement, manifest_support="unavailable")
    limits = [limit for limit in offers if limit is not None]
    if len(limits) < len(offers) or size <= max(limits):
        return None
    return PayloadTooLarge(placement=placement, byte_size=size, max_bytes=max(limits))


def _failed(payload: PayloadEnvelope, rejected: tuple[PlacementRejection, ...], failure: FailureClass) -> Failed:
    return Failed(
        payload_id=payload.payload_id,
        payload_kind=payload.payload_kind,
        byte_size=payload.byte_size,
        content_digest=payload.content_digest,
        rejected=rejected,
        failure_class=failure,
    )


# --- what a payload is --------------------------------------------------------------------------------

_FULL_DIGEST = re.compile(r"(sha256|blake3):([0-9a-fA-F]{64})")

Mismatch = Literal["payload_size_mismatch", "payload_digest_mismatch"]


def body_bytes(payload: PayloadEnvelope) -> bytes | None:
    """Return a payload's body, decoded; None if there is only a reference.

    A body whose encoding is the client's own, or which is not in the encoding it names, is taken as the text it is.
    """
    if payload.body is None:
        return None
    decoded = _decoded(payload.body, payload.content_encoding)
    return _text_bytes(payload.body) if decoded is None else decoded


def _decoded(body: str, encoding: str) -> bytes | None:
    if encoding == "utf8":
        return _text_bytes(body)
    if encoding == "base64":
        try:
            return base64.b64decode(body, validate=True)
        except ValueError:
            return None
    return None


def _text_bytes(text: str) -> bytes:
    # No JSON text has a lone surrogate, but a string made by hand may: it must not end the negotiation.
    return text.encode("utf-8", "surrogatepass")


def _mismatches(payload: PayloadEnvelope) -> Iterator[Mismatch]:
    """Say in what a payload's body is not what the payload says of it, as far as that can be known."""
    if payload.body is None or payload.content_encoding not in ("utf8", "base64"):
        return
    content = _decoded(payload.body, payload.content_encoding)
    if content is None or len(content) != payload.byte_size:
        yield "payload_size_mismatch"
    declared = _FULL_DIGEST.fullmatch(payload.content_digest or "")
    if declared is not None and (content is None or _hex(declared[1], content) != declared[2].lower()):
        yield "payload_digest_mismatch"


def _hex(algorithm: str, content: bytes) -> str:
    if algorithm == "blake3":
        return blake3(content).hexdigest()
    import hashlib  # it draws in a library that a hook would wait for

    return hashlib.sha256(content).hexdigest()


def _mismatch_warning(payload: PayloadEnvelope, code: Mismatch) -> OpenObject:
    what = "size" if code == "payload_size_mismatch" else "digest"
    return warning(code, f"the body of payload `{quoted(payload.payload_id)}` is not of the {what} it declares")
