"""What became of an event: every row of the table of statuses, the receipt, and what stands beside it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.plans import (
    FRAME,
    NOW,
    chosen,
    context,
    failed,
    manifest,
    negotiated,
    payload,
    plan,
    response,
    skipped,
)

from holdfast.lifecycle.documents import PayloadReceipt, PlacementClaim, Unsupported
from holdfast.lifecycle.enums import FAILURE_CLASSES, NEGOTIATION_OUTCOMES, RECEIPT_STATUSES, RETRY_CLASSES
from holdfast.lifecycle.errors import ReceiptEmittedNotEmittable
from holdfast.lifecycle.machine import (
    Annotations,
    ClientPayloadNote,
    DerivedStatus,
    DirectiveNote,
    PayloadNote,
    PayloadPolicy,
    Refined,
    RequestNote,
    ResponseNote,
    annotate,
    canonical,
    decode_annotations,
    default_retry,
    derive_status,
    encode_annotations,
    synthesize,
)
from holdfast.lifecycle.wire import validate

# The table of the contract, spelled out. A response that fails is `transport_error`, retried after a reread;
# a placement that fails is `payload_too_large`; an unsupported plan is `payload_rejected`.
ROWS: dict[tuple[str, str, str], tuple[str, str | None, str | None]] = {
    ("unsupported", "any", "any"): ("failed", "payload_rejected", "do_not_retry"),
    ("requires_operator", "any", "any"): ("failed", "operator_required", "retry_after_operator"),
    ("degraded", "failed", "any"): ("failed", "transport_error", "retry_after_reread"),
    ("degraded", "other", "any"): ("degraded", None, None),
    ("satisfied", "any", "yes"): ("failed", "payload_too_large", "do_not_retry"),
    ("satisfied", "failed", "no"): ("failed", "transport_error", "retry_after_reread"),
    ("satisfied", "skipped", "no"): ("skipped", None, None),
    ("satisfied", "observed", "no"): ("observed", None, None),
    ("satisfied", "degraded", "no"): ("degraded", None, None),
    ("satisfied", "delivered", "no"): ("delivered", None, None),
}
# What the table hides, and only there.
HIDDEN: dict[tuple[str, str, str], tuple[str, str | None, str | None]] = {
    ("requires_operator", "any", "any"): ("failed", "payload_rejected", "do_not_retry"),
    ("degraded", "any", "yes"): ("failed", "payload_too_large", "do_not_retry"),
    ("degraded", "skipped", "no"): ("skipped", None, None),
    ("degraded", "observed", "no"): ("observed", None, None),
}


def row(table: dict[tuple[str, str, str], Any], outcome: str, said: str, misplaced: str) -> Any:
    """The one row of a table that a case is in."""
    return next(
        (
            table[outcome, client, placement]
            for client in (said, "any", "other")
            for placement in (misplaced, "any")
            if (outcome, client, placement) in table
        ),
        None,
    )


CASES = list(product(NEGOTIATION_OUTCOMES, [*RECEIPT_STATUSES, None], ["yes", "no"]))


def case(outcome: Any, status: str | None, misplaced: str) -> tuple[Any, Any]:
    decisions = (chosen("a"), failed("payload_too_large", "b"), failed("payload_rejected", "c"))
    found = negotiated(
        outcome,
        decisions=decisions if misplaced == "yes" else decisions[:1],
        failure="payload_rejected" if outcome in ("unsupported", "requires_operator") else None,
    )
    if status is None:
        return found, None
    own = {"failure_class": "transport_error", "retry_class": "retry_after_reread"} if status == "failed" else {}
    return found, response(status, **own)


@pytest.mark.parametrize(("outcome", "status", "misplaced"), CASES)
def test_a_status_is_read_off_the_table(outcome: str, status: str | None, misplaced: str) -> None:
    """LA-29, the wire: no response counts as observed."""
    found, answer = case(outcome, status, misplaced)
    expected = row(ROWS, outcome, status or "observed", misplaced)
    assert derive_status(found, answer) == DerivedStatus(*expected)
    receipt = synthesize(found, answer, context(), sequence=1)
    assert (receipt.status, receipt.failure_class, receipt.retry_class) == expected
    validate(receipt)


@pytest.mark.parametrize(("outcome", "status", "misplaced"), CASES)
def test_what_the_table_hides_is_in_the_annotations_and_only_that(
    outcome: str, status: str | None, misplaced: str
) -> None:
    """LA-29, `refined`."""
    found, answer = case(outcome, status, misplaced)
    hidden = row(HIDDEN, outcome, status or "observed", misplaced)
    refined = annotate(found, answer, context(), dispatched=status is not None).refined
    if hidden is None:
        assert refined is None
    else:
        assert refined == Refined(status=hidden[0], failure_class=hidden[1], retry_class=hidden[2])


def test_nothing_is_refined_where_it_would_say_the_same() -> None:
    def refined(found: Any, answer: Any = None) -> Any:
        return annotate(found, answer, context(), dispatched=False).refined

    assert refined(negotiated("requires_operator")) is None
    assert refined(negotiated("requires_operator", failure="operator_required")) is None
    same = response("failed", failure_class="payload_too_large")
    assert refined(negotiated("degraded", decisions=[failed()]), same) is None


def test_a_failure_without_a_class_is_our_own() -> None:
    for outcome in ("degraded", "satisfied"):
        found = derive_status(negotiated(outcome), response("failed"))
        assert found == DerivedStatus("failed", "internal_error", "retry_after_reread")
    assert derive_status(negotiated("unsupported"), None).failure_class == "capability_unsupported"


@given(
    st.sampled_from(NEGOTIATION_OUTCOMES),
    st.none() | st.sampled_from(RECEIPT_STATUSES),
    st.none() | st.sampled_from(FAILURE_CLASSES),
    st.none() | st.sampled_from(RETRY_CLASSES),
    st.none() | st.sampled_from(FAILURE_CLASSES),
    st.lists(st.sampled_from([chosen(), failed(), failed("payload_rejected"), skipped()]), max_size=3),
)
def test_every_receipt_is_one_and_a_blocked_plan_has_failed(
    outcome: Any, status: Any, failure: Any, retry: Any, planned: Any, decisions: Any
) -> None:
    found = negotiated(outcome, decisions=decisions, failure=planned)
    answer = None if status is None else response(status, failure_class=failure, retry_class=retry)
    receipt = synthesize(found, answer, context(), sequence=None)
    validate(receipt)
    assert receipt.status == "failed" or not found.blocks_dispatch
    assert (receipt.status == "failed") == (receipt.failure_class is not None) == (receipt.retry_class is not None)
    refined = annotate(found, answer, context(), dispatched=status is not None).refined
    if refined is not None:
        assert refined != Refined(
            status=receipt.status, failure_class=receipt.failure_class, retry_class=receipt.retry_class
        )


# --- the receipt --------------------------------------------------------------------------------------


def test_a_receipt_has_its_event_from_the_plan_and_its_ids_from_the_context() -> None:
    """LX-25: the harness's ids are the context's, even where it has none."""
    of = plan(adapter_id="claude_code", harness_task_id="task-1", sequence=99, metadata={"a": 1})
    found = negotiated(
        "degraded",
        of=of,
        capability_degradations=({"capability": "session_rename", "more": [1, {"b": 2.0}]},),
        warnings=({"code": "a", "message": "ours"},),
    )
    answer = response("delivered", warnings=({"code": "a", "message": "ours"}, {"whatever": True}))
    given_context = context(parent_receipt_id="rcp-0", harness_session_id="other", harness_run_id=None)
    receipt = synthesize(found, answer, given_context, sequence=4)
    assert receipt.adapter_id == "claude"
    assert (receipt.harness_session_id, receipt.harness_run_id, receipt.harness_task_id) == ("other", None, None)
    assert (receipt.sequence, receipt.receipt_id, receipt.parent_receipt_id) == (4, "rcp-1", "rcp-0")
    assert (receipt.at_epoch_s, receipt.client_id, receipt.idempotency_key) == (NOW, "ccd", "idem-1")
    assert (receipt.event, receipt.event_id, receipt.invocation_id) == ("session.started", "evt-1", "inv-1")
    assert (receipt.schema_version, receipt.integration_mode) == ("lifeloop.v0.3", "native_hook")
    assert receipt.capability_degradations == found.capability_degradations
    assert receipt.warnings == (*found.warnings, *answer.warnings)
    assert receipt.telemetry_summary == {}
    notes = annotate(found, answer, given_context, dispatched=True)
    assert notes.drift == ("harness_session_id", "harness_run_id", "harness_task_id")


def test_payload_receipts_follow_the_decisions_whatever_the_client_returned() -> None:
    """LA-30."""
    rejected = (
        Unsupported(placement="developer_equivalent_frame", manifest_support="unavailable"),
        Unsupported(placement="pre_prompt_frame", manifest_support="unavailable"),
    )
    decisions = [chosen("b"), replace(failed(payload_id="a"), rejected=rejected), skipped("c"), failed(payload_id="d")]
    other = payload(("receipt_only", "required"), payload_id="b", content_digest="sha256:other", byte_size=9)
    receipt = synthesize(
        negotiated("degraded", decisions=decisions), response(client_payloads=(other,)), context(), sequence=1
    )

    def made(payload_id: str, kind: str, placement: Any, status: Any, size: int, digest: str | None) -> PayloadReceipt:
        return PayloadReceipt(
            payload_id=payload_id,
            payload_kind=kind,
            placement=placement,
            status=status,
            byte_size=size,
            content_digest=digest,
        )

    assert receipt.payload_receipts == (
        made("b", "instruction_frame", "pre_prompt_frame", "delivered", 5, "sha256:abc"),
        made("a", "audit_record", "developer_equivalent_frame", "failed", 6, None),
        made("c", "audit_record", "receipt_only", "skipped", 7, None),
        made("d", "audit_record", "receipt_only", "failed", 6, None),
    )


def test_the_event_that_tells_of_receipts_has_none() -> None:
    """LA-6."""
    of = plan(event="receipt.emitted", idempotency_key=None)
    with pytest.raises(ReceiptEmittedNotEmittable):
        synthesize(negotiated(of=of), response(), context(), sequence=None)


# --- annotations --------------------------------------------------------------------------------------


def test_annotations_say_what_was_settled_called_and_answered() -> None:
    of = plan(sequence=9, frame_context=FRAME, capability_snapshot_ref="snap-1", metadata={"b": "secret", "a": 1})
    answer = response(
        "failed",
        failure_class="timeout",
        retry_class="do_not_retry",
        receipt_refs=("theirs",),
        metadata={"directive": {"action": "block", "reason": "secret"}},
    )
    rejected = (Unsupported(placement="pre_prompt_frame", manifest_support="unavailable"),)
    decisions = [chosen("a"), replace(skipped("b"), rejected=rejected), failed(payload_id="c")]
    notes = annotate(negotiated("degraded", of=of, decisions=decisions), answer, context(), dispatched=True)
    assert notes == Annotations(
        outcome="degraded",
        dispatched=True,
        client_status="failed",
        attempts=1,
        refined=Refined(status="failed", failure_class="payload_too_large", retry_class="do_not_retry"),
        payloads=(
            PayloadNote(payload_id="a", decision="chosen", delivered="unknown"),
            PayloadNote(payload_id="b", decision="skipped", delivered="no", rejected=rejected),
            PayloadNote(payload_id="c", decision="failed", delivered="no"),
        ),
        directive=DirectiveNote(action="block"),
        request=RequestNote(
            sequence=9,
            adapter_version="0.2.0",
            frame_context=FRAME,
            capability_snapshot_ref="snap-1",
            metadata_blake3=blake3(b'{"a":1,"b":"secret"}').hexdigest(),
        ),
        response=ResponseNote(
            receipt_refs=("theirs",),
            metadata_blake3=blake3(canonical(answer.metadata)).hexdigest(),
            retry_overridden=True,
        ),
    )
    stored = encode_annotations(notes)
    assert b"secret" not in stored
    assert decode_annotations(stored) == notes


def test_what_there_is_nothing_to_say_of_is_left_out() -> None:
    notes = annotate(negotiated(), None, context(), dispatched=False)
    assert encode_annotations(notes) == (
        b'{"outcome":"satisfied","dispatched":false,"request":{"adapter_version":"0.2.0"}}'
    )


@pytest.mark.parametrize(
    ("dispatched", "status", "delivered"),
    [
        (False, None, "no"),
        (True, "failed", "unknown"),
        *((True, each, "yes") for each in (None, *RECEIPT_STATUSES[:4])),
    ],
)
def test_a_payload_was_delivered_as_far_as_is_known(dispatched: bool, status: str | None, delivered: str) -> None:
    answer = None if status is None else response(status)
    notes = annotate(negotiated(decisions=[chosen()]), answer, context(), dispatched=dispatched)
    assert [note.delivered for note in notes.payloads] == [delivered]
    assert notes.attempts == int(dispatched)


@pytest.mark.parametrize(
    ("changes", "overridden"),
    [
        ({}, False),
        ({"status": "failed", "failure_class": "timeout"}, False),
        ({"status": "failed", "failure_class": "timeout", "retry_class": default_retry("timeout")}, False),
        ({"status": "failed", "failure_class": "timeout", "retry_class": "do_not_retry"}, True),
    ],
)
def test_a_retry_class_of_the_client_s_own_is_noted(changes: dict[str, Any], overridden: bool) -> None:
    notes = annotate(negotiated(), response(**changes), context(), dispatched=True)
    assert notes.response is not None
    assert notes.response.retry_overridden is overridden


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        ({}, None),
        ({"directive": "block"}, None),
        ({"directive": {}}, DirectiveNote(action="none")),
        ({"directive": {"action": "halt"}}, DirectiveNote(action="halt")),
        ({"directive": {"action": "explode"}}, DirectiveNote(action="none", dropped="unknown_action")),
        ({"directive": {"action": ["halt"]}}, DirectiveNote(action="none", dropped="unknown_action")),
    ],
)
def test_what_the_client_asked_of_the_harness_is_noted(metadata: dict[str, Any], note: DirectiveNote | None) -> None:
    assert annotate(negotiated(), response(metadata=metadata), context(), dispatched=True).directive == note


def test_payloads_that_the_client_returned_are_noted_with_their_place_by_digest_only() -> None:
    adapter = manifest(pre_frame_trailing=PlacementClaim(support="native", max_bytes=5))
    returned = (
        payload(("pre_prompt_frame", "optional"), payload_id="fits", byte_size=1),
        payload(("pre_prompt_frame", "optional"), payload_id="large", body="secret"),
        payload(("developer_equivalent_frame", "optional"), payload_id="nowhere"),
        payload(("pre_prompt_frame", "optional"), payload_id="late", expires_at_epoch_s=NOW),
        payload(("receipt_only", "optional"), payload_id="elsewhere", body=None, body_ref="file:a", byte_size=77),
    )
    found = negotiated(of=plan(adapter))
    hello, secret = blake3(b"hello").hexdigest(), blake3(b"secret").hexdigest()

    def noted(payload_id: str, size: int, digest: str | None, placement: Any, why: str | None) -> ClientPayloadNote:
        return ClientPayloadNote(payload_id=payload_id, byte_size=size, blake3=digest, placement=placement, why=why)

    notes = annotate(found, response(client_payloads=returned), context(), dispatched=True)
    assert notes.client_payloads == (
        noted("fits", 5, hello, "pre_prompt_frame", None),
        noted("large", 6, secret, None, "payload_too_large"),
        noted("nowhere", 5, hello, None, "placement_unavailable"),
        noted("late", 5, hello, None, "payload_rejected"),
        noted("elsewhere", 77, None, "receipt_only", None),
    )
    assert b"secret" not in encode_annotations(notes)
    strict = annotate(
        found,
        response(client_payloads=returned),
        context(),
        dispatched=True,
        policy=PayloadPolicy(integrity="strict"),
    )
    assert strict.client_payloads[0].why == "payload_rejected"
