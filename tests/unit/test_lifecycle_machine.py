"""From a request to a plan, and from a plan to what the adapter can do of it."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.plans import FRAME, NOW, V02, V03, manifest, payload, plan, request

from holdfast.lifecycle import errors
from holdfast.lifecycle.documents import (
    AdapterManifest,
    CapabilityRequirement,
    Chosen,
    EventClaim,
    Failed,
    FrameContext,
    NegotiatedPlan,
    PayloadEnvelope,
    PayloadRef,
    PayloadTooLarge,
    PlacementClaim,
    Skipped,
    Unsupported,
)
from holdfast.lifecycle.enums import (
    CAPABILITIES,
    MANIFEST_PLACEMENT_CLASSES,
    NEGOTIATION_OUTCOMES,
    PLACEMENT_CLASSES,
    REQUIREMENT_LEVELS,
    SUPPORT_STATES,
    RequirementLevel,
    SupportState,
)
from holdfast.lifecycle.machine import (
    PayloadPolicy,
    Registry,
    body_bytes,
    failure_of,
    negotiate,
    place,
    project,
    request_of,
    route,
    support_of,
)

BUILTIN = Registry.builtin()
NATIVE = PlacementClaim(support="native")


def need(capability: str, level: RequirementLevel, desired: SupportState) -> CapabilityRequirement:
    return CapabilityRequirement(capability=capability, level=level, desired=desired)


def settled(*payloads: PayloadEnvelope, adapter: AdapterManifest | None = None, **options: Any) -> NegotiatedPlan:
    options.setdefault("now_epoch_s", NOW)
    return negotiate(plan(adapter), (), payloads, **options)


def codes(negotiated: NegotiatedPlan) -> list[str]:
    return [warning["code"] for warning in negotiated.warnings]


# --- route --------------------------------------------------------------------------------------------


def test_a_request_finds_its_adapter_under_another_name() -> None:
    """LA-15."""
    asked = request(
        adapter_id="claude_code",
        harness_task_id="task-1",
        event="frame.opening",
        frame_context=FRAME,
        capability_snapshot_ref="snap-1",
        payload_refs=(PayloadRef(payload_id="a", payload_kind="k"),),
        sequence=7,
        metadata={"a": 1},
    )
    found = route(asked, BUILTIN)
    assert found.adapter == BUILTIN.get("claude")
    assert request_of(found) == replace(asked, adapter_id="claude")


def test_a_plan_has_a_manifest_of_its_own() -> None:
    first, second = route(request(), BUILTIN), route(request(), BUILTIN)
    first.adapter.placement.clear()
    assert second.adapter.placement


EMPTY_REF = PayloadRef(payload_id="c", payload_kind="")
REFS = (PayloadRef(payload_id="a", payload_kind="k"), PayloadRef(payload_id="b", payload_kind="k"))


@pytest.mark.parametrize(
    ("changes", "error", "attributes"),
    [
        ({"schema_version": "lifeloop.v0"}, errors.SchemaVersionMismatch, {"found": "lifeloop.v0"}),
        ({"event": "frame.flarbed"}, errors.UnknownEventName, {"received": "frame.flarbed"}),
        ({"integration_mode": "magic"}, errors.UnknownEnumName, {"field": "request.integration_mode"}),
        (
            {"frame_context": replace(FRAME, frame_class="nested")},
            errors.UnknownEnumName,
            {"field": "request.frame_context.frame_class", "received": "nested"},
        ),
        *(
            ({name: ""}, errors.EmptySentinel, {"field": f"request.{name}"})
            for name in (
                "event_id", "adapter_id", "adapter_version", "invocation_id", "harness_session_id", "harness_run_id",
                "harness_task_id", "capability_snapshot_ref", "idempotency_key",
            )
        ),
        ({"event": "receipt.emitted"}, errors.InvalidEventEnvelope, {}),
        ({"event": "frame.opening"}, errors.InvalidFrameContext, {}),
        ({"frame_context": FrameContext(frame_id="", frame_class="top_level")}, errors.InvalidFrameContext, {}),
        ({"frame_context": FrameContext(frame_id="f", frame_class="subcall")}, errors.InvalidFrameContext, {}),
        (
            {"frame_context": FrameContext(frame_id="f", frame_class="subcall", parent_frame_id="")},
            errors.InvalidFrameContext,
            {},
        ),
        ({"payload_refs": (*REFS, EMPTY_REF)}, errors.InvalidPayloadRef, {"index": 2}),
        ({"payload_refs": (replace(REFS[0], payload_id=""),)}, errors.InvalidPayloadRef, {"index": 0}),
        ({"payload_refs": (replace(REFS[0], content_digest=""),)}, errors.InvalidPayloadRef, {"index": 0}),
        ({"payload_refs": (*REFS, REFS[0])}, errors.InvalidPayloadRef, {"index": 2}),
        ({"adapter_id": "nobody"}, errors.AdapterIdNotFound, {"adapter_id": "nobody"}),
        ({"adapter_version": "9"}, errors.AdapterVersionMismatch, {"requested": "9", "registered": "0.2.0"}),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_routed_says_why(
    changes: dict[str, Any], error: type[errors.RouteError], attributes: dict[str, Any]
) -> None:
    """LA-13, LA-14."""
    with pytest.raises(error) as raised:
        route(request(**changes), BUILTIN)
    assert isinstance(raised.value, errors.RouteError)
    assert {name: getattr(raised.value, name) for name in attributes} == attributes
    unavailable = error in (errors.AdapterIdNotFound, errors.AdapterVersionMismatch)
    assert failure_of(raised.value)[0] == ("adapter_unavailable" if unavailable else "invalid_request")


def test_of_several_faults_the_first_in_the_contract_s_order_is_reported() -> None:
    faults: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"schema_version": "lifeloop.v9"}, errors.SchemaVersionMismatch),
        ({"event_id": ""}, errors.EmptySentinel),
        ({"event": "receipt.emitted"}, errors.InvalidEventEnvelope),
        ({"frame_context": FrameContext(frame_id="f", frame_class="subcall")}, errors.InvalidFrameContext),
        ({"payload_refs": (EMPTY_REF,)}, errors.InvalidPayloadRef),
        ({"adapter_id": "nobody"}, errors.AdapterIdNotFound),
    ]
    for first in range(len(faults)):
        changes = {name: value for fault, _ in faults[first:] for name, value in fault.items()}
        with pytest.raises(faults[first][1]):
            route(request(**changes), BUILTIN)


def test_what_the_manifest_does_not_declare_is_a_warning_and_no_error() -> None:
    asked = request(
        adapter_id="gemini", adapter_version="0.1.0", integration_mode="telemetry_only", event="context.compacted"
    )
    found = negotiate(route(asked, BUILTIN), now_epoch_s=NOW)
    assert codes(found) == ["mode_undeclared", "event_unavailable"]
    assert (found.outcome, found.failure_class, found.blocks_dispatch) == ("satisfied", None, False)


# --- capabilities -------------------------------------------------------------------------------------


def test_a_plan_that_nothing_is_asked_of_is_satisfied() -> None:
    """LA-16."""
    assert negotiate(plan(), now_epoch_s=NOW) == NegotiatedPlan(plan=plan(), outcome="satisfied")


@pytest.mark.parametrize("claim", SUPPORT_STATES)
@pytest.mark.parametrize("desired", SUPPORT_STATES[:-1])
@pytest.mark.parametrize("level", REQUIREMENT_LEVELS)
def test_a_requirement_is_met_by_a_claim_as_strong_or_stronger(
    claim: SupportState, desired: SupportState, level: RequirementLevel
) -> None:
    """LA-17, LA-18, LA-19: every level, claim and desire."""
    adapter = replace(manifest(), session_rename={"support": claim})
    found = negotiate(plan(adapter), [need("session_rename", level, desired)], now_epoch_s=NOW)
    strength = {"native": 4, "synthesized": 3, "partial": 2, "manual": 1, "unavailable": 0}
    if strength[claim] >= strength[desired]:
        assert (found.outcome, found.warnings, found.capability_degradations) == ("satisfied", (), ())
    elif level == "required":
        operator = claim == "manual"
        assert found.outcome == ("requires_operator" if operator else "unsupported")
        assert found.failure_class == ("operator_required" if operator else "capability_unsupported")
        assert project(found.outcome, found.failure_class) == (
            ("operator_required", "retry_after_operator") if operator else ("capability_unsupported", "do_not_retry")
        )
        assert found.blocks_dispatch
    elif level == "preferred":
        assert (found.outcome, found.failure_class, codes(found)) == ("degraded", None, ["capability_degraded"])
        assert found.capability_degradations == (
            {"capability": "session_rename", "previous_support": desired, "current_support": claim},
        )
    else:
        assert (found.outcome, found.failure_class, codes(found)) == ("satisfied", None, ["capability_optional_unmet"])
        assert found.warnings[0]["capability"] == "session_rename"


def test_the_worst_outcome_wins_and_brings_its_class() -> None:
    adapter = replace(manifest(), session_rename={"support": "manual"})
    unmet = need("approval_surface", "required", "native")
    manual = need("session_rename", "required", "native")
    preferred = need("approval_surface", "preferred", "native")
    huge = payload(("pre_prompt_frame", "required"), byte_size=10_001)

    def outcome(*requirements: CapabilityRequirement, payloads: tuple[PayloadEnvelope, ...] = ()) -> tuple[Any, ...]:
        found = negotiate(plan(adapter), requirements, payloads, now_epoch_s=NOW)
        return found.outcome, found.failure_class

    assert outcome(preferred) == ("degraded", None)
    assert outcome(preferred, manual) == ("requires_operator", "operator_required")
    assert outcome(manual, unmet, preferred) == ("unsupported", "capability_unsupported")
    assert outcome(manual, payloads=(huge,)) == ("unsupported", "payload_too_large")
    assert outcome(unmet, payloads=(huge,)) == ("unsupported", "capability_unsupported")


# --- placements ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", BUILTIN.list(), ids=lambda line: line.adapter_id)
def test_every_adapter_takes_what_only_the_receipt_has_to_say(line: Any) -> None:
    """LA-21."""
    adapter = BUILTIN.require(line.adapter_id, line.adapter_version)
    found = settled(payload(("receipt_only", "required"), byte_size=2**40), adapter=adapter)
    assert found.outcome == "satisfied"
    assert found.placement_decisions == (
        Chosen(
            payload_id="pay-1",
            payload_kind="instruction_frame",
            byte_size=2**40,
            chosen="receipt_only",
            first_preference=True,
        ),
    )


@pytest.mark.parametrize("wanted", PLACEMENT_CLASSES)
@pytest.mark.parametrize("offered", MANIFEST_PLACEMENT_CLASSES)
def test_a_place_is_offered_by_the_manifest_s_classes_behind_it(wanted: Any, offered: Any) -> None:
    behind = {
        "developer_equivalent_frame": {"pre_session", "pre_frame_leading"},
        "pre_prompt_frame": {"pre_frame_leading", "pre_frame_trailing"},
        "receipt_only": set(MANIFEST_PLACEMENT_CLASSES),
    }
    for support in SUPPORT_STATES:
        adapter = manifest(**{offered: PlacementClaim(support=support)})
        decision = settled(payload((wanted, "optional")), adapter=adapter).placement_decisions[0]
        possible = wanted == "receipt_only" or (offered in behind[wanted] and support != "unavailable")
        assert isinstance(decision, Chosen if possible else Skipped)


def test_the_first_place_that_fits_is_chosen_and_the_others_are_remembered() -> None:
    adapter = manifest(pre_frame_trailing=PlacementClaim(support="native", max_bytes=4))
    wanted = payload(
        ("developer_equivalent_frame", "preferred"),
        ("pre_prompt_frame", "required"),
        ("receipt_only", "optional"),
        content_digest="crc32:1",
    )
    assert settled(wanted, adapter=adapter).placement_decisions == (
        Chosen(
            payload_id="pay-1",
            payload_kind="instruction_frame",
            byte_size=5,
            content_digest="crc32:1",
            rejected=(
                Unsupported(placement="developer_equivalent_frame", manifest_support="unavailable"),
                PayloadTooLarge(placement="pre_prompt_frame", byte_size=5, max_bytes=4),
            ),
            chosen="receipt_only",
            first_preference=False,
        ),
    )


@pytest.mark.parametrize(
    ("leading", "trailing", "size_max"),
    [
        (PlacementClaim(support="partial", max_bytes=10), PlacementClaim(support="native", max_bytes=6), 10),
        (PlacementClaim(support="unavailable", max_bytes=10), PlacementClaim(support="manual", max_bytes=6), 6),
        (PlacementClaim(support="unavailable"), PlacementClaim(support="native", max_bytes=6), 6),
        (PlacementClaim(support="manual"), PlacementClaim(support="native", max_bytes=6), None),
    ],
)
def test_the_largest_limit_among_the_classes_that_are_offered_counts(
    leading: PlacementClaim, trailing: PlacementClaim, size_max: int | None
) -> None:
    adapter = manifest(pre_frame_leading=leading, pre_frame_trailing=trailing)
    for size in (5, 6, 7, 10, 11, 10**9):
        outcome = settled(payload(("pre_prompt_frame", "required"), byte_size=size), adapter=adapter).outcome
        assert outcome == ("satisfied" if size_max is None or size <= size_max else "unsupported")


def test_a_required_payload_that_is_too_large_everywhere_makes_the_plan_unsupported() -> None:
    """LA-20."""
    wanted = payload(("pre_prompt_frame", "preferred"), ("developer_equivalent_frame", "required"), byte_size=10_001)
    found = settled(wanted)
    assert isinstance(decision := found.placement_decisions[0], Failed)
    assert decision.failure_class == "payload_too_large"
    assert [type(each) for each in decision.rejected] == [PayloadTooLarge, PayloadTooLarge]
    assert project(found.outcome, found.failure_class) == ("payload_too_large", "do_not_retry")
    assert found.outcome == "unsupported"


@pytest.mark.parametrize(
    ("label", "level", "fails"),
    [(V02, "optional", True), (V02, "required", True), (V03, "optional", False), (V03, "required", True)],
)
def test_what_fits_nowhere_fails_or_is_skipped_by_its_label(
    label: str, level: RequirementLevel, *, fails: bool
) -> None:
    unplaceable = payload(("pre_prompt_frame", "preferred"), ("developer_equivalent_frame", level))
    adapter = manifest(manual_operator=NATIVE)
    found = negotiate(plan(adapter, schema_version=label), (), [unplaceable], now_epoch_s=NOW)
    rejected = (
        Unsupported(placement="pre_prompt_frame", manifest_support="unavailable"),
        Unsupported(placement="developer_equivalent_frame", manifest_support="unavailable"),
    )
    decision = found.placement_decisions[0]
    assert decision.rejected == rejected
    if fails:
        assert isinstance(decision, Failed)
        assert (found.outcome, found.failure_class) == ("unsupported", "placement_unavailable")
    else:
        assert isinstance(decision, Skipped)
        assert (found.outcome, found.failure_class) == ("satisfied", None)


@pytest.mark.parametrize(("label", "level"), [(V02, "optional"), (V03, "optional"), (V03, "required")])
def test_an_expired_payload_is_not_placed(label: str, level: RequirementLevel) -> None:
    """LA-22."""
    late = payload(("receipt_only", level), expires_at_epoch_s=NOW)
    found = negotiate(plan(schema_version=label), (), [late], now_epoch_s=NOW)
    decision = found.placement_decisions[0]
    assert decision.rejected == ()
    if label == V03 and level == "optional":
        assert isinstance(decision, Skipped)
        assert found.outcome == "satisfied"
    else:
        assert isinstance(decision, Failed)
        assert (found.outcome, found.failure_class) == ("unsupported", "payload_rejected")
    in_time = negotiate(plan(schema_version=label), (), [late], now_epoch_s=NOW - 1)
    assert isinstance(in_time.placement_decisions[0], Chosen)
    ignored = negotiate(plan(schema_version=label), (), [late], now_epoch_s=NOW, policy=PayloadPolicy(expiry="ignore"))
    assert isinstance(ignored.placement_decisions[0], Chosen)


# --- what a payload says of itself --------------------------------------------------------------------

BODY = "grüße"
RAW = BODY.encode()
CODED = base64.b64encode(RAW).decode()


@pytest.mark.parametrize("integrity", ["warn", "strict", "off"])
@pytest.mark.parametrize("encoding", ["utf8", "base64", "gzip"])
def test_a_small_declared_size_does_not_carry_a_large_body_past_a_limit(integrity: Any, encoding: str) -> None:
    """LA-23."""
    size = 20_000
    body = "x" * size if encoding != "base64" else base64.b64encode(b"x" * size).decode()
    large = payload(("pre_prompt_frame", "required"), body=body, content_encoding=encoding, byte_size=1)
    found = settled(large, policy=PayloadPolicy(integrity=integrity))
    assert found.outcome == "unsupported"
    assert found.failure_class in ("payload_too_large", "payload_rejected")
    if integrity != "strict":
        assert isinstance(decision := found.placement_decisions[0], Failed)
        assert decision.rejected == (PayloadTooLarge(placement="pre_prompt_frame", byte_size=size, max_bytes=10_000),)
        assert decision.byte_size == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"body": BODY, "byte_size": 7}, []),
        ({"body": CODED, "content_encoding": "base64", "byte_size": 7}, []),
        ({"body": BODY, "byte_size": 5}, ["payload_size_mismatch"]),
        ({"body": CODED, "content_encoding": "base64", "byte_size": 12}, ["payload_size_mismatch"]),
        ({"body": "no base64", "content_encoding": "base64"}, ["payload_size_mismatch"]),
        ({"body": "\ud800", "byte_size": 3}, []),
        ({"body": BODY, "content_encoding": "gzip", "byte_size": 1}, []),
        ({"body": None, "body_ref": "file:a", "byte_size": 1, "content_digest": "sha256:" + "0" * 64}, []),
        ({"body": BODY, "byte_size": 7, "content_digest": f"sha256:{hashlib.sha256(RAW).hexdigest()}"}, []),
        ({"body": BODY, "byte_size": 7, "content_digest": f"blake3:{blake3(RAW).hexdigest().upper()}"}, []),
        ({"body": BODY, "byte_size": 7, "content_digest": "blake3:" + "0" * 64}, ["payload_digest_mismatch"]),
        ({"body": BODY, "byte_size": 7, "content_digest": "sha256:" + "0" * 63}, []),
        ({"body": BODY, "byte_size": 7, "content_digest": "md5:" + "0" * 32}, []),
        (
            {"body": "no base64", "content_encoding": "base64", "content_digest": "sha256:" + "0" * 64},
            ["payload_size_mismatch", "payload_digest_mismatch"],
        ),
    ],
)
def test_a_body_is_held_against_what_is_declared_of_it(changes: dict[str, Any], expected: list[str]) -> None:
    odd = payload(("receipt_only", "optional"), **changes)
    warned = settled(odd)
    assert codes(warned) == expected
    assert warned.outcome == "satisfied"
    strict = settled(odd, policy=PayloadPolicy(integrity="strict"))
    assert (strict.outcome, strict.failure_class) == (
        ("unsupported", "payload_rejected") if expected else ("satisfied", None)
    )
    assert codes(strict) == expected
    off = settled(odd, policy=PayloadPolicy(integrity="off"))
    assert (off.outcome, off.warnings) == ("satisfied", ())
    shown = str(warned.warnings)
    assert (odd.body or "file:a") not in shown


def test_a_body_is_read_in_the_encoding_it_names() -> None:
    def read(**changes: Any) -> bytes | None:
        return body_bytes(payload(("receipt_only", "optional"), **changes))

    assert read(body=BODY) == RAW
    assert read(body=CODED, content_encoding="base64") == RAW
    assert read(body="no base64", content_encoding="base64") == b"no base64"
    assert read(body=CODED, content_encoding="rot13") == CODED.encode()
    assert read(body="") == b""
    assert read(body=None, body_ref="file:a") is None


# --- laws ---------------------------------------------------------------------------------------------

limits = st.none() | st.integers(0, 30)
claims = st.builds(
    lambda support, limit: PlacementClaim(support=support, max_bytes=limit), st.sampled_from(SUPPORT_STATES), limits
)
adapters = st.builds(
    lambda offers, rename, event: replace(
        manifest(),
        placement=offers,
        session_rename={"support": rename},
        lifecycle_events={"session.started": EventClaim(support=event)},
    ),
    st.dictionaries(st.sampled_from(MANIFEST_PLACEMENT_CLASSES), claims),
    st.sampled_from(SUPPORT_STATES),
    st.sampled_from(SUPPORT_STATES),
)
wishes = st.lists(
    st.tuples(st.sampled_from(PLACEMENT_CLASSES), st.sampled_from(REQUIREMENT_LEVELS)), min_size=1, max_size=4
)
payloads = st.lists(
    st.builds(
        lambda wanted, body, encoding, size, until: payload(
            *wanted, body=body, content_encoding=encoding, byte_size=size, expires_at_epoch_s=until
        ),
        wishes,
        st.text(max_size=20),
        st.sampled_from(["utf8", "base64", "other"]),
        st.integers(0, 30),
        st.none() | st.integers(NOW - 1, NOW + 1),
    ),
    max_size=3,
)
requirements = st.lists(
    st.builds(
        need, st.sampled_from(CAPABILITIES), st.sampled_from(REQUIREMENT_LEVELS), st.sampled_from(SUPPORT_STATES)
    ),
    max_size=4,
)
policies = st.builds(PayloadPolicy, st.sampled_from(["warn", "strict", "off"]), st.sampled_from(["enforce", "ignore"]))
PLACES = {
    "developer_equivalent_frame": ("pre_session", "pre_frame_leading"),
    "pre_prompt_frame": ("pre_frame_leading", "pre_frame_trailing"),
}


@given(adapters, requirements, payloads, policies, st.sampled_from([V02, V03]))
def test_negotiation_keeps_its_laws(
    adapter: AdapterManifest,
    needs: list[CapabilityRequirement],
    offers: list[PayloadEnvelope],
    policy: PayloadPolicy,
    label: str,
) -> None:
    asked = plan(adapter, schema_version=label)
    found = negotiate(asked, needs, offers, now_epoch_s=NOW, policy=policy)
    assert found == negotiate(asked, tuple(needs), tuple(offers), now_epoch_s=NOW, policy=policy), "deterministic"

    # It grants nothing that was not offered.
    for each, decision in zip(offers, found.placement_decisions, strict=True):
        assert decision == place(each, adapter, label=label, now_epoch_s=NOW, policy=policy)
        assert (decision.payload_id, decision.byte_size) == (each.payload_id, each.byte_size)
        if isinstance(decision, Chosen):
            assert decision.chosen in [entry.placement for entry in each.acceptable_placements]
            assert decision.first_preference == (not decision.rejected)
            behind = [adapter.placement.get(name) for name in PLACES.get(decision.chosen, ())]
            size = max(each.byte_size, len(body_bytes(each) or b""))
            assert decision.chosen == "receipt_only" or any(
                claim is not None
                and claim.support != "unavailable"
                and (claim.max_bytes is None or size <= claim.max_bytes)
                for claim in behind
            )
    granted = [need for need in needs if support_of(adapter, need.capability) != "unavailable"]
    unmet = [
        need
        for need in needs
        if need not in granted
        or SUPPORT_STATES.index(support_of(adapter, need.capability)) > SUPPORT_STATES.index(need.desired)
    ]
    records = [degradation["capability"] for degradation in found.capability_degradations]
    assert records == [need.capability for need in unmet if need.level == "preferred"]

    # The worst outcome wins, and what each part makes alone is never worse than the whole.
    parts = [negotiate(asked, [need], (), now_epoch_s=NOW, policy=policy).outcome for need in needs]
    parts += [negotiate(asked, (), [each], now_epoch_s=NOW, policy=policy).outcome for each in offers]
    assert found.outcome == min(["satisfied", *parts], key=NEGOTIATION_OUTCOMES.index)
    assert found.blocks_dispatch == (found.outcome in ("unsupported", "requires_operator"))
    assert (found.failure_class is None) == (not found.blocks_dispatch)
